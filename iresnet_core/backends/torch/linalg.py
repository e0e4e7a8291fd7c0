"""PyTorch's linear algebra under the names of the standard, without the promotion of dtypes.

That costs more than a small product, and the core refuses mixed dtypes itself.
"""

from typing import Any

import torch
from array_api_compat.torch.linalg import *  # noqa: F403

from iresnet_core.backends.torch.precision import own_dtype

__all__ = ["matmul", "matrix_transpose", "solve", "vecdot", "vector_norm"]

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
    return torch.linalg.solve_ex(x1, x2)[0]


def vecdot(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:  # type: ignore[no-redef]
    """Inner products along one axis, in the dtype of the factors."""
    if not torch.is_autocast_enabled(x1.device.type):
        return torch.linalg.vecdot(x1, x2, dim=axis)
    with own_dtype(x1):
        return torch.linalg.vecdot(x1, x2, dim=axis)


def vector_norm(x: Array, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Array:  # type: ignore[no-redef]
    """Norm of vectors along one axis, several, or all."""
    return torch.linalg.vector_norm(x, ord=ord, dim=axis, keepdim=keepdims)
