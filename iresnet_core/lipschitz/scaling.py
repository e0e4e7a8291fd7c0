"""Operators in units in which no square of an entry over- or underflows."""

import math
from typing import Any

import numpy as np

from iresnet_core.backends import Array, Backend
from iresnet_core.common import fixed_start, working_dtype
from iresnet_core.operators import LinearLayer, LinearOperator, Matrices, Scaled

__all__ = ["divided", "first_right", "power_of_two_near", "prepared"]


def prepared(operator: LinearOperator, dtype: Any = None) -> tuple[LinearOperator, Array]:
    """Scale an operator by powers of two so that its entries are near 1, where no square over- or underflows.

    Returns the scaled operator (in `dtype`, by default at least float32) and the factor that was taken out.
    """
    backend, xp = operator.backend, operator.backend.xp
    target = working_dtype(backend, operator.like.dtype) if dtype is None else dtype
    if isinstance(operator, Matrices):
        array = xp.astype(operator.array, target, copy=False)
        scale = power_of_two_near(backend, xp.max(xp.abs(array), axis=(-2, -1)))
        return Matrices(array / scale[..., None, None]), scale
    if isinstance(operator, LinearLayer):
        layer = operator.astype(target)
        scale = power_of_two_near(backend, xp.max(xp.abs(layer.weight)))
        if layer.shape == tuple(layer.weight.shape):
            return Matrices(layer.weight / scale), scale
        return layer.with_parameters(layer.weight / scale, None), scale
    # The entries are out of sight, but a product shows their scale. Within 2^40 of the ends of the range it is left to
    # the products, so that vectors divided by it stay in range themselves.
    magnitude = xp.max(xp.abs(operator.matvec(first_right(operator))))
    info = xp.finfo(magnitude.dtype)
    lowest, highest = (xp.full_like(magnitude, end) for end in (info.smallest_normal * 2.0**40, info.max * 2.0**-40))
    magnitude = xp.where(magnitude > 0, xp.maximum(xp.minimum(magnitude, highest), lowest), magnitude)
    scale = power_of_two_near(backend, magnitude)
    return Scaled(operator, scale), scale


def divided(operator: LinearOperator, dtype: Any, scale: Array) -> LinearOperator:
    """Return the operator in another dtype, divided by the scale (...,) that `prepared` found for its entries."""
    if isinstance(operator, LinearLayer):
        return operator.with_parameters(operator.backend.xp.astype(operator.weight, dtype) / scale, None)
    entries = operator.backend.xp.astype(operator.entries, dtype, copy=False)
    return Matrices(entries / scale[..., None, None])


def power_of_two_near(backend: Backend, magnitude: Array) -> Array:
    """The power of two just below a magnitude; 1 for zero.

    Out of a table, since the powers that a GPU computes can be a unit in the last place off.
    """
    xp = backend.xp
    info = xp.finfo(magnitude.dtype)
    highest = _exponent(info.max)
    lowest = _exponent(info.smallest_normal) + _exponent(info.eps)
    positive = xp.where(magnitude > 0, magnitude, xp.ones_like(magnitude))
    exponent = xp.astype(xp.floor(xp.clip(xp.log2(positive), lowest, highest)), xp.int32)
    # The logarithm of numbers next to the largest one rounds up, to a power that would be infinite; that of subnormal
    # ones may be -infinity, and that of NaN becomes any number.
    place = xp.clip(exponent, lowest, highest) - lowest
    table = backend.constant_array(_powers_of_two, lowest, highest, like=magnitude)
    powers = xp.take(xp.astype(table, magnitude.dtype), xp.reshape(place, (-1,)), axis=0)
    return xp.reshape(powers, tuple(magnitude.shape))


def _exponent(number: Any) -> int:
    return math.frexp(float(number))[1] - 1


def _powers_of_two(lowest: int, highest: int) -> np.ndarray:
    return np.ldexp(1.0, np.arange(lowest, highest + 1))


def first_right(operator: LinearOperator) -> Array:
    """The right vector (..., n) from which every backend begins."""
    n = operator.shape[1]
    right = fixed_start(operator.backend, (n,), operator.like)
    return operator.backend.xp.broadcast_to(right, (*operator.batch_shape, n))
