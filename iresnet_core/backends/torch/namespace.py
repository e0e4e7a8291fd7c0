"""array-api-compat's namespace of PyTorch, with what stands in inner loops taken from PyTorch directly.

array-api-compat promotes the dtypes of its arguments first, which costs several times a small product; the core has
refused mixed dtypes before it comes here.
"""

import builtins
from typing import Any

import torch
from array_api_compat import torch as compat
from array_api_compat.torch import *  # noqa: F403

from iresnet_core.backends.torch import linalg
from iresnet_core.backends.torch.elimination import summed_words, writes_onnx
from iresnet_core.backends.torch.linalg import matmul, matrix_transpose, vecdot

__all__ = [
    "astype",
    "cumulative_sum",
    "eye",
    "linalg",
    "matmul",
    "matrix_transpose",
    "max",
    "maximum",
    "min",
    "minimum",
    "moveaxis",
    "sum",
    "unstack",
    "vecdot",
    "where",
]

Array = Any
# Not functions of arrays, but loaders of TorchScript, which raise when pytest looks for doctests in them.
for _loader in ("classes", "ops"):
    globals().pop(_loader, None)

maximum, minimum, where = torch.maximum, torch.minimum, torch.where
moveaxis = torch.movedim  # torch.vmap has no rule for torch.moveaxis, its other name


def sum(x: Array, /, *, axis: Any = None, dtype: Any = None, **options: Any) -> Array:
    """Sum; words of 32 bits go round, also where ONNX would cut them off."""
    if dtype == torch.int32 and writes_onnx():
        return summed_words(x, axis)
    return compat.sum(x, axis=axis, dtype=dtype, **options)


def max(x: Array, /, *, axis: Any = None, keepdims: bool = False) -> Array:
    """Largest entry; with all axes named, since ONNX's function takes no maximum without."""
    return compat.max(x, axis=tuple(builtins.range(x.ndim)) if axis is None else axis, keepdims=keepdims)


def min(x: Array, /, *, axis: Any = None, keepdims: bool = False) -> Array:
    """Smallest entry; with all axes named, as `max`."""
    return compat.min(x, axis=tuple(builtins.range(x.ndim)) if axis is None else axis, keepdims=keepdims)


def astype(x: Array, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Array:
    """Convert; with ``copy=False`` an array that has the dtype already is returned itself."""
    return x.to(dtype=dtype, device=device, copy=copy)


def unstack(x: Array, /, *, axis: int = 0) -> Any:
    """Take apart along an axis; that of array-api-compat calls ``torch.moveaxis``, which torch.vmap does not know."""
    return torch.unbind(x, axis)


def cumulative_sum(x: Array, /, *, axis: Any = None, dtype: Any = None, include_initial: Any = False) -> Array:
    """Sum up along an axis; that of array-api-compat asks for the namespace, which torch.compile does not trace."""
    if include_initial:
        return compat.cumulative_sum(x, axis=axis, dtype=dtype, include_initial=True)
    return torch.cumsum(x, dim=0 if axis is None else axis, dtype=dtype)


def eye(n_rows: Any, n_cols: Any = None, /, *, k: Any = 0, dtype: Any = None, device: Any = None) -> Array:
    """Return ones on a diagonal and zeros beside it, without writing into a tensor, which ONNX programs cannot."""
    columns = n_rows if n_cols is None else n_cols
    if k == 0:
        return torch.eye(n_rows, columns, dtype=dtype, device=device)
    rows = torch.arange(n_rows, device=device)[:, None]
    return (torch.arange(columns, device=device) == rows + k).to(dtype or torch.get_default_dtype())
