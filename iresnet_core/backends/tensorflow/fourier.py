"""Fourier transforms of the array API standard (its extension ``fft``) along one axis, from TensorFlow's own."""

import math
from typing import Any, Literal

import tensorflow as tf

__all__ = ["fft", "ifft", "irfft", "rfft"]

Array = Any
Norm = Literal["backward", "ortho", "forward"]


def _last(x: Array, axis: int) -> Array:
    """Exchange an axis and the last one."""
    order = list(range(len(x.shape)))
    order[axis], order[-1] = order[-1], order[axis]
    return tf.transpose(x, order)


def _resized(x: Array, n: int) -> Array:
    """Cut the last axis to n entries, or fill it up with zeros."""
    lacking = n - x.shape[-1]
    if lacking <= 0:
        return x[..., :n]
    return tf.pad(x, [(0, 0)] * (len(x.shape) - 1) + [(0, lacking)])


def _scale(n: int, norm: Norm, inverse: bool) -> float:
    """Factor beyond TensorFlow's own norm, which is "backward"."""
    factor = {"backward": 1.0, "ortho": 1 / math.sqrt(n), "forward": 1.0 / n}[norm]
    return 1 / factor if inverse else factor


def _transform(function: Any, x: Array, n: int, entries: int, axis: int, norm: Norm, inverse: bool) -> Array:
    image = function(_resized(_last(x, axis), entries))
    return _last(image * tf.constant(_scale(n, norm, inverse), image.dtype), axis)


def fft(x: Array, /, *, n: int | None = None, axis: int = -1, norm: Norm = "backward") -> Array:
    """Discrete Fourier transform of complex arrays."""
    n = n or x.shape[axis]
    return _transform(tf.signal.fft, x, n, n, axis, norm, inverse=False)


def ifft(x: Array, /, *, n: int | None = None, axis: int = -1, norm: Norm = "backward") -> Array:
    """Inverse of `fft`."""
    n = n or x.shape[axis]
    return _transform(tf.signal.ifft, x, n, n, axis, norm, inverse=True)


def rfft(x: Array, /, *, n: int | None = None, axis: int = -1, norm: Norm = "backward") -> Array:
    """Discrete Fourier transform of real arrays: the n // 2 + 1 frequencies that are not negative."""
    n = n or x.shape[axis]
    return _transform(tf.signal.rfft, x, n, n, axis, norm, inverse=False)


def irfft(x: Array, /, *, n: int | None = None, axis: int = -1, norm: Norm = "backward") -> Array:
    """Inverse of `rfft`, of n real entries; default 2 (frequencies - 1)."""
    n = n or 2 * (x.shape[axis] - 1)
    return _transform(lambda spectrum: tf.signal.irfft(spectrum, (n,)), x, n, n // 2 + 1, axis, norm, inverse=True)
