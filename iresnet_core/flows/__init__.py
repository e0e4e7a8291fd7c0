"""Flows: residual blocks and the other layers, pure functions of arrays, and their composition."""

from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.base_densities import (
    BASE_NAMES,
    DiagonalNormal,
    FullNormal,
    NormalMixture,
    StudentT,
    Uniform,
    named_base,
)
from iresnet_core.flows.bases import LogProb, checked_base, latents
from iresnet_core.flows.condition import Condition, require_rows
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.inverted import Inverted
from iresnet_core.flows.latent_density import Base
from iresnet_core.flows.layer import Layer, Shape, Transformed, located
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.maximum_likelihood import (
    DEFAULT_SHARE,
    mean_loss,
    require_share,
    training_log_prob,
    training_loss,
    with_own_numbers,
    with_part_first,
)
from iresnet_core.flows.outliers import require_visible_bulk
from iresnet_core.flows.pointwise import Pointwise
from iresnet_core.flows.product_base import ProductBase
from iresnet_core.flows.recovered_inputs import RecoveredInputs
from iresnet_core.flows.reshaping import SQUEEZES, InjectivePad, Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.flows.sampling import Drawn
from iresnet_core.flows.sequence import chosen_layers, event_shape_of, shape_found
from iresnet_core.flows.standardize import Standardize
from iresnet_core.flows.variational import ImportanceWeights, importance_weights, reverse_kl
from iresnet_core.flows.von_mises import VonMises
from iresnet_core.flows.wrap import Wrap, require_periodic

__all__ = [
    "BASE_NAMES",
    "DEFAULT_SHARE",
    "SQUEEZES",
    "ActNorm",
    "Base",
    "Condition",
    "DiagonalNormal",
    "Drawn",
    "FactorOut",
    "Flow",
    "FullNormal",
    "ImportanceWeights",
    "InjectivePad",
    "Inverted",
    "Layer",
    "LogProb",
    "Logit",
    "NormalMixture",
    "Pointwise",
    "ProductBase",
    "RecoveredInputs",
    "ResidualBlock",
    "Shape",
    "Squeeze",
    "Standardize",
    "StudentT",
    "Transformed",
    "Uniform",
    "VonMises",
    "Wrap",
    "checked_base",
    "chosen_layers",
    "event_shape_of",
    "importance_weights",
    "latents",
    "located",
    "mean_loss",
    "named_base",
    "require_periodic",
    "require_rows",
    "require_share",
    "require_visible_bulk",
    "reverse_kl",
    "shape_found",
    "training_log_prob",
    "training_loss",
    "with_own_numbers",
    "with_part_first",
]
