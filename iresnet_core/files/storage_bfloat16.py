"""bfloat16 numbers as the whole numbers of their 16 bits, for a host that has no such dtype.

A bfloat16 is the upper half of a float32, so that the way there and back changes nothing.
"""

from typing import Any

import numpy as np

from iresnet_core.backends import Array, Backend, get_backend

__all__ = ["from_bits", "has_bfloat16", "is_bfloat16", "to_bits"]


def has_bfloat16(backend: Backend) -> bool:
    """Say whether the backend has the dtype."""
    return hasattr(backend.xp, "bfloat16")


def is_bfloat16(x: Array) -> bool:
    """Say whether an array is of it."""
    backend = get_backend(x)
    return has_bfloat16(backend) and bool(x.dtype == backend.xp.bfloat16)


def to_bits(x: Array) -> Any:
    """Return the bits as a NumPy array of uint16."""
    backend = get_backend(x)
    wide = np.ascontiguousarray(backend.to_numpy(backend.xp.astype(x, backend.xp.float32)))
    return (wide.view(np.uint32) >> 16).astype(np.uint16)


def from_bits(backend: Backend, bits: Any) -> Array:
    """Return the numbers as bfloat16, or, where the backend lacks it, as float32."""
    wide = backend.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))
    return backend.xp.astype(wide, backend.xp.bfloat16) if has_bfloat16(backend) else wide
