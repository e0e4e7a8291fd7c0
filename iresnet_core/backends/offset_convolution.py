"""Convolution as one matrix product per kernel offset, for backends that have no convolution of their own.

Works in any array-API namespace; memory stays at the size of the result, unlike the usual patch matrix.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from iresnet_core.backends.base import Array, Backend

__all__ = ["OffsetConvolution", "conv", "conv_transpose"]


def _windows(
    window: Sequence[int], out: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Each kernel offset with the strided slice of the padded input that it multiplies."""
    for offset in product(*map(range, window)):
        yield (
            offset,
            tuple(
                slice(o * d, o * d + (n - 1) * s + 1, s)
                for o, d, s, n in zip(offset, dilation, stride, out, strict=True)
            ),
        )


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
    batch, channels, *spatial = x.shape
    out_channels, _, *window = kernel.shape
    padded_extent = [n + sum(p) for n, p in zip(spatial, padding, strict=True)]
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(padded_extent, window, stride, dilation, strict=True)]
    padded = xp.zeros((batch, channels, *padded_extent), dtype=x.dtype, device=x.device)
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(padding, spatial, strict=True))
    padded[(slice(None), slice(None), *inner)] = x
    pixels = math.prod(out)
    total = xp.zeros((batch, groups, out_channels // groups, pixels), dtype=x.dtype, device=x.device)
    grouped = xp.reshape(kernel, (groups, out_channels // groups, channels // groups, *window))
    everything = (slice(None),) * 2
    for offset, window_slice in _windows(window, out, stride, dilation):
        patch = xp.reshape(padded[(*everything, *window_slice)], (batch, groups, channels // groups, pixels))
        total = total + xp.matmul(grouped[(slice(None), slice(None), slice(None), *offset)], patch)
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
    channels = group_channels * groups
    padded_extent = [n + sum(p) for n, p in zip(spatial, padding, strict=True)]
    padded = xp.zeros((batch, channels, *padded_extent), dtype=y.dtype, device=y.device)
    grouped = xp.reshape(kernel, (groups, out_channels // groups, group_channels, *window))
    flat = xp.reshape(y, (batch, groups, out_channels // groups, math.prod(out)))
    everything = (slice(None),) * 2
    for offset, window_slice in _windows(window, out, stride, dilation):
        tap = xp.matrix_transpose(grouped[(slice(None), slice(None), slice(None), *offset)])
        where = (*everything, *window_slice)
        padded[where] = padded[where] + xp.reshape(xp.matmul(tap, flat), (batch, channels, *out))
    return padded[(*everything, *(slice(lo, lo + n) for (lo, _), n in zip(padding, spatial, strict=True)))]


class OffsetConvolution(Backend):
    """The convolutions of a backend that has only an array-API namespace."""

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
        """One matrix product per kernel offset."""
        return conv(self.xp, x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)

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
        """One matrix product per kernel offset."""
        return conv_transpose(
            self.xp, y, kernel, spatial=spatial, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
