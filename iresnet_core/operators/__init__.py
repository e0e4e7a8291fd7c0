"""Linear layers and operators: dense matrices, convolutions, stacks and transposes, anything with products."""

from iresnet_core.operators.base import LinearLayer, LinearOperator
from iresnet_core.operators.convolution import Convolution, wrapped
from iresnet_core.operators.dense import Dense
from iresnet_core.operators.derived import Counted, Normal, Shifted
from iresnet_core.operators.linearity import require_linear
from iresnet_core.operators.matrices import (
    ForeignOperator,
    Matrices,
    Scaled,
    Transposed,
    as_operator,
    detached_operator,
    is_operator,
)
from iresnet_core.operators.sparse import SparseMatrix, is_sparse
from iresnet_core.operators.transposed_convolution import ConvolutionTranspose

__all__ = [
    "Convolution",
    "ConvolutionTranspose",
    "Counted",
    "Dense",
    "ForeignOperator",
    "LinearLayer",
    "LinearOperator",
    "Matrices",
    "Normal",
    "Scaled",
    "Shifted",
    "SparseMatrix",
    "Transposed",
    "as_operator",
    "detached_operator",
    "is_operator",
    "is_sparse",
    "require_linear",
    "wrapped",
]
