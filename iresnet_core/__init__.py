"""Numerical core of invertible residual networks, F(x) = x + g(x) with Lip(g) < 1.

Three primitives, written once against the Python array API: spectral norm (`spectral_norm`, `lipschitz_bound`),
contraction inverse (`invert`) and log-determinant (`logdet`). Every answer carries its error.
"""

from iresnet_core.activations import Activation
from iresnet_core.actnorm import ActNorm
from iresnet_core.batched_bounds import lipschitz_bounds
from iresnet_core.bounds import lipschitz_bound
from iresnet_core.branches import Chain
from iresnet_core.convolution import Convolution
from iresnet_core.determinant import logdet
from iresnet_core.errors import IResNetError
from iresnet_core.factor_out import FactorOut
from iresnet_core.flow import Flow, LogProb
from iresnet_core.inverse import invert
from iresnet_core.layer import Layer, Transformed
from iresnet_core.linearization import Branch, Linearization
from iresnet_core.logit import Logit
from iresnet_core.normalization import normalize, spectral_penalty
from iresnet_core.operators import Dense, as_operator
from iresnet_core.preconditioning import MeanJacobian, mean_jacobian
from iresnet_core.reshaping import InjectivePad, Squeeze
from iresnet_core.residual_block import ResidualBlock
from iresnet_core.results import Inverse, LipschitzBound, LogDet, SpectralNorm
from iresnet_core.spectral import spectral_norm
from iresnet_core.storage import load, save

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
