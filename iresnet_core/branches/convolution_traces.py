"""Traces of the Jacobians of convolutional chains, at about the cost of their middle convolution.

Let J = K3 D2 K2 D1 K1 with convolutions that keep the extent and slopes D1, D2 at every position and channel. A tap at
the offset o carries position p + o to p, so that a closed path takes offsets with o1 + o2 + o3 = 0:

    tr J = sum over q, o1, o2 of D2[q - o2]^T (K2[o2] * (K1[o1] K3[-o1 - o2])^T) D1[q],

with the entrywise product *. With zero padding only those count for which q + o1 and q - o2 lie inside the image. The
set of admissible o1 is the same in the interior and along each border, so that the sum over o1 is a kernel for each of
at most w^axes boxes of positions q, w the window of K1, and the sum over o2 a convolution of D2, evaluated there.
"""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.operators import Convolution, LinearLayer, wrapped

__all__ = ["ConvolutionPlan", "convolution_kernels", "convolution_plan", "convolution_trace"]

Offset = tuple[int, ...]
Box = tuple[tuple[int, int], ...]


class ConvolutionPlan(NamedTuple):
    """Places of K1, K2, K3 (None: the identity, where the chain begins or ends with an activation) and of D1, D2.

    With one group of slopes K2 is None as well, and so is D2.
    """

    first: int | None
    middle: int | None
    last: int | None
    inner: tuple[int, ...]
    outer: tuple[int, ...] | None


def convolution_plan(layers: Sequence[Any]) -> ConvolutionPlan | None:
    """Where the factors stand; None if the trace is not cheap in this way."""
    places: list[int | None] = []
    groups: list[tuple[int, ...]] = []
    gap: list[int] = []
    for place, layer in enumerate(layers):
        if not isinstance(layer, LinearLayer):
            if not layer.entrywise:
                return None
            if not layer.has_unit_slope:
                gap.append(place)
            continue
        if not _is_plain(layer):
            return None
        if gap or places:
            if not gap:
                return None  # two convolutions in a row are no convolution of the image's extent
            if not places:
                places.append(None)
            groups.append(tuple(gap))
            gap = []
        places.append(place)
    if gap:
        groups.append(tuple(gap))
        places.append(None)
    if places[0] is None and places[-1] is None:  # a trace is cyclic: the slopes at the two ends meet
        groups = [groups[0] + groups[-1], *groups[1:-1]]
        places.pop()
    convolutions = [layers[place] for place in places if place is not None]
    alike = {(layer.padding_mode, layer.data_format, layer.spatial) for layer in convolutions}
    if len(alike) != 1 or len(groups) not in (1, 2) or len(places) != len(groups) + 1:
        return None
    if places[0] is None and places[-1] is None:
        return None
    if len(groups) == 1:
        return ConvolutionPlan(places[0], None, places[1], groups[0], None)
    return ConvolutionPlan(places[0], places[1], places[2], groups[0], groups[1])


def _is_plain(layer: Any) -> bool:
    return (
        isinstance(layer, Convolution)
        and layer.groups == 1
        and set(layer.stride) == {1}
        and layer.out_spatial == layer.spatial
    )


class Kernels(NamedTuple):
    """What the slopes are multiplied by: for every box of positions a kernel (h1, h2, *window), or a vector (h1,)."""

    boxes: tuple[Box, ...]
    kernels: tuple[Array, ...]


def convolution_kernels(backend: Backend, layers: Sequence[Any], plan: ConvolutionPlan) -> Kernels:
    """The kernels of the trace: functions of the weights alone."""
    xp = backend.xp
    known = next(layers[place] for place in (plan.first, plan.middle, plan.last) if place is not None)
    spatial, circular = known.spatial, known.padding_mode == "circular"
    first = _taps(layers, plan.first, len(spatial))
    last = _taps(layers, plan.last, len(spatial))
    middle: dict[Offset, Array | None] = {(0,) * len(spatial): None}
    if plan.middle is not None:
        middle = _taps(layers, plan.middle, len(spatial))
    products: dict[tuple[Offset, Offset], Array | None] = {}

    def closed(o1: Offset, o2: Offset) -> list[Any]:
        """K1[o1] K3[o3] for all o3 that close the path; around a small torus there may be several."""
        found = []
        for o3 in last:
            total = tuple(sum(part) for part in zip(o1, o2, o3, strict=True))
            if circular:
                total = tuple(t % n for t, n in zip(total, spatial, strict=True))
            if any(total):
                continue
            if (o1, o3) not in products:
                products[o1, o3] = _matmul(xp, first[o1], last[o3])
            found.append(products[o1, o3])  # never the identity: the chain has a convolution at one of its ends
        return found

    boxes = [tuple((0, n) for n in spatial)] if circular else _boxes(list(first), spatial)
    kernels = []
    for box in boxes:
        admitted = list(first) if circular else [o1 for o1 in first if _inside(box, o1, spatial)]
        taps = []
        for o2, weight in middle.items():
            total: Any = 0.0
            for o1 in admitted:
                for term in closed(o1, o2):
                    total = total + term
            taps.append(_tap(xp, known.weight, _width(layers, plan), total, weight))
        kernels.append(taps[0] if plan.middle is None else _assembled(xp, taps, layers[plan.middle]))
    return Kernels(tuple(boxes), tuple(kernels))


def _width(layers: Sequence[Any], plan: ConvolutionPlan) -> int:
    """Channels of D1."""
    if plan.first is not None:
        return int(layers[plan.first].out_channels)
    following = plan.last if plan.middle is None else plan.middle
    assert following is not None
    return int(layers[following].channels)


def _taps(layers: Sequence[Any], place: int | None, axes: int) -> dict[Offset, Array | None]:
    """Offset -> matrix (out, in) of a convolution; one tap without matrix for the identity."""
    if place is None:
        return {(0,) * axes: None}
    layer = layers[place]
    kernel = layer.standard_kernel
    taps = {}
    for at in product(*map(range, layer.window)):
        offset = tuple(k * d - before for k, d, (before, _) in zip(at, layer.dilation, layer.padding, strict=True))
        taps[offset] = kernel[(slice(None), slice(None), *at)]
    return taps


def _matmul(xp: Any, left: Array | None, right: Array | None) -> Array | None:
    """Product of taps, None for the identity."""
    if left is None or right is None:
        return right if left is None else left
    return xp.matmul(left, right)


def _tap(xp: Any, like: Array, width: int, total: Any, weight: Array | None) -> Array:
    """K2[o2]^T * (K1 K3) (h1, h2); with one group its diagonal (h1,). `total` is a sum of products, 0.0 if empty."""
    if weight is None:
        if isinstance(total, float):
            return xp.zeros((width,), dtype=like.dtype, device=device_of(like))
        return xp.linalg.diagonal(total)
    transposed = xp.matrix_transpose(weight)
    return 0.0 * transposed if isinstance(total, float) else transposed * total


def _assembled(xp: Any, taps: list[Array], layer: Convolution) -> Array:
    """Taps (h1, h2), in the order of the window, as a kernel (h1, h2, *window) that is turned around."""
    stacked = xp.stack(taps[::-1], axis=-1)
    return xp.reshape(stacked, (*stacked.shape[:2], *layer.window))


def _boxes(offsets: list[Offset], spatial: tuple[int, ...]) -> list[Box]:
    """Split the image into boxes; for each offset o, q + o is inside the image for all q of a box or for none."""
    sides = []
    for axis, n in enumerate(spatial):
        shifts = {offset[axis] for offset in offsets}
        edges = {0, n, *(-o for o in shifts), *(n - o for o in shifts)}
        cuts = sorted(edge for edge in edges if 0 <= edge <= n)
        sides.append(list(pairwise(cuts)))
    return list(product(*sides))


def _inside(box: Box, offset: Offset, spatial: tuple[int, ...]) -> bool:
    return all(0 <= begin + o < n for (begin, _), o, n in zip(box, offset, spatial, strict=True))


def convolution_trace(
    backend: Backend,
    layers: Sequence[Any],
    plan: ConvolutionPlan,
    kernels: Kernels,
    inner: Array,
    outer: Array | None,
) -> Array:
    """Return tr J (batch,) for slopes D1 and D2, given as (batch, channels, *spatial)."""
    xp = backend.xp
    axes = inner.ndim - 2
    total: Any = 0.0
    middle = None if plan.middle is None else layers[plan.middle]
    padded = None if outer is None else _extended(xp, middle, outer)
    for box, kernel in zip(kernels.boxes, kernels.kernels, strict=True):
        here = inner[(slice(None), slice(None), *(slice(a, b) for a, b in box))]
        if padded is None or middle is None:
            image = xp.reshape(kernel, (kernel.shape[0], *(1,) * axes))
        else:
            sides = (slice(a, b + r) for (a, b), r in zip(box, middle.reach, strict=True))
            slab = padded[(slice(None), slice(None), *sides)]
            image = backend.conv(
                slab, kernel, stride=(1,) * axes, padding=((0, 0),) * axes, dilation=middle.dilation, groups=1
            )
        total = total + xp.sum(xp.reshape(here * image, (inner.shape[0], math.prod(here.shape[1:]))), axis=-1)
    return total


def _extended(xp: Any, layer: Any, x: Array) -> Array:
    """Pad D2 so that position q - o2 is there for every q: by as much as K2 looks back, with zeros or around."""
    for axis, (before, after) in enumerate(layer.padding, start=2):
        if layer.padding_mode == "circular":
            x = wrapped(xp, x, axis, after, before)
            continue
        sides = [
            xp.zeros((*x.shape[:axis], width, *x.shape[axis + 1 :]), dtype=x.dtype, device=device_of(x))
            for width in (after, before)
        ]
        x = xp.concat([sides[0], x, sides[1]], axis=axis)
    return x
