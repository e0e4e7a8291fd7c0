"""Keras layers over the core: invertible residual blocks flows and classifiers that train by `fit`."""

from iresnet_core.adapters.keras.branch import Activation
from iresnet_core.adapters.keras.classifier import Classifier
from iresnet_core.adapters.keras.flow import FlowModel
from iresnet_core.adapters.keras.layer import ActNorm, FactorOut, FlowLayer, InjectivePad, Logit, Squeeze
from iresnet_core.adapters.keras.residual import InvertibleResidual

__all__ = [
    "ActNorm",
    "Activation",
    "Classifier",
    "FactorOut",
    "FlowLayer",
    "FlowModel",
    "InjectivePad",
    "InvertibleResidual",
    "Logit",
    "Squeeze",
]
