"""Arrays of samples: the first axis counts them, the others are one sample's."""

import math
from typing import Any

from iresnet_core.backends import Array

__all__ = ["flatten", "norms", "per_sample"]


def flatten(xp: Any, x: Array) -> Array:
    """Return the samples as rows (batch, d)."""
    return xp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def norms(xp: Any, x: Array) -> Array:
    """Return the Euclidean norm of every sample (batch,)."""
    return xp.linalg.vector_norm(flatten(xp, x), axis=-1)


def per_sample(xp: Any, values: Array, like: Array) -> Array:
    """Shape values (batch,) so that they broadcast over the samples of `like`."""
    return xp.reshape(values, (values.shape[0],) + (1,) * (like.ndim - 1))
