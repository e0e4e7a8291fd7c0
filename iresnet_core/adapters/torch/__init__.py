"""PyTorch modules over the core: invertible residual blocks, flows and classifiers that train, save and sample."""

from iresnet_core.adapters.torch.base import Base
from iresnet_core.adapters.torch.branch import Activation
from iresnet_core.adapters.torch.classifier import Classifier
from iresnet_core.adapters.torch.condition import Condition
from iresnet_core.adapters.torch.declared import DeclaredLayer, FourierFeatures
from iresnet_core.adapters.torch.flow import Flow
from iresnet_core.adapters.torch.inverted import Inverted
from iresnet_core.adapters.torch.layer import ActNorm, FactorOut, FlowLayer, InjectivePad, Logit, Squeeze, Wrap
from iresnet_core.adapters.torch.learned import DenseConcatenation, ScaledActivation
from iresnet_core.adapters.torch.muon import Muon
from iresnet_core.adapters.torch.pointwise import Pointwise
from iresnet_core.adapters.torch.residual import InvertibleResidual
from iresnet_core.adapters.torch.transform import FlowTransform

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
    "FlowTransform",
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

# What Python itself asks for.
_SHOWN = ("__all__", "__doc__", "__file__", "__name__", "__path__")


def __dir__() -> list[str]:
    """Return the public names, which is what tab completion shows; other modules are parts of these."""
    return sorted([*__all__, *_SHOWN])
