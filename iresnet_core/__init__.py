"""Numerical core of invertible residual networks, F(x) = x + g(x) with Lip(g) < 1.

Three primitives, written once against the Python array API: spectral norm (`spectral_norm`, `lipschitz_bound`),
contraction inverse (`invert`) and log-determinant (`logdet`). Every answer carries its error.
"""

from iresnet_core.branches.activations import Activation
from iresnet_core.branches.chain import Chain
from iresnet_core.branches.linearization import Branch, Linearization
from iresnet_core.determinant.dispatch import logdet
from iresnet_core.determinant.preconditioning import MeanJacobian, mean_jacobian
from iresnet_core.errors import IResNetError
from iresnet_core.files.storage import load, save
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow, LogProb
from iresnet_core.flows.layer import Layer, Transformed
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.reshaping import InjectivePad, Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.inverse.dispatch import invert
from iresnet_core.lipschitz.batched_bounds import lipschitz_bounds
from iresnet_core.lipschitz.bounds import lipschitz_bound
from iresnet_core.lipschitz.estimates import spectral_norm
from iresnet_core.lipschitz.normalization import normalize, spectral_penalty
from iresnet_core.operators.convolution import Convolution
from iresnet_core.operators.matrices import Dense, as_operator
from iresnet_core.results import Inverse, LipschitzBound, LogDet, SpectralNorm

__version__ = "0.1.0"

__all__ = [
    "ActNorm",
    "Activation",
    "Branch",
    "Chain",
    "Convolution",
    "Dense",
    "FactorOut",
    "Flow",
    "IResNetError",
    "InjectivePad",
    "Inverse",
    "Layer",
    "Linearization",
    "LipschitzBound",
    "LogDet",
    "LogProb",
    "Logit",
    "MeanJacobian",
    "ResidualBlock",
    "SpectralNorm",
    "Squeeze",
    "Transformed",
    "as_operator",
    "invert",
    "lipschitz_bound",
    "lipschitz_bounds",
    "load",
    "logdet",
    "mean_jacobian",
    "normalize",
    "save",
    "spectral_norm",
    "spectral_penalty",
]
