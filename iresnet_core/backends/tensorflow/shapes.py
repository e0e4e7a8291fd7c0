"""Shapes of TensorFlow arrays, under the names of the array API standard."""

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from iresnet_core.backends.tensorflow.batch import known_shape, reshaping

__all__ = [
    "broadcast_arrays",
    "broadcast_to",
    "concat",
    "expand_dims",
    "flip",
    "moveaxis",
    "permute_dims",
    "repeat",
    "reshape",
    "roll",
    "shape_of",
    "squeeze",
    "stack",
    "tile",
    "tril",
    "triu",
    "unstack",
]

Array = Any
Axis = int | tuple[int, ...] | None


def shape_of(x: Array) -> Any:
    """Shape as numbers, or as a tensor where not all of them are known."""
    return x.shape if x.shape.is_fully_defined() else tf.shape(x)


def reshape(x: Array, /, shape: Sequence[int], *, copy: builtins.bool | None = None) -> Array:
    """Put the entries into another shape."""
    return tf.reshape(x, reshaping(shape))


def broadcast_to(x: Array, /, shape: Sequence[int]) -> Array:
    """Repeat along axes of length 1 and in front."""
    return tf.broadcast_to(x, known_shape(shape))


def broadcast_arrays(*arrays: Array) -> list[Array]:
    """Bring arrays to one shape."""
    shape = np.broadcast_shapes(*(tuple(x.shape) for x in arrays))
    return [tf.broadcast_to(x, shape) for x in arrays]


def permute_dims(x: Array, /, axes: Sequence[int]) -> Array:
    """Put the axes into another order."""
    return tf.transpose(x, axes)


def moveaxis(x: Array, source: Any, destination: Any, /) -> Array:
    """Move axes, and leave the others in their order."""
    n = len(x.shape)
    sources = [s % n for s in ((source,) if isinstance(source, int) else source)]
    targets = [d % n for d in ((destination,) if isinstance(destination, int) else destination)]
    order = [axis for axis in range(n) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return tf.transpose(x, order)


def expand_dims(x: Array, /, *, axis: int = 0) -> Array:
    """Add an axis of length 1."""
    return tf.expand_dims(x, axis)


def squeeze(x: Array, /, axis: Axis) -> Array:
    """Remove axes of length 1."""
    return tf.squeeze(x, axis)


def flip(x: Array, /, *, axis: Axis = None) -> Array:
    """Turn axes round."""
    axes = range(len(x.shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    return tf.reverse(x, list(axes))


def roll(x: Array, /, shift: Any, *, axis: Any = None) -> Array:
    """Shift along axes, and bring what falls off back at the other end."""
    if axis is None:
        return tf.reshape(tf.roll(tf.reshape(x, (-1,)), shift, 0), shape_of(x))
    return tf.roll(x, shift, axis)


def concat(arrays: Sequence[Array], /, *, axis: int | None = 0) -> Array:
    """Join arrays along an axis; flattened where it is None."""
    if axis is None:
        arrays, axis = [tf.reshape(x, (-1,)) for x in arrays], 0
    return tf.concat(list(arrays), axis)


def stack(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
    """Join arrays along a new axis."""
    return tf.stack(list(arrays), axis)


def unstack(x: Array, /, *, axis: int = 0) -> tuple[Array, ...]:
    """Take an array apart along an axis."""
    return tuple(tf.unstack(x, axis=axis))


def tile(x: Array, repetitions: Sequence[int], /) -> Array:
    """Repeat the whole array along each axis."""
    missing = len(repetitions) - len(x.shape)
    x = tf.reshape(x, (*(1,) * missing, *x.shape))
    return tf.tile(x, (*(1,) * -missing, *repetitions))


def repeat(x: Array, repeats: Any, /, *, axis: int | None = None) -> Array:
    """Repeat every entry along an axis."""
    return tf.repeat(x, repeats, axis=axis)


def tril(x: Array, /, *, k: int = 0) -> Array:
    """Lower triangle, from the k-th diagonal down."""
    return tf.where(_diagonals(x) <= k, x, tf.zeros_like(x))


def triu(x: Array, /, *, k: int = 0) -> Array:
    """Upper triangle, from the k-th diagonal up."""
    return tf.where(_diagonals(x) >= k, x, tf.zeros_like(x))


def _diagonals(x: Array) -> Array:
    """Number of the diagonal that each entry of a matrix lies on."""
    return tf.range(x.shape[-1])[None, :] - tf.range(x.shape[-2])[:, None]
