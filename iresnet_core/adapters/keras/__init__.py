"""Keras layers over the core: invertible residual blocks, flows and classifiers that train by `fit`."""

from typing import Any

from iresnet_core.adapters.keras.base import Base
from iresnet_core.adapters.keras.branch import Activation
from iresnet_core.adapters.keras.classifier import Classifier
from iresnet_core.adapters.keras.condition import Condition
from iresnet_core.adapters.keras.declared import DeclaredLayer, FourierFeatures
from iresnet_core.adapters.keras.flow import Flow
from iresnet_core.adapters.keras.inverted import Inverted
from iresnet_core.adapters.keras.layer import ActNorm, FactorOut, FlowLayer, InjectivePad, Logit, Squeeze, Wrap
from iresnet_core.adapters.keras.learned import DenseConcatenation, ScaledActivation
from iresnet_core.adapters.keras.muon import Muon
from iresnet_core.adapters.keras.pointwise import Pointwise
from iresnet_core.adapters.keras.residual import InvertibleResidual
from iresnet_core.adapters.shared import warn_deprecated

__all__ = [
    "ActNorm",
    "Activation",
    "Base",
    "Classifier",
    "Condition",
    "DeclaredLayer",
    "DenseConcatenation",
    "FactorOut",
    "Flow",
    "FlowLayer",
    "FourierFeatures",
    "InjectivePad",
    "Inverted",
    "InvertibleResidual",
    "Logit",
    "Muon",
    "Pointwise",
    "ScaledActivation",
    "Squeeze",
    "Wrap",
]


def __getattr__(name: str) -> Any:
    """Return what a deprecated name stands for."""
    if name == "FlowModel":
        warn_deprecated("FlowModel", "Flow")
        return Flow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# What Python itself asks for.
_SHOWN = ("__all__", "__doc__", "__file__", "__name__", "__path__")


def __dir__() -> list[str]:
    """Return the public names, which is what tab completion shows; other modules are parts of these."""
    return sorted([*__all__, *_SHOWN])
