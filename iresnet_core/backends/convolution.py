"""Convolution as one matrix product per kernel offset, for frameworks that have no convolution of their own.

It works in any array-API namespace and knows every geometry. Memory stays at the size of the result, unlike the usual
matrix of patches. The functions `conv` and `conv_transpose` write into no array, so that they can be differentiated and
traced; `OffsetConvolution` writes into arrays that it has made itself, which is faster where that is possible.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from iresnet_core.backends.base import Array, Backend

__all__ = ["OffsetConvolution", "conv", "conv_transpose"]

_SAMPLES_AND_CHANNELS = (slice(None), slice(None))


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
    padded = x
    for axis, (before, after) in enumerate(padding, start=2):
        padded = _with_zeros(xp, padded, axis, before, after)
    return _sum_over_offsets(xp, padded, kernel, stride, dilation, groups)


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
    extent = [n + sum(pair) for n, pair in zip(spatial, padding, strict=True)]
    total = None
    for offset, term in _terms_by_offset(xp, y, kernel, groups):
        for axis, (o, d, s, n) in enumerate(zip(offset, dilation, stride, extent, strict=True), start=2):
            term = _spread(xp, term, axis, s)
            term = _with_zeros(xp, term, axis, o * d, n - o * d - term.shape[axis])
        total = term if total is None else total + term
    assert total is not None  # a window has at least one offset
    return total[_inside(spatial, padding)]


class OffsetConvolution(Backend):
    """The convolutions of a backend that has only an array-API namespace, and whose arrays can be written to."""

    def conv(
        self,
        x: Array,
        kernel: Array,
        *,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> Array:
        """Multiply once per kernel offset."""
        extent = [n + sum(pair) for n, pair in zip(x.shape[2:], padding, strict=True)]
        padded = self.xp.zeros((*x.shape[:2], *extent), dtype=x.dtype, device=x.device)
        padded[_inside(x.shape[2:], padding)] = x
        return _sum_over_offsets(self.xp, padded, kernel, stride, dilation, groups)

    def conv_transpose(
        self,
        y: Array,
        kernel: Array,
        *,
        spatial: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> Array:
        """Multiply once per kernel offset."""
        extent = [n + sum(pair) for n, pair in zip(spatial, padding, strict=True)]
        padded = self.xp.zeros((y.shape[0], kernel.shape[1] * groups, *extent), dtype=y.dtype, device=y.device)
        for offset, term in _terms_by_offset(self.xp, y, kernel, groups):
            reached = _reached(offset, y.shape[2:], stride, dilation)
            padded[reached] = padded[reached] + term
        return padded[_inside(spatial, padding)]


def _sum_over_offsets(
    xp: Any, padded: Array, kernel: Array, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Array:
    """Return the cross-correlation of an image that has its padding already."""
    out_channels, group_channels, *window = kernel.shape
    extents = zip(padded.shape[2:], window, stride, dilation, strict=True)
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in extents]
    grouped = _grouped(xp, kernel, groups)
    total = None
    for offset in product(*map(range, window)):
        seen = padded[_reached(offset, out, stride, dilation)]
        patch = xp.reshape(seen, (padded.shape[0], groups, group_channels, math.prod(out)))
        term = xp.matmul(grouped[(slice(None), slice(None), slice(None), *offset)], patch)
        total = term if total is None else total + term
    return xp.reshape(total, (padded.shape[0], out_channels, *out))


def _terms_by_offset(xp: Any, y: Array, kernel: Array, groups: int) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield each kernel offset with what it adds to the adjoint, (batch, in, *out), on the grid of ``y``."""
    batch, out_channels, *out = y.shape
    _, group_channels, *window = kernel.shape
    grouped = _grouped(xp, kernel, groups)
    flat = xp.reshape(y, (batch, groups, out_channels // groups, math.prod(out)))
    for offset in product(*map(range, window)):
        tap = xp.matrix_transpose(grouped[(slice(None), slice(None), slice(None), *offset)])
        yield offset, xp.reshape(xp.matmul(tap, flat), (batch, groups * group_channels, *out))


def _grouped(xp: Any, kernel: Array, groups: int) -> Array:
    """Return the kernel with an axis of groups in front."""
    out_channels, *rest = kernel.shape
    return xp.reshape(kernel, (groups, out_channels // groups, *rest))


def _reached(
    offset: Sequence[int], out: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[slice, ...]:
    """Return the slice of a padded image that one kernel offset multiplies."""
    extents = zip(offset, dilation, stride, out, strict=True)
    return (*_SAMPLES_AND_CHANNELS, *(slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in extents))


def _inside(spatial: Sequence[int], padding: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    """Return the slice of a padded image that is the image."""
    extents = zip(spatial, padding, strict=True)
    return (*_SAMPLES_AND_CHANNELS, *(slice(before, before + n) for n, (before, _) in extents))


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
