"""TensorFlow's dtypes and the constants, under the names of the array API standard."""

import builtins
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

__all__ = [
    "FloatInfo",
    "IntegerInfo",
    "bfloat16",
    "bool",
    "complex64",
    "complex128",
    "e",
    "finfo",
    "float16",
    "float32",
    "float64",
    "iinfo",
    "inf",
    "int8",
    "int16",
    "int32",
    "int64",
    "isdtype",
    "nan",
    "newaxis",
    "pi",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]

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
    return FloatInfo(info.bits, float(info.eps), float(info.max), float(info.min), float(info.smallest_normal), dtype)


def iinfo(type: Any, /) -> IntegerInfo:
    """Return the limits of an integer dtype, or of an array's."""
    dtype = tf.as_dtype(getattr(type, "dtype", type))
    return IntegerInfo(8 * dtype.size, dtype.max, dtype.min, dtype)
