"""NumPy engine."""

from typing import Any

import array_api_compat.numpy as namespace
import numpy as np

from iresnet_core.backends.base import Array, NoiseKind
from iresnet_core.backends.offset_convolution import OffsetConvolution
from iresnet_core.errors import InvalidArgumentError

__all__ = ["Engine", "draw", "generator"]


def generator(rng: Any) -> Any:
    """Return something with NumPy's drawing methods: the global state for None, a seeded generator for an int."""
    if rng is None:
        return np.random.mtrand._rand  # NumPy's own global generator, which numpy.random.seed governs
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        if rng < 0:
            raise InvalidArgumentError(f"rng={rng}: a seed must not be negative.")
        return np.random.default_rng(int(rng))
    if isinstance(rng, np.random.Generator | np.random.RandomState):
        return rng
    raise InvalidArgumentError(
        f"rng must be None, an int seed or a numpy.random.Generator here, got {type(rng).__name__}."
    )


def draw(kind: NoiseKind, shape: tuple[int, ...], rng: Any) -> Any:
    """Draw float64 probes on the host; see `Backend.sample`."""
    source = generator(rng)
    if kind == "gaussian":
        return source.standard_normal(shape)
    if kind == "rademacher":
        return np.where(source.random(shape) < 0.5, -1.0, 1.0)
    raise InvalidArgumentError(f"noise must be 'rademacher' or 'gaussian', got {kind!r}.")


class Engine(OffsetConvolution):
    """NumPy: no automatic differentiation, no compiler; convolutions by one product per kernel offset."""

    name = "numpy"
    xp = namespace

    def owns(self, kind: type) -> bool:
        """Say whether `kind` is an ndarray or a NumPy scalar; masked arrays and matrices are neither."""
        return kind is np.ndarray or issubclass(kind, np.generic) or kind is np.memmap

    def to_numpy(self, x: Array) -> Any:
        """Copy."""
        return np.array(x)

    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Return `x` itself."""
        return np.asarray(x)

    def generator(self, rng: Any) -> Any:
        """Return NumPy's generator."""
        return generator(rng)

    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw in float64 and round, so that float32 runs see the same noise."""
        return draw(kind, shape, rng).astype(like.dtype)

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw from the same generator as `sample`."""
        return np.asarray(generator(rng).random(shape))

    def is_positive_definite(self, matrix: Array) -> bool:
        """LAPACK's potrf, with its refusal as the answer."""
        try:
            # The transpose is the conjugate matrix, definite or not together with it; its columns are contiguous, which
            # spares LAPACK's copy the strided reads.
            factor = np.linalg.cholesky(np.swapaxes(matrix, -1, -2))
        except np.linalg.LinAlgError:
            return False
        return bool(np.all(np.isfinite(factor)))  # NaN passes through LAPACK

    def frozen(self, x: Array) -> Array:
        """Return a private read-only copy, so that a cached certificate cannot be outdated by a write in place."""
        copy = np.array(x)
        copy.flags.writeable = False
        return copy
