"""Layout and padding of the tensors that go into PyTorch's convolutions."""

from collections.abc import Callable, Sequence

import torch

from iresnet_core.backends.base import Array
from iresnet_core.backends.torch.precision import own_dtype

__all__ = ["evenly_padded", "in_plain_layout", "layout_for", "transposed_in_plain_layout"]


def in_plain_layout(x: Array) -> Array:
    """Return `x` with the strides of a new tensor of its shape; on the CPU, and copied only where it is not in order.

    The convolutions of PyTorch 2.13 on the CPU return wrong numbers for some tensors whose layout can be read in two
    ways, such as channels last with one channel per group. ``contiguous()`` leaves the strides of axes of length 1 as
    they are; going through one axis sets them. The backward pass brings the cotangent through the same two steps, so
    that a result in plain layout has a cotangent in plain layout.
    """
    return x.reshape(-1).reshape(x.shape) if x.device.type == "cpu" else x


def in_channels_last(x: Array) -> Array:
    """Return images `x` (batch, channels, height, width) with the channels of a position side by side in memory.

    As in `in_plain_layout` going through one axis sets the strides, of the cotangent too.
    """
    y = x.permute(0, 2, 3, 1)
    return y.reshape(-1).reshape(y.shape).permute(0, 3, 1, 2)


def layout_for(x: Array, stride: Sequence[int], groups: int) -> Callable[[Array], Array]:
    """Return the function that brings images and kernel of a convolution into the layout that is fast.

    Channels last is up to eight times as fast where a side has few channels (on the CPU of the benchmarks, with PyTorch
    2.13), and never slower. With strides and in groups it is where PyTorch's kernels are wrong at times; other dtypes
    have other kernels, and a compiler chooses by itself.
    """
    fast = x.ndim == 4 and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    return in_channels_last if fast and groups == 1 and set(stride) == {1} else in_plain_layout


def evenly_padded(x: Array, padding: Sequence[tuple[int, int]]) -> tuple[Array, list[int]]:
    """Put on what one side of an axis has more than the other, and return the rest of the padding."""
    even = [min(pair) for pair in padding]
    extra = [side - least for pair, least in zip(padding, even, strict=True) for side in pair]
    if any(extra):
        # `pad` counts the axes from the last one.
        pairs = [tuple(extra[i : i + 2]) for i in range(0, len(extra), 2)]
        x = torch.nn.functional.pad(x, [side for pair in reversed(pairs) for side in pair])
    return x, even


def transposed_in_plain_layout(
    y: Array,
    kernel: Array,
    spatial: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Call PyTorch's transposed convolution in plain layout on the padded extent, and keep the inside."""
    padded = [n + sum(pair) for n, pair in zip(spatial, padding, strict=True)]
    # Rows that the strided window never reached are outputs all the same.
    missed = [
        n - ((out - 1) * s + d * (k - 1) + 1)
        for n, out, s, d, k in zip(padded, y.shape[2:], stride, dilation, kernel.shape[2:], strict=True)
    ]
    y, kernel = in_plain_layout(y), in_plain_layout(kernel)
    with own_dtype(y):
        full = torch.ops.aten.convolution.default(
            y,
            kernel,
            None,
            list(stride),
            [0] * len(padded),
            list(dilation),
            True,
            [min(m, max(s, d) - 1) for m, s, d in zip(missed, stride, dilation, strict=True)],
            groups,
        )
    full = in_plain_layout(full)
    for axis, (n, (before, _)) in enumerate(zip(spatial, padding, strict=True), start=2):
        lacking = before + n - full.shape[axis]
        if lacking > 0:
            pad = [0, 0] * (full.ndim - 1 - axis) + [0, lacking]
            full = torch.nn.functional.pad(full, pad)
        full = full.narrow(axis, before, n)
    return full
