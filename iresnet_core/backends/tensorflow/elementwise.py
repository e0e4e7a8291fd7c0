"""Functions of every entry, or of every pair of entries, under the names of the array API standard."""

import math
from typing import Any

import tensorflow as tf

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
    "bitwise_and",
    "bitwise_right_shift",
    "bitwise_xor",
    "ceil",
    "clip",
    "conj",
    "cos",
    "cosh",
    "divide",
    "equal",
    "exp",
    "expm1",
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
    "log",
    "log1p",
    "log2",
    "logaddexp",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
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
    "where",
]

Array = Any


def _both(x1: Any, x2: Any) -> tuple[Array, Array]:
    """Give a Python number the dtype of the array beside it."""
    if tf.is_tensor(x1):
        return x1, tf.convert_to_tensor(x2, dtype=x1.dtype)
    return tf.convert_to_tensor(x1, dtype=x2.dtype), x2


def _elementwise(name: str, function: Any) -> Any:
    def of_one(x: Array, /) -> Array:
        return function(x)

    of_one.__name__ = of_one.__qualname__ = name
    of_one.__doc__ = f"{name} of every entry, by TensorFlow."
    return of_one


def _pairwise(name: str, function: Any) -> Any:
    def of_two(x1: Any, x2: Any, /) -> Array:
        return function(*_both(x1, x2))

    of_two.__name__ = of_two.__qualname__ = name
    of_two.__doc__ = f"{name} of every pair of entries, by TensorFlow; one of the two may be a number."
    return of_two


abs = _elementwise("abs", tf.abs)
acos = _elementwise("acos", tf.acos)
acosh = _elementwise("acosh", tf.acosh)
asin = _elementwise("asin", tf.asin)
asinh = _elementwise("asinh", tf.asinh)
atan = _elementwise("atan", tf.atan)
atanh = _elementwise("atanh", tf.atanh)
ceil = _elementwise("ceil", tf.math.ceil)
conj = _elementwise("conj", tf.math.conj)
cos = _elementwise("cos", tf.cos)
cosh = _elementwise("cosh", tf.cosh)
exp = _elementwise("exp", tf.exp)
expm1 = _elementwise("expm1", tf.math.expm1)
floor = _elementwise("floor", tf.floor)
imag = _elementwise("imag", tf.math.imag)
isfinite = _elementwise("isfinite", tf.math.is_finite)
isinf = _elementwise("isinf", tf.math.is_inf)
isnan = _elementwise("isnan", tf.math.is_nan)
log = _elementwise("log", tf.math.log)
log1p = _elementwise("log1p", tf.math.log1p)
logical_not = _elementwise("logical_not", tf.logical_not)
negative = _elementwise("negative", tf.negative)
positive = _elementwise("positive", tf.identity)
real = _elementwise("real", tf.math.real)
reciprocal = _elementwise("reciprocal", tf.math.reciprocal)
round = _elementwise("round", tf.round)
sign = _elementwise("sign", tf.sign)
sin = _elementwise("sin", tf.sin)
sinh = _elementwise("sinh", tf.sinh)
sqrt = _elementwise("sqrt", tf.sqrt)
square = _elementwise("square", tf.square)
tan = _elementwise("tan", tf.tan)
tanh = _elementwise("tanh", tf.tanh)

add = _pairwise("add", tf.add)
atan2 = _pairwise("atan2", tf.atan2)
bitwise_and = _pairwise("bitwise_and", tf.bitwise.bitwise_and)
bitwise_right_shift = _pairwise("bitwise_right_shift", tf.bitwise.right_shift)
bitwise_xor = _pairwise("bitwise_xor", tf.bitwise.bitwise_xor)
divide = _pairwise("divide", tf.divide)
equal = _pairwise("equal", tf.equal)
floor_divide = _pairwise("floor_divide", tf.math.floordiv)
greater = _pairwise("greater", tf.greater)
greater_equal = _pairwise("greater_equal", tf.greater_equal)
less = _pairwise("less", tf.less)
less_equal = _pairwise("less_equal", tf.less_equal)
logical_and = _pairwise("logical_and", tf.logical_and)
logical_or = _pairwise("logical_or", tf.logical_or)
logical_xor = _pairwise("logical_xor", tf.math.logical_xor)
maximum = _pairwise("maximum", tf.maximum)
minimum = _pairwise("minimum", tf.minimum)
multiply = _pairwise("multiply", tf.multiply)
not_equal = _pairwise("not_equal", tf.not_equal)
pow = _pairwise("pow", tf.pow)
remainder = _pairwise("remainder", tf.math.floormod)
subtract = _pairwise("subtract", tf.subtract)


def log2(x: Array, /) -> Array:
    """Logarithm to the base 2; exact for powers of two."""
    value = tf.math.log(x) / math.log(2)
    nearest = tf.round(value)
    # Through float32's inverse the gradient is that of `value`; only its rounding is mended.
    return value + tf.stop_gradient(
        tf.where(tf.pow(tf.constant(2, x.dtype), nearest) == x, nearest - value, tf.zeros_like(value))
    )


def logaddexp(x1: Any, x2: Any, /) -> Array:
    """log(exp(x1) + exp(x2)), with the right derivative also where the two are equal."""
    x1, x2 = _both(x1, x2)
    above = x2 - x1
    return tf.where(above > 0, x2, x1) + tf.math.log1p(tf.exp(tf.where(above > 0, -above, above)))


def clip(x: Array, /, min: Any = None, max: Any = None) -> Array:
    """Replace what is below min or above max."""
    x = x if min is None else maximum(x, min)
    return x if max is None else minimum(x, max)


def where(condition: Array, x1: Any, x2: Any, /) -> Array:
    """Entries of x1 where the condition holds, of x2 elsewhere; one of the two may be a number."""
    return tf.where(condition, *_both(x1, x2))
