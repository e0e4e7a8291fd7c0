"""Linear layers and operators: dense matrices, convolutions, stacks and transposes, anything with products."""

from iresnet_core.operators.convolution import Convolution, wrapped
from iresnet_core.operators.matrices import (
    Dense,
    LinearLayer,
    LinearOperator,
    Matrices,
    Scaled,
    Transposed,
    as_operator,
    constant_operator,
)

__all__ = [
    "Convolution",
    "Dense",
    "LinearLayer",
    "LinearOperator",
    "Matrices",
    "Scaled",
    "Transposed",
    "as_operator",
    "constant_operator",
    "wrapped",
]
