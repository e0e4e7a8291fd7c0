"""Convolutions in float64 on the CPU, for which PyTorch has no kernels of its own: it copies patches and multiplies.

A patch has an entry for every channel that goes in and every tap of the window, and is used once for every channel that
comes out. Two measures make that cheap:

- Where few channels come out, the transposed convolution with the kernel turned around gives the same: it copies the
  patches of what comes out.
- The batch is taken in parts whose patches are few enough for memory that is used again. Larger ones are new memory at
  every call, and have no bound. Every thread of PyTorch has a sample, over which it shares the work out.

With PyTorch 2.13 on one core and a window of 3 x 3, both together are twice as fast from 32 to 16 channels on 125
images of 14 x 14, 12 to 17 times from 128 to 3 on 16 of 32 x 32, 18 times from 64 to 1 on 32 of 28 x 28, and 1.8 times
from 64 to 64 on 64 of 32 x 32. The two forms from 64 to 1 are
compared by findings/torch_float64_convolution_to_few_channels.sh.
"""

import math
from collections.abc import Callable, Sequence

import torch

from iresnet_core.backends.base import Array
from iresnet_core.backends.torch.layout import in_plain_layout

__all__ = ["convolution_in_double", "is_double", "kernel_gradient_in_double", "turned_around"]

_FEW = 32  # channels; where more come out, the form with their patches is no faster
_PATCHES = 15 * 2**18  # numbers, 30 MiB: the C library keeps blocks of up to 32 MiB


def turned_around(kernel: Array) -> Array:
    """Return the kernel of the adjoint: channels exchanged, and the taps of the window in reverse order."""
    return kernel.flip(tuple(range(2, kernel.ndim))).transpose(0, 1)


def is_double(x: Array) -> bool:
    """Whether convolutions of `x` are those of this file; a compiler is left alone."""
    return x.dtype == torch.float64 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def convolution_in_double(
    x: Array, kernel: Array, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Array:
    """Return the convolution of `x` with a kernel (out, in / groups, *window)."""
    form = _form(kernel, stride, padding, dilation, groups)
    kernel = in_plain_layout(turned_around(kernel) if form[3] else kernel)

    def of_part(part: Array) -> Array:
        return torch.ops.aten.convolution.default(part, kernel, None, *form)

    parts = _parts(in_plain_layout(x), kernel, form)
    if len(parts) == 1:
        return in_plain_layout(of_part(parts[0]))
    return in_plain_layout(torch.cat([of_part(part) for part in parts]))


def kernel_gradient_in_double(
    x: Array,
    u: Array,
    kernel: Array,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Return the gradient of sum(u * convolution of `x`) with respect to the kernel."""
    form = _form(kernel, stride, padding, dilation, groups)
    turn: Callable[[Array], Array] = turned_around if form[3] else in_plain_layout
    kernel = kernel.new_empty(kernel.transpose(0, 1).shape if form[3] else kernel.shape)  # of which the shape counts
    parts = _parts(in_plain_layout(x), kernel, form)
    of_outputs = in_plain_layout(u).split(max(1, len(parts[0])))
    total = None
    for part, of_output in zip(parts, of_outputs, strict=True):
        of_kernel = torch.ops.aten.convolution_backward.default(
            of_output, part, kernel, None, *form, [False, True, False]
        )[1]
        total = of_kernel if total is None else total + of_kernel
    return in_plain_layout(turn(total))


_Form = tuple[list[int], list[int], list[int], bool, list[int], int]


def _form(kernel: Array, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> _Form:
    """Return what PyTorch's convolution takes, in the form that copies fewer numbers; the fourth entry says which."""
    zero = [0] * len(padding)
    reach = [(k - 1) * d for k, d in zip(kernel.shape[2:], dilation, strict=True)]
    few = kernel.shape[0] <= min(_FEW, kernel.shape[1] // 2) and max(reach) > 0
    if few and groups == 1 and set(stride) == {1} and all(p <= r for p, r in zip(padding, reach, strict=True)):
        return list(stride), [r - p for r, p in zip(reach, padding, strict=True)], list(dilation), True, zero, 1
    return list(stride), list(padding), list(dilation), False, zero, groups


def _parts(x: Array, kernel: Array, form: _Form) -> tuple[Array, ...]:
    """Return the batch in parts of few patches."""
    stride, padding, dilation, transposed, _, _ = form
    channels, window = kernel.shape[1] if transposed else x.shape[1], math.prod(kernel.shape[2:])
    if window == 1 and set(stride) == {1} and not any(padding):
        return (x,)  # of which PyTorch copies nothing
    places = x.shape[2:]
    if not transposed:
        sizes = zip(places, kernel.shape[2:], stride, padding, dilation, strict=True)
        places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    numbers = channels * window * math.prod(places)
    return x.split(max(torch.get_num_threads(), _PATCHES // max(1, numbers)))  # type: ignore[no-any-return]
