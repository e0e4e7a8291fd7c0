"""Convolution as one matrix product per kernel offset without a write into an array, for backends that differentiate.

The same method as `offset_convolution`, in functions that every backend with immutable arrays has. It knows all
geometries, and serves where a framework's own convolution knows only some.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from iresnet_core.backends.base import Array

__all__ = ["conv", "conv_transpose"]


def conv(
    xp: Any,
    x: Array,
    kernel: Array,
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Cross-correlation with zero padding; see `Backend.conv`."""
    batch, _, *spatial = x.shape
    out_channels, group_channels, *window = kernel.shape
    extent = [n + lo + hi for n, (lo, hi) in zip(spatial, padding, strict=True)]
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(extent, window, stride, dilation, strict=True)]
    padded = x
    for axis, (lo, hi) in enumerate(padding, start=2):
        padded = _with_zeros(xp, padded, axis, lo, hi)
    grouped = xp.reshape(kernel, (groups, out_channels // groups, group_channels, *window))
    total = None
    for offset in product(*map(range, window)):
        where = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in zip(offset, dilation, stride, out, strict=True)
        )
        patch = xp.reshape(padded[(slice(None), slice(None), *where)], (batch, groups, group_channels, math.prod(out)))
        term = xp.matmul(grouped[(slice(None), slice(None), slice(None), *offset)], patch)
        total = term if total is None else total + term
    return xp.reshape(total, (batch, out_channels, *out))


def conv_transpose(
    xp: Any,
    y: Array,
    kernel: Array,
    *,
    spatial: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Exact adjoint of `conv`; see `Backend.conv_transpose`."""
    batch, out_channels, *out = y.shape
    _, group_channels, *window = kernel.shape
    extent = [n + lo + hi for n, (lo, hi) in zip(spatial, padding, strict=True)]
    grouped = xp.reshape(kernel, (groups, out_channels // groups, group_channels, *window))
    flat = xp.reshape(y, (batch, groups, out_channels // groups, math.prod(out)))
    total = None
    for offset in product(*map(range, window)):
        tap = xp.matrix_transpose(grouped[(slice(None), slice(None), slice(None), *offset)])
        term = xp.reshape(xp.matmul(tap, flat), (batch, groups * group_channels, *out))
        for axis, (o, d, s, n) in enumerate(zip(offset, dilation, stride, extent, strict=True), start=2):
            term = _spread(xp, term, axis, s)
            term = _with_zeros(xp, term, axis, o * d, n - o * d - term.shape[axis])
        total = term if total is None else total + term
    inner = tuple(slice(lo, lo + n) for n, (lo, _) in zip(spatial, padding, strict=True))
    assert total is not None  # a window has at least one offset
    return total[(slice(None), slice(None), *inner)]


def _zeros(xp: Any, x: Array, axis: int, count: int) -> Array:
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    return xp.zeros(shape, dtype=x.dtype, device=x.device)


def _with_zeros(xp: Any, x: Array, axis: int, before: int, after: int) -> Array:
    """Put zeros at the two ends of an axis."""
    parts = [_zeros(xp, x, axis, before)] if before else []
    parts.append(x)
    if after:
        parts.append(_zeros(xp, x, axis, after))
    return xp.concat(parts, axis=axis) if len(parts) > 1 else x


def _spread(xp: Any, x: Array, axis: int, stride: int) -> Array:
    """Put stride - 1 zeros between neighbours on an axis."""
    if stride == 1:
        return x
    n = x.shape[axis]
    column = xp.expand_dims(x, axis=axis + 1)
    spread = xp.concat([column, _zeros(xp, column, axis + 1, stride - 1)], axis=axis + 1)
    spread = xp.reshape(spread, (*x.shape[:axis], n * stride, *x.shape[axis + 1 :]))
    return spread[(*(slice(None),) * axis, slice(0, (n - 1) * stride + 1))]
