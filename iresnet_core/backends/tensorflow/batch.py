"""The size of a batch that a traced program does not know, such as that of ``tf.TensorSpec([None, 4])``.

The core writes shapes with the numbers that its arrays tell, and None among them then stands for the size of the batch
that the public function was given, of which there is one.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from iresnet_core.errors import ShapeError

__all__ = ["batch_of_unknown_size", "known_shape", "reshaping"]

Array = Any


class _Here(threading.local):
    """Holds the size that None stands for in the shapes of this thread."""

    size: Any = None


_here = _Here()


@contextmanager
def batch_of_unknown_size(x: Array) -> Iterator[None]:
    """Context in which None in a shape is the size of the first axis of `x`."""
    before = _here.size
    _here.size = tf.shape(x)[0] if x.shape[0] is None else before
    try:
        yield
    finally:
        _here.size = before


def known_shape(shape: Any) -> Any:
    """Return a shape with the size of the batch, a scalar tensor, in place of None.

    Raises
    ------
    ShapeError
        If that is not known.
    """
    if tf.is_tensor(shape):
        return shape
    sizes = tuple(shape)
    if None not in sizes:
        return shape
    if _here.size is None:
        raise ShapeError(
            f"the shape {sizes} is not known while the program is traced. Give the arguments of the tf.function known "
            "sizes, for example tf.TensorSpec([64, 4]), or drop its input_signature."
        )
    return tuple(_here.size if n is None else n for n in sizes)


def reshaping(shape: Any) -> Any:
    """Return a shape for ``tf.reshape``, which finds one missing size by itself."""
    if tf.is_tensor(shape):
        return shape
    sizes = tuple(shape)
    if sizes.count(None) == 1 and -1 not in [n for n in sizes if isinstance(n, int)]:
        return tuple(-1 if n is None else n for n in sizes)
    return known_shape(sizes)
