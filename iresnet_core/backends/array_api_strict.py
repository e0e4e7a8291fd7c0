"""Backend over `array_api_strict`, which has nothing but the standard: it shows that the core uses nothing else."""

from typing import Any

import array_api_strict as namespace
import numpy as np

from iresnet_core.backends.base import Array
from iresnet_core.backends.numpy_family import NumPyFamily

__all__ = ["ArrayAPIStrictBackend"]


class ArrayAPIStrictBackend(NumPyFamily):
    """The array API standard and no more; for tests."""

    name = "array_api_strict"
    xp = namespace

    def owns(self, kind: type) -> bool:
        """Say whether `kind` is the strict array type."""
        return kind is type(namespace.zeros(1))

    def to_numpy(self, x: Array) -> Any:
        """Copy through the buffer of a CPU array."""
        return np.array(np.asarray(x))

    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Copy, to the device of `like`."""
        return namespace.asarray(np.asarray(x), device=None if like is None else like.device)
