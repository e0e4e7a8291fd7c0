"""TensorFlow's own functions under the names and signatures of the Python array API standard.

What the standard leaves to the array library follows TensorFlow: dtypes are never mixed, and a Python number takes the
dtype of the array beside it. The default dtypes are float32, int64 and complex64. ``device`` is the string that an
eager tensor has as its attribute; inside a traced program placement is the compiler's affair and it is ignored.
"""

import builtins
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from iresnet_core.backends import tensorflow_fft as fft
from iresnet_core.backends import tensorflow_linalg as linalg
from iresnet_core.backends.tensorflow_batch import known_shape, reshaping
from iresnet_core.backends.tensorflow_elementwise import (
    abs,
    acos,
    acosh,
    add,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    ceil,
    clip,
    conj,
    cos,
    cosh,
    divide,
    equal,
    exp,
    expm1,
    floor,
    floor_divide,
    greater,
    greater_equal,
    imag,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    log2,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    positive,
    pow,
    real,
    reciprocal,
    remainder,
    round,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    where,
)
from iresnet_core.backends.tensorflow_linalg import matmul, matrix_transpose, tensordot, vecdot

__all__ = [
    "abs",
    "acos",
    "acosh",
    "add",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "ceil",
    "clip",
    "conj",
    "cos",
    "cosh",
    "divide",
    "equal",
    "exp",
    "expm1",
    "fft",
    "floor",
    "floor_divide",
    "greater",
    "greater_equal",
    "imag",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "linalg",
    "log",
    "log1p",
    "log2",
    "logaddexp",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "matmul",
    "matrix_transpose",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "positive",
    "pow",
    "real",
    "reciprocal",
    "remainder",
    "round",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "subtract",
    "tan",
    "tanh",
    "tensordot",
    "vecdot",
    "where",
]

Array = Any
Axis = int | tuple[int, ...] | None

# --- dtypes and constants ---

bool = tf.bool
int8, int16, int32, int64 = tf.int8, tf.int16, tf.int32, tf.int64
uint8, uint16, uint32, uint64 = tf.uint8, tf.uint16, tf.uint32, tf.uint64
float16, bfloat16, float32, float64 = tf.float16, tf.bfloat16, tf.float32, tf.float64
complex64, complex128 = tf.complex64, tf.complex128

e, pi, inf, nan, newaxis = math.e, math.pi, math.inf, math.nan, None

_KINDS: dict[str, tuple[Any, ...]] = {
    "bool": (bool,),
    "signed integer": (int8, int16, int32, int64),
    "unsigned integer": (uint8, uint16, uint32, uint64),
    "real floating": (float16, bfloat16, float32, float64),
    "complex floating": (complex64, complex128),
}
_KINDS["integral"] = _KINDS["signed integer"] + _KINDS["unsigned integer"]
_KINDS["numeric"] = _KINDS["integral"] + _KINDS["real floating"] + _KINDS["complex floating"]


class FloatInfo(NamedTuple):
    """What `finfo` tells of a floating-point dtype (of its parts, for a complex one)."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: Any


class IntegerInfo(NamedTuple):
    """What `iinfo` tells of an integer dtype."""

    bits: int
    max: int
    min: int
    dtype: Any


def isdtype(dtype: Any, kind: Any) -> builtins.bool:
    """Say whether a dtype is of a kind: a name of the standard, a dtype, or a tuple of those."""
    if isinstance(kind, tuple):
        return builtins.any(isdtype(dtype, one) for one in kind)
    if isinstance(kind, str):
        return dtype in _KINDS[kind]
    return builtins.bool(dtype == kind)


def finfo(type: Any, /) -> FloatInfo:
    """Return the limits of a floating-point dtype, or of an array's."""
    dtype = tf.as_dtype(getattr(type, "dtype", type)).real_dtype
    if dtype == bfloat16:  # unknown to NumPy: the exponents of float32, eight bits of precision
        largest = (2 - 2.0**-7) * 2.0**127
        return FloatInfo(16, 2.0**-7, largest, -largest, 2.0**-126, dtype)
    info = np.finfo(dtype.as_numpy_dtype)
    return FloatInfo(
        info.bits, float(info.eps), float(info.max), float(info.min), float(info.smallest_normal), dtype
    )


def iinfo(type: Any, /) -> IntegerInfo:
    """Return the limits of an integer dtype, or of an array's."""
    dtype = tf.as_dtype(getattr(type, "dtype", type))
    return IntegerInfo(8 * dtype.size, dtype.max, dtype.min, dtype)


def astype(x: Array, dtype: Any, /, *, copy: builtins.bool = True, device: Any = None) -> Array:
    """Cast; tensors never change, so that no copy is made where the dtype stays."""
    with _on(device):
        return tf.cast(x, dtype)


# --- creation ---


def _on(device: Any) -> AbstractContextManager[Any]:
    """Context that places arrays, where arrays have a place."""
    return tf.device(device) if device and tf.executing_eagerly() else nullcontext()


def _shape(shape: Any) -> Any:
    return (shape,) if isinstance(shape, int | np.integer) else known_shape(shape)


def _shape_of(x: Array) -> Any:
    """Shape as numbers, or as a tensor where not all of them are known."""
    return x.shape if x.shape.is_fully_defined() else tf.shape(x)


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
    return full(_shape_of(x), fill_value, dtype=dtype or x.dtype, device=device or x.device)


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


# --- reductions ---


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


# --- order ---


def argsort(
    x: Array, /, *, axis: int = -1, descending: builtins.bool = False, stable: builtins.bool = True
) -> Array:
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


# --- shapes ---


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
        return tf.reshape(tf.roll(tf.reshape(x, (-1,)), shift, 0), _shape_of(x))
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
