"""array-api-compat's namespace of PyTorch, with what stands in inner loops taken from PyTorch directly.

array-api-compat promotes the dtypes of its arguments first, which costs several times a small product; the core has
refused mixed dtypes before it comes here.
"""

from typing import Any

import torch
from array_api_compat.torch import *  # noqa: F403

from iresnet_core.backends.torch import linalg
from iresnet_core.backends.torch.linalg import matmul, matrix_transpose, vecdot

__all__ = ["astype", "linalg", "matmul", "matrix_transpose", "maximum", "minimum", "vecdot", "where"]

Array = Any
# Not functions of arrays, but loaders of TorchScript, which raise when pytest looks for doctests in them.
for _loader in ("classes", "ops"):
    globals().pop(_loader, None)

maximum, minimum, where = torch.maximum, torch.minimum, torch.where


def astype(x: Array, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Array:
    """Convert; with ``copy=False`` an array that has the dtype already is returned itself."""
    return x.to(dtype=dtype, device=device, copy=copy)
