"""Convolutions with a window of one tap: one matrix per group, the same at every pixel.

Their norm is that of the largest matrix, whatever the size of the images, the padding and the stride, as long as one
pixel is kept; the singular vectors of that matrix, put at one pixel, are theirs.
"""

import math
from typing import Any

from iresnet_core.backends import Array, device_of
from iresnet_core.operators import Convolution, LinearOperator, Matrices
from iresnet_core.results import SpectralNorm

__all__ = ["GroupMatrices", "at_one_pixel", "simplified", "spread_over_image"]


class GroupMatrices(Matrices):
    """The matrices (groups, out / groups, in / groups) of a convolution with one tap."""


def simplified(operator: LinearOperator) -> LinearOperator:
    """Return the matrices of a convolution with one tap that keeps a pixel; any other operator is returned itself."""
    if not isinstance(operator, Convolution) or math.prod(operator.window) != 1 or _kept_pixel(operator) is None:
        return operator
    shape = (operator.groups, operator.out_channels // operator.groups, operator.channels // operator.groups)
    return GroupMatrices(operator.backend.xp.reshape(operator.standard_kernel, shape), checked=True)


def _kept_pixel(layer: Convolution) -> tuple[int, int] | None:
    """Return the numbers of a pixel of the output and of the one of the input that it sees; None if all see padding."""
    before, after = 0, 0
    for axis, (n, out) in enumerate(zip(layer.spatial, layer.out_spatial, strict=True)):
        stride, padding = layer.stride[axis], layer.padding[axis][0]
        place = -(-padding // stride)
        seen = stride * place - padding
        if seen >= n:
            return None
        before, after = before * n + seen, after * out + place
    return after, before


def at_one_pixel(layer: Convolution, left: Array) -> Array:
    """Return what a left vector (m,) holds at the pixel where it is longest, as vectors (groups, out / groups)."""
    xp = layer.backend.xp
    rows = xp.reshape(left, (-1, layer.out_channels))
    if layer.data_format == "channels_first":
        rows = xp.matrix_transpose(xp.reshape(left, (layer.out_channels, -1)))
    longest = xp.argsort(xp.sum(xp.abs(rows), axis=-1), descending=True)[:1]
    return xp.reshape(xp.take(rows, longest, axis=0), (layer.groups, -1))


def spread_over_image(layer: Convolution, found: SpectralNorm, rtol: float) -> SpectralNorm:
    """Return the estimate of a convolution with one tap from those of its matrices: the largest, at one pixel.

    Its iterations and its residual are the largest of all, for the norm may be that of any of them.
    """
    xp = layer.backend.xp
    top = xp.argsort(found.value, descending=True)[:1]
    value, residual = xp.take(found.value, top, axis=0)[0], xp.max(found.residual)
    after, before = _kept_pixel(layer) or (0, 0)
    return SpectralNorm(
        value,
        _placed(layer, found.left, top, after, math.prod(layer.out_spatial)),
        _placed(layer, found.right, top, before, math.prod(layer.spatial)),
        xp.max(found.iterations),
        xp.all(found.converged) | (residual <= rtol * value),
        residual,
    )


def _placed(layer: Convolution, vectors: Array, top: Array, pixel: int, pixels: int) -> Array:
    """Return a vector of images (channels * pixels,) with the vector (k,) of the top group at one pixel."""
    xp, groups = layer.backend.xp, layer.groups

    def only(place: Any, count: int) -> Array:
        chosen = xp.arange(count, dtype=top.dtype, device=device_of(top)) == place
        return xp.astype(chosen, vectors.dtype)

    channels = xp.reshape(vectors * only(top, groups)[:, None], (-1,))
    there = only(pixel, pixels)
    if layer.data_format == "channels_first":
        return xp.reshape(channels[:, None] * there[None, :], (-1,))
    return xp.reshape(there[:, None] * channels[None, :], (-1,))
