"""Noise drawn on the host by NumPy's generators, so that a seed means the same on every backend."""

from typing import Any

import numpy as np

from iresnet_core.backends.base import NoiseKind
from iresnet_core.errors import InvalidArgumentError

__all__ = ["draw", "generator"]


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
        return np.copysign(1.0, source.random(shape) - 0.5)  # the difference is exact
    raise InvalidArgumentError(f"noise must be 'rademacher' or 'gaussian', got {kind!r}.")
