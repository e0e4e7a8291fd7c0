"""Numerical core of invertible residual networks, F(x) = x + g(x) with Lip(g) < 1.

Three primitives, written once against the Python array API: spectral norm (`spectral_norm`, `lipschitz_bound`),
contraction inverse (`invert`) and log-determinant (`logdet`). Every answer carries its error.
"""

from iresnet_core.branches import (
    Activation,
    Branch,
    Chain,
    DenseConcatenation,
    Fixed,
    FourierFeatures,
    Linearization,
    OwnLayer,
    PReLU,
    Reshape,
    ScaledActivation,
    average_pooling,
)
from iresnet_core.determinant import MeanJacobian, logdet, mean_jacobian
from iresnet_core.errors import IResNetError
from iresnet_core.files import load, save
from iresnet_core.flows import (
    ActNorm,
    Condition,
    DiagonalNormal,
    Drawn,
    FactorOut,
    Flow,
    FullNormal,
    ImportanceWeights,
    InjectivePad,
    Inverted,
    Layer,
    Logit,
    LogProb,
    NormalMixture,
    Pointwise,
    ProductBase,
    ResidualBlock,
    Squeeze,
    Standardize,
    StudentT,
    Transformed,
    Uniform,
    VonMises,
    Wrap,
    importance_weights,
    reverse_kl,
    training_loss,
)
from iresnet_core.inverse import invert
from iresnet_core.lipschitz import lipschitz_bound, lipschitz_bounds, normalize, spectral_norm, spectral_penalty
from iresnet_core.operators import Convolution, ConvolutionTranspose, Dense, as_operator
from iresnet_core.results import Inverse, LipschitzBound, LogDet, SpectralNorm

__version__ = "0.1.0"

__all__ = [
    "ActNorm",
    "Activation",
    "Branch",
    "Chain",
    "Condition",
    "Convolution",
    "ConvolutionTranspose",
    "Dense",
    "DenseConcatenation",
    "DiagonalNormal",
    "Drawn",
    "FactorOut",
    "Fixed",
    "Flow",
    "FourierFeatures",
    "FullNormal",
    "IResNetError",
    "ImportanceWeights",
    "InjectivePad",
    "Inverse",
    "Inverted",
    "Layer",
    "Linearization",
    "LipschitzBound",
    "LogDet",
    "LogProb",
    "Logit",
    "MeanJacobian",
    "NormalMixture",
    "OwnLayer",
    "PReLU",
    "Pointwise",
    "ProductBase",
    "Reshape",
    "ResidualBlock",
    "ScaledActivation",
    "SpectralNorm",
    "Squeeze",
    "Standardize",
    "StudentT",
    "Transformed",
    "Uniform",
    "VonMises",
    "Wrap",
    "as_operator",
    "average_pooling",
    "importance_weights",
    "invert",
    "lipschitz_bound",
    "lipschitz_bounds",
    "load",
    "logdet",
    "mean_jacobian",
    "normalize",
    "reverse_kl",
    "save",
    "spectral_norm",
    "spectral_penalty",
    "training_loss",
]

# Modules that are for users, and what Python itself asks for.
_SHOWN = ("__all__", "__doc__", "__file__", "__name__", "__path__", "__version__", "adapters", "backends", "errors")


def __dir__() -> list[str]:
    """Return the public names, which is what tab completion shows; other modules are parts of these."""
    return sorted([*__all__, *_SHOWN])
