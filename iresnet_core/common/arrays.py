"""Arrays: dtypes, how far rounding reaches, and samples, which the first axis of an array counts."""

import math
from typing import Any

from iresnet_core.backends import Array, Backend

__all__ = [
    "flatten",
    "gamma",
    "per_sample",
    "round_up",
    "safe_sample_norms",
    "sample_norms",
    "unit_roundoff",
    "widest",
    "working_dtype",
]


def unit_roundoff(backend: Backend, dtype: Any) -> float:
    """Half the distance from 1 to the next number: the relative error of one rounding."""
    return float(backend.xp.finfo(dtype).eps) / 2


def gamma(n: int, u: float) -> float:
    """Return n u / (1 - n u), the relative rounding error of a sum of n products in any order (Higham 2002, 3.1)."""
    if n * u >= 0.5:
        return float("inf")
    return n * u / (1 - n * u)


def widest(backend: Backend) -> Any:
    """The dtype of certificates: float64."""
    return backend.xp.float64


def working_dtype(backend: Backend, dtype: Any) -> Any:
    """The dtype of an iteration on arrays of `dtype`: at least float32, since half precision cannot carry norms."""
    return backend.xp.float32 if backend.xp.finfo(dtype).bits < 32 else dtype


def round_up(backend: Backend, value: Array, dtype: Any) -> Array:
    """Convert a float64 bound to `dtype` without letting it fall.

    One that has the dtype already is exact, unless scaling made it subnormal and so rounded it.
    """
    xp = backend.xp
    info = xp.finfo(dtype)
    tiny = float(info.smallest_normal)
    if value.dtype == dtype:
        return xp.where((value > 0) & (value < tiny), value + tiny * float(info.eps), value)
    raised = value * (1 + 2 * float(info.eps)) + tiny
    return xp.astype(xp.where(value > 0, raised, value), dtype)


def flatten(xp: Any, x: Array) -> Array:
    """Return the samples as rows (batch, d)."""
    return xp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def sample_norms(xp: Any, x: Array) -> Array:
    """Return the Euclidean norm of every sample (batch,)."""
    return xp.linalg.vector_norm(flatten(xp, x), axis=-1)


def safe_sample_norms(xp: Any, x: Array) -> Array:
    """Return the norms as `sample_norms` does, where a square of an entry might over- or underflow.

    The entries of every sample are divided by their largest magnitude first.
    """
    flat = flatten(xp, x)
    largest = xp.max(xp.abs(flat), axis=-1)
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    return xp.linalg.vector_norm(flat / scale[:, None], axis=-1) * scale


def per_sample(xp: Any, values: Array, like: Array) -> Array:
    """Shape values (batch,) so that they broadcast over the samples of `like`."""
    return xp.reshape(values, (values.shape[0],) + (1,) * (like.ndim - 1))
