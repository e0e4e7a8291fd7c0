"""Convolutions of the backend by those of PyTorch, in the layout and the form that are fast."""

from collections.abc import Sequence
from typing import Any

import torch

from iresnet_core.backends.base import Array
from iresnet_core.backends.torch.double_convolution import (
    convolution_in_double,
    is_double,
    kernel_gradient_in_double,
    turned_around,
)
from iresnet_core.backends.torch.layout import evenly_padded, in_plain_layout, layout_for, transposed_in_plain_layout
from iresnet_core.backends.torch.precision import own_dtype

__all__ = ["conv", "conv_kernel_gradient", "conv_transpose"]

_CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


def conv(
    x: Array,
    kernel: Array,
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Call PyTorch's convolution in the layout that is fast; uneven padding is put on beforehand."""
    x, even = evenly_padded(x, padding)
    if is_double(x):
        return convolution_in_double(x, kernel, stride, even, dilation, groups)
    convolution = _CONVOLUTIONS[len(padding)]
    layout = layout_for(x, stride, groups)
    x, kernel = layout(x), layout(kernel)
    with own_dtype(x):
        y = convolution(x, kernel, None, tuple(stride), tuple(even), tuple(dilation), groups)
    return layout(y)


def conv_transpose(
    y: Array,
    kernel: Array,
    *,
    spatial: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Without strides and groups, call the convolution with the kernel turned around, whose kernels are faster."""
    reach = [(k - 1) * d for k, d in zip(kernel.shape[2:], dilation, strict=True)]
    if groups == 1 and set(stride) == {1} and all(max(p) <= r for p, r in zip(padding, reach, strict=True)):
        rest = [(r - before, r - after) for (before, after), r in zip(padding, reach, strict=True)]
        return conv(y, turned_around(kernel), stride=stride, padding=rest, dilation=dilation, groups=1)
    return transposed_in_plain_layout(y, kernel, spatial, stride, padding, dilation, groups)


def conv_kernel_gradient(x: Array, u: Array, kernel: Array, **geometry: Any) -> Array:
    """Call PyTorch's backward pass for the kernel alone."""
    stride, dilation, groups = (geometry[name] for name in ("stride", "dilation", "groups"))
    x, even = evenly_padded(x, geometry["padding"])
    if is_double(x):
        return kernel_gradient_in_double(x, u, kernel, stride, even, dilation, groups)
    layout = layout_for(x, stride, groups)
    x, u, kernel = layout(x), layout(u), layout(kernel)
    with own_dtype(x):
        of_kernel: Array = torch.ops.aten.convolution_backward.default(
            *(u, x, kernel, None, list(stride), even, list(dilation)),
            *(False, [0] * len(even), groups, [False, True, False]),
        )[1]
    return in_plain_layout(of_kernel)
