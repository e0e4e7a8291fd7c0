"""Linear layers and operators: dense matrices, convolutions, stacks and transposes, anything with products."""

from iresnet_core.operators.base import LinearLayer, LinearOperator
from iresnet_core.operators.convolution import Convolution, wrapped
from iresnet_core.operators.dense import Dense
from iresnet_core.operators.matrices import (
    Matrices,
    Scaled,
    Transposed,
    as_operator,
    detached_operator,
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
    "detached_operator",
    "wrapped",
]
