"""Flows: residual blocks and the other layers, pure functions of arrays, and their composition."""

from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow, LogProb
from iresnet_core.flows.layer import Layer, Shape, Transformed, located
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.outliers import require_visible_bulk
from iresnet_core.flows.reshaping import InjectivePad, Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.flows.standardize import Standardize
from iresnet_core.flows.training_density import training_log_prob

__all__ = [
    "ActNorm",
    "FactorOut",
    "Flow",
    "InjectivePad",
    "Layer",
    "LogProb",
    "Logit",
    "ResidualBlock",
    "Shape",
    "Squeeze",
    "Standardize",
    "Transformed",
    "located",
    "require_visible_bulk",
    "training_log_prob",
]
