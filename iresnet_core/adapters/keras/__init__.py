"""Keras layers over the core: invertible residual blocks and flows that train by `fit`, save and sample."""

from iresnet_core.adapters.keras.branch import Activation
from iresnet_core.adapters.keras.flow import FlowModel
from iresnet_core.adapters.keras.layer import ActNorm, FactorOut, FlowLayer, InjectivePad, Logit, Squeeze
from iresnet_core.adapters.keras.residual import InvertibleResidual

__all__ = [
    "ActNorm",
    "Activation",
    "FactorOut",
    "FlowLayer",
    "FlowModel",
    "InjectivePad",
    "InvertibleResidual",
    "Logit",
    "Squeeze",
]
