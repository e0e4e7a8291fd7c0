"""Linear algebra of several folders: the vectors from which iterations begin, and the Frobenius norm."""

import math
from typing import Any

import numpy as np

from iresnet_core.backends import Array, Backend

__all__ = ["fixed_start", "squared_frobenius"]


def fixed_start(backend: Backend, shape: tuple[int, ...], like: Array) -> Array:
    """Return the vectors from which an iteration begins, with the dtype and device of `like`.

    They are random, so that they are orthogonal to no direction that matters, and drawn on the host from a fixed seed,
    so that every backend and every call begins from the same ones.
    """
    return backend.xp.astype(backend.constant_array(_gaussian, *shape, like=like), like.dtype)


def _gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def squared_frobenius(xp: Any, A: Array) -> Array:
    """Return the squared Frobenius norms (...,) of matrices (..., m, n); real numbers, for complex matrices too."""
    if xp.isdtype(A.dtype, "complex floating"):
        return xp.sum(xp.abs(A) ** 2, axis=(-2, -1))
    flat = xp.reshape(A, (*A.shape[:-2], math.prod(A.shape[-2:])))
    return xp.linalg.vecdot(flat, flat)
