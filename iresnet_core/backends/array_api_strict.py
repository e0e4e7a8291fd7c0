"""Engine over `array_api_strict`, which has nothing but the standard: it shows that the core uses nothing else."""

from typing import Any

import array_api_strict as namespace
import numpy as np

from iresnet_core.backends.base import Array, NoiseKind
from iresnet_core.backends.numpy import draw, generator
from iresnet_core.backends.offset_convolution import OffsetConvolution

__all__ = ["Engine"]


class Engine(OffsetConvolution):
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

    def generator(self, rng: Any) -> Any:
        """Return NumPy's generator."""
        return generator(rng)

    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw with NumPy."""
        return namespace.astype(self.from_numpy(draw(kind, shape, rng), like), like.dtype)

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw with NumPy."""
        return np.asarray(generator(rng).random(shape))

    def is_positive_definite(self, matrix: Array) -> bool:
        """Ask for the factor and take the refusal as the answer."""
        try:
            factor = namespace.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return False
        return bool(namespace.all(namespace.isfinite(factor)))
