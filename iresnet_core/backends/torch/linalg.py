"""PyTorch's linear algebra under the names of the standard, without the promotion of dtypes.

That costs more than a small product, and the core refuses mixed dtypes itself.
"""

from typing import Any

import torch
from array_api_compat.torch.linalg import *  # noqa: F403

from iresnet_core.backends.torch.elimination import (
    eigenvalues_and_vectors,
    eliminated,
    log_determinant,
    writes_onnx,
)
from iresnet_core.backends.torch.precision import own_dtype

__all__ = [
    "eigh",
    "inv",
    "inverse_and_log_determinant",
    "matmul",
    "matrix_transpose",
    "slogdet",
    "solve",
    "vecdot",
    "vector_norm",
]

Array = Any


def matmul(x1: Array, x2: Array, /) -> Array:  # type: ignore[no-redef]
    """Multiply in the dtype of the factors, also where autocast would lower it."""
    if not torch.is_autocast_enabled(x1.device.type):
        return torch.matmul(x1, x2)
    with own_dtype(x1):
        return torch.matmul(x1, x2)


def matrix_transpose(x: Array, /) -> Array:  # type: ignore[no-redef]
    """Exchange the last two axes."""
    return torch.transpose(x, -1, -2)  # not `x.mT`: the compiler takes an attribute out of a loop, as an alias of x


def solve(x1: Array, x2: Array, /) -> Array:  # type: ignore[no-redef]
    """Solve systems with right-hand sides x2 (..., n, k); looking for singular ones would wait for the device."""
    if writes_onnx():
        return eliminated(x1, x2)
    return torch.linalg.solve_ex(x1, x2)[0]


def eigh(x: Array, /) -> Any:  # type: ignore[no-redef]
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices."""
    return eigenvalues_and_vectors(x) if writes_onnx() else torch.linalg.eigh(x)


def inv(x: Array, /) -> Array:  # type: ignore[no-redef]
    """Inverses of matrices (..., n, n)."""
    if writes_onnx():
        return eliminated(x, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x))
    return torch.linalg.inv(x)


def inverse_and_log_determinant(matrix: Array) -> tuple[Array, Array]:
    """Take the inverse and log|det| of one matrix (n, n) from one LU factorisation."""
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    if writes_onnx():
        return eliminated(matrix, unit), log_determinant(matrix)[1]
    factors, pivots = torch.linalg.lu_factor(matrix)
    return torch.linalg.lu_solve(factors, pivots, unit), factors.diagonal().abs().log().sum()


def slogdet(x: Array, /) -> Any:  # type: ignore[no-redef]
    """Sign and logarithm of |det| of matrices (..., n, n)."""
    return log_determinant(x) if writes_onnx() else torch.linalg.slogdet(x)


def vecdot(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:  # type: ignore[no-redef]
    """Inner products along one axis, in the dtype of the factors."""
    if not torch.is_autocast_enabled(x1.device.type):
        return torch.linalg.vecdot(x1, x2, dim=axis)
    with own_dtype(x1):
        return torch.linalg.vecdot(x1, x2, dim=axis)


def vector_norm(x: Array, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Array:  # type: ignore[no-redef]
    """Norm of vectors along one axis, several, or all."""
    return torch.linalg.vector_norm(x, ord=ord, dim=axis, keepdim=keepdims)
