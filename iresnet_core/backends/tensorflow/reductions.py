"""Sums, extrema, order and selection of TensorFlow arrays, under the names of the array API standard."""

import builtins
from typing import Any

import tensorflow as tf

from iresnet_core.backends.tensorflow.dtypes import bool, int64, isdtype, uint64
from iresnet_core.backends.tensorflow.shapes import moveaxis

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "cumulative_sum",
    "max",
    "mean",
    "min",
    "prod",
    "sort",
    "std",
    "sum",
    "take",
    "take_along_axis",
    "var",
]

Array = Any
Axis = int | tuple[int, ...] | None


def _summed(x: Array, dtype: Any) -> Array:
    """Cast to the dtype of the sum: small integers and truth values are counted in int64."""
    if dtype is None:
        dtype = int64 if isdtype(x.dtype, ("bool", "signed integer")) else uint64
        dtype = dtype if isdtype(x.dtype, ("bool", "integral")) else x.dtype
    return tf.cast(x, dtype)


def sum(x: Array, /, *, axis: Axis = None, dtype: Any = None, keepdims: builtins.bool = False) -> Array:
    """Sum."""
    return tf.reduce_sum(_summed(x, dtype), axis=axis, keepdims=keepdims)


def prod(x: Array, /, *, axis: Axis = None, dtype: Any = None, keepdims: builtins.bool = False) -> Array:
    """Product."""
    return tf.reduce_prod(_summed(x, dtype), axis=axis, keepdims=keepdims)


def mean(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Mean."""
    return tf.reduce_mean(x, axis=axis, keepdims=keepdims)


def var(x: Array, /, *, axis: Axis = None, correction: float = 0.0, keepdims: builtins.bool = False) -> Array:
    """Variance; its divisor is the number of entries less the correction."""
    deviation = x - tf.reduce_mean(x, axis=axis, keepdims=True)
    total = tf.reduce_sum(deviation * deviation, axis=axis, keepdims=keepdims)
    count = tf.size(x, out_type=int64) // tf.maximum(tf.size(total, out_type=int64), 1)
    return total / (tf.cast(count, x.dtype) - correction)


def std(x: Array, /, *, axis: Axis = None, correction: float = 0.0, keepdims: builtins.bool = False) -> Array:
    """Square root of the variance."""
    return tf.sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


def max(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Largest entry."""
    return tf.reduce_max(x, axis=axis, keepdims=keepdims)


def min(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Smallest entry."""
    return tf.reduce_min(x, axis=axis, keepdims=keepdims)


def all(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Whether all entries are true (not zero)."""
    return tf.reduce_all(tf.cast(x, bool), axis=axis, keepdims=keepdims)


def any(x: Array, /, *, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    """Whether one of the entries is true (not zero)."""
    return tf.reduce_any(tf.cast(x, bool), axis=axis, keepdims=keepdims)


def cumulative_sum(x: Array, /, *, axis: int | None = None, dtype: Any = None) -> Array:
    """Sums of the first entries; `axis` may be left out for vectors."""
    return tf.cumsum(_summed(x, dtype), axis=0 if axis is None else axis)


def argmax(x: Array, /, *, axis: int | None = None, keepdims: builtins.bool = False) -> Array:
    """Position of the first largest entry, in the flattened array where there is no axis."""
    return _position(tf.argmax, x, axis, keepdims)


def argmin(x: Array, /, *, axis: int | None = None, keepdims: builtins.bool = False) -> Array:
    """Position of the first smallest entry, in the flattened array where there is no axis."""
    return _position(tf.argmin, x, axis, keepdims)


def _position(function: Any, x: Array, axis: int | None, keepdims: builtins.bool) -> Array:
    if axis is None:
        found = function(tf.reshape(x, (-1,)), axis=0, output_type=int64)
        return tf.reshape(found, (1,) * len(x.shape)) if keepdims else found
    found = function(x, axis=axis, output_type=int64)
    return tf.expand_dims(found, axis) if keepdims else found


def argsort(x: Array, /, *, axis: int = -1, descending: builtins.bool = False, stable: builtins.bool = True) -> Array:
    """Positions of the entries in order."""
    direction = "DESCENDING" if descending else "ASCENDING"
    return tf.cast(tf.argsort(x, axis=axis, direction=direction, stable=stable), int64)


def sort(x: Array, /, *, axis: int = -1, descending: builtins.bool = False, stable: builtins.bool = True) -> Array:
    """Entries in order."""
    return tf.sort(x, axis=axis, direction="DESCENDING" if descending else "ASCENDING")


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    """Entries at the positions `indices` (n,) of an axis, which may be left out for vectors."""
    return tf.gather(x, indices, axis=0 if axis is None else axis)


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """Entries at positions that differ from vector to vector."""
    last = moveaxis(x, axis, -1), moveaxis(indices, axis, -1)
    return moveaxis(tf.gather(*last, axis=-1, batch_dims=len(x.shape) - 1), -1, axis)
