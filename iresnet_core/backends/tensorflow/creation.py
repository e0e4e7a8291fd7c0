"""TensorFlow arrays made from numbers and from other arrays, under the names of the array API standard."""

import builtins
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from iresnet_core.backends.tensorflow.batch import known_shape
from iresnet_core.backends.tensorflow.dtypes import complex64, float32, int64
from iresnet_core.backends.tensorflow.shapes import shape_of

__all__ = [
    "arange",
    "asarray",
    "astype",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]

Array = Any


def _on(device: Any) -> AbstractContextManager[Any]:
    """Context that places arrays, where arrays have a place."""
    return tf.device(device) if device and tf.executing_eagerly() else nullcontext()


def _shape(shape: Any) -> Any:
    return (shape,) if isinstance(shape, int | np.integer) else known_shape(shape)


def astype(x: Array, dtype: Any, /, *, copy: builtins.bool = True, device: Any = None) -> Array:
    """Cast; tensors never change, so that no copy is made where the dtype stays."""
    with _on(device):
        return tf.cast(x, dtype)


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: builtins.bool | None = None) -> Array:
    """Make a tensor; NumPy arrays and tensors keep their dtype."""
    with _on(device):
        if tf.is_tensor(obj) or isinstance(obj, np.ndarray | np.generic):
            array = tf.convert_to_tensor(obj)
            return array if dtype is None else tf.cast(array, dtype)
        if dtype is None:
            array = np.asarray(obj)
            default = {"f": float32, "c": complex64}
            dtype = default.get(array.dtype.kind)
        return tf.convert_to_tensor(obj, dtype=dtype)


def zeros(shape: Any, *, dtype: Any = None, device: Any = None) -> Array:
    """Return zeros."""
    with _on(device):
        return tf.zeros(_shape(shape), dtype=dtype or float32)


def ones(shape: Any, *, dtype: Any = None, device: Any = None) -> Array:
    """Return ones."""
    with _on(device):
        return tf.ones(_shape(shape), dtype=dtype or float32)


def empty(shape: Any, *, dtype: Any = None, device: Any = None) -> Array:
    """Return zeros."""
    return zeros(shape, dtype=dtype, device=device)


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Array:
    """Return an array of one value."""
    with _on(device):
        return tf.fill(_shape(shape), asarray(fill_value, dtype=dtype))


def zeros_like(x: Array, /, *, dtype: Any = None, device: Any = None) -> Array:
    """Return zeros in the shape of x."""
    with _on(device or x.device):
        return tf.zeros_like(x, dtype=dtype)


def ones_like(x: Array, /, *, dtype: Any = None, device: Any = None) -> Array:
    """Return ones in the shape of x."""
    with _on(device or x.device):
        return tf.ones_like(x, dtype=dtype)


def empty_like(x: Array, /, *, dtype: Any = None, device: Any = None) -> Array:
    """Return zeros in the shape of x."""
    return zeros_like(x, dtype=dtype, device=device)


def full_like(x: Array, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Array:
    """Return an array of one value in the shape of x."""
    return full(shape_of(x), fill_value, dtype=dtype or x.dtype, device=device or x.device)


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Array:
    """Return ones on the k-th diagonal."""
    n_cols = n_rows if n_cols is None else n_cols
    with _on(device):
        if k == 0:
            return tf.eye(n_rows, n_cols, dtype=dtype or float32)
        return tf.cast(tf.range(n_rows)[:, None] + k == tf.range(n_cols)[None, :], dtype or float32)


def arange(start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Array:
    """Return start, start + step, ... below stop."""
    start, stop = (0, start) if stop is None else (start, stop)
    if dtype is None:
        dtype = int64 if builtins.all(isinstance(n, int | np.integer) for n in (start, stop, step)) else float32
    with _on(device):
        return tf.range(start, stop, step, dtype=dtype)


def linspace(
    start: Any, stop: Any, /, num: int, *, dtype: Any = None, device: Any = None, endpoint: builtins.bool = True
) -> Array:
    """Return numbers at equal distances."""
    numbers = np.linspace(start, stop, num, endpoint=endpoint)
    return asarray(numbers, dtype=dtype or (complex64 if np.iscomplexobj(numbers) else float32), device=device)
