"""The table of activation functions, by which `Activation`, the files and the tests find them.

A new one is a class and a row; `iresnet_core.reference` states it a second time, independently.
"""

from iresnet_core.branches.activation_base import ActivationFunction, Entrywise
from iresnet_core.branches.piecewise_activations import Celu, Elu, Hardtanh, LeakyRelu, Relu, Selu, Softshrink
from iresnet_core.branches.smooth_activations import (
    SWISH_SLOPE,
    Gelu,
    Identity,
    Lipswish,
    Mish,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Softsign,
    Tanh,
)
from iresnet_core.branches.sorting_activation import Maxmin

__all__ = ["ACTIVATIONS", "SWISH_SLOPE", "ActivationFunction", "Entrywise"]

ACTIVATIONS: dict[str, type[ActivationFunction]] = {
    "lipswish": Lipswish,
    "silu": Silu,
    "gelu": Gelu,
    "mish": Mish,
    "elu": Elu,
    "celu": Celu,
    "selu": Selu,
    "relu": Relu,
    "leakyrelu": LeakyRelu,
    "softplus": Softplus,
    "softsign": Softsign,
    "tanh": Tanh,
    "hardtanh": Hardtanh,
    "softshrink": Softshrink,
    "sigmoid": Sigmoid,
    "sin": Sin,
    "identity": Identity,
    "maxmin": Maxmin,
}
