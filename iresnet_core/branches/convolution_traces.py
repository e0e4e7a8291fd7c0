"""Traces of the Jacobians of convolutional chains, at about the cost of their middle convolution.

Let J = K3 D2 K2 D1 K1 with convolutions that keep the extent and slopes D1, D2 at every position and channel. A tap at
the offset o carries position p + o to p, so that a closed path takes offsets with o1 + o2 + o3 = 0:

    tr J = sum over q, o1, o2 of D2[q - o2]^T (K2[o2] * (K1[o1] K3[-o1 - o2])^T) D1[q],

with the entrywise product *. With zero padding only those count for which q + o1 and q - o2 lie inside the image. The
set of admissible o1 is the same in the interior and along each border, so that the sum over o1 is a kernel for each of
at most w^axes boxes of positions q, w the window of K1, and the sum over o2 a convolution of D2, evaluated there.
"""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.operators import Convolution, LinearLayer, wrapped

__all__ = [
    "ConvolutionPlan",
    "Cycle",
    "Factors",
    "Kernels",
    "convolution_cycle",
    "convolution_kernels",
    "convolution_plan",
    "convolution_taps",
    "convolution_trace",
]

Offset = tuple[int, ...]
Box = tuple[tuple[int, int], ...]
# Offsets of the taps of K1, K2 and K3, the extent, and whether the padding is circular.
Geometry = tuple[tuple[Offset, ...], tuple[Offset, ...], tuple[Offset, ...], tuple[int, ...], bool]


class ConvolutionPlan(NamedTuple):
    """Places of K1, K2, K3 (None: the identity, where the chain begins or ends with an activation) and of D1, D2.

    With one group of slopes K2 is None as well, and so is D2.
    """

    first: int | None
    middle: int | None
    last: int | None
    inner: tuple[int, ...]
    outer: tuple[int, ...] | None


class Cycle(NamedTuple):
    """A chain as a trace sees it, which is cyclic: places of the convolutions, and groups of slopes between them.

    None stands for the identity, where the chain begins or ends with an activation; if it does both, the slopes at its
    ends are one group, the first.
    """

    places: tuple[int | None, ...]
    groups: tuple[tuple[int, ...], ...]


def convolution_cycle(layers: Sequence[Any]) -> Cycle | None:
    """Where the factors stand; None if they are not convolutions of one extent with entrywise slopes between them."""
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
    return Cycle(tuple(places), tuple(groups)) if len(alike) == 1 else None


def convolution_plan(layers: Sequence[Any]) -> ConvolutionPlan | None:
    """Where the factors stand; None if the trace is not cheap in this way."""
    cycle = convolution_cycle(layers)
    if cycle is None:
        return None
    places, groups = cycle
    if len(groups) not in (1, 2) or len(places) != len(groups) + 1 or (places[0] is None and places[-1] is None):
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


class Factors(NamedTuple):
    """The convolutions K1, K2, K3; None for the identity, and for the K2 of a chain with one group of slopes."""

    first: Convolution | None
    middle: Convolution | None
    last: Convolution | None

    @classmethod
    def of_plan(cls, layers: Sequence[Any], plan: ConvolutionPlan) -> "Factors":
        """The layers at the places of a plan."""
        return cls(*(None if place is None else layers[place] for place in plan[:3]))


class Kernels(NamedTuple):
    """What the slopes are multiplied by: for every box of positions a kernel (h1, h2, *window), or a vector (h1,).

    Where K2 has one tap it is a matrix (h2, h1), as K2 itself is: of 256 channels, turned ones take twice as long.
    """

    boxes: tuple[Box, ...]
    kernels: Array


def convolution_kernels(backend: Backend, factors: Factors, means: Array | None = None) -> Kernels:
    """The kernels of the trace: functions of the weights alone.

    With slopes `means` (channels,) on the way into K1, the same at all positions, it is the trace of K3 D2 K2 D1 K1
    times these.
    """
    xp = backend.xp
    known = next(layer for layer in factors if layer is not None)
    (first, before), (between, weight), (last, behind) = (_taps(layer, len(known.spatial)) for layer in factors)
    if means is not None and before is not None:
        before = before * means
    geometry = (first, between, last, known.spatial, known.padding_mode == "circular")
    boxes, rows, columns, _ = backend.host_constant(_paths, geometry)
    one_tap = weight is not None and len(between) == 1
    products = _products(backend, before, rows, behind, columns, turned=one_tap)
    flat = xp.reshape(products, (len(rows), -1))
    counts = xp.astype(backend.constant_array(_counts, geometry, like=flat), flat.dtype)
    sums = xp.reshape(xp.matmul(counts, flat), (len(boxes), len(between), *products.shape[1:]))
    if weight is None or factors.middle is None:
        return Kernels(boxes, xp.linalg.diagonal(sums[:, 0, ...]))
    if one_tap:
        return Kernels(boxes, sums[:, 0, ...] * weight[0, ...])
    kernels = xp.moveaxis(sums * xp.matrix_transpose(weight), 1, -1)
    kernels = xp.reshape(xp.flip(kernels, axis=-1), (*kernels.shape[:-1], *factors.middle.window))
    return Kernels(boxes, kernels)


@functools.lru_cache(maxsize=1024)
def _closed_paths(geometry: Geometry) -> tuple[tuple[Box, ...], list[int], list[int], np.ndarray]:
    """Boxes of positions, and the numbers of the taps of K1 and of K3 whose products K1[o1] K3[o3] paths are made of.

    The array (boxes, taps of K2, products) counts the closed paths that take a tap of K2 and that product and stay
    inside. Around a small torus there may be several o3 for each o1 and o2.
    """
    first, between, last, spatial, circular = geometry
    boxes = [tuple((0, n) for n in spatial)] if circular else _boxes(first, spatial)
    numbers: dict[tuple[int, int], int] = {}
    paths = []
    for (i, o1), (j, o2), (k, o3) in product(enumerate(first), enumerate(between), enumerate(last)):
        total = [sum(part) for part in zip(o1, o2, o3, strict=True)]
        if circular:
            total = [t % n for t, n in zip(total, spatial, strict=True)]
        if not any(total):
            paths.append((i, j, numbers.setdefault((i, k), len(numbers))))
    counts = np.zeros((len(boxes), len(between), len(numbers)))
    for b, box in enumerate(boxes):
        for i, j, number in paths:
            counts[b, j, number] += circular or _inside(box, first[i], spatial)
    if not numbers:  # no path is closed; a product that counts for nothing stands for that
        numbers[0, 0], counts = 0, np.zeros((len(boxes), len(between), 1))
    rows, columns = ([pair[side] for pair in numbers] for side in (0, 1))
    return tuple(boxes), rows, columns, counts


def _paths(geometry: Geometry) -> Any:
    """The same; a compiler takes a function that keeps its answers for a variable."""
    return _closed_paths(geometry)


def _counts(geometry: Geometry) -> np.ndarray:
    counts = _closed_paths(geometry)[3]
    return counts.reshape(-1, counts.shape[-1])


def _products(
    backend: Backend, before: Array | None, rows: list[int], behind: Array | None, columns: list[int], *, turned: bool
) -> Array:
    """K1[o1] K3[o3] for pairs of numbers of taps, where None stands for the identity: (pairs, h1, h2) or turned."""
    xp = backend.xp

    def chosen(stack: Array, numbers: list[int]) -> Array:
        matrices = xp.unstack(stack)  # whose derivative is a stack again, while each index would make one of zeros
        return xp.stack([matrices[n] for n in numbers])

    if turned:
        behind, before = (None if K is None else xp.matrix_transpose(K) for K in (before, behind))
        rows, columns = columns, rows
    if before is None or behind is None:
        return chosen(behind, columns) if before is None else chosen(before, rows)
    return xp.matmul(chosen(before, rows), chosen(behind, columns))


def _taps(layer: Convolution | None, axes: int) -> tuple[tuple[Offset, ...], Array | None]:
    """As `convolution_taps`; one tap and None for the identity."""
    return (((0,) * axes,), None) if layer is None else convolution_taps(layer)


def convolution_taps(layer: Convolution) -> tuple[tuple[Offset, ...], Array]:
    """Offsets of the taps of a convolution and their matrices (taps, out, in)."""
    offsets = tuple(
        tuple(k * d - before for k, d, (before, _) in zip(at, layer.dilation, layer.padding, strict=True))
        for at in product(*map(range, layer.window))
    )
    kernel, xp = layer.standard_kernel, layer.backend.xp
    return offsets, xp.moveaxis(xp.reshape(kernel, (*kernel.shape[:2], len(offsets))), -1, 0)


def _boxes(offsets: Sequence[Offset], spatial: tuple[int, ...]) -> list[Box]:
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
    backend: Backend, middle: Convolution | None, kernels: Kernels, inner: Array, outer: Array | None
) -> Array:
    """Return tr J (batch,) for slopes D1 and D2, given as (batch, channels, *spatial), and the K2 between them."""
    xp = backend.xp
    axes = inner.ndim - 2
    if outer is not None and middle is not None and math.prod(middle.window) == 1:
        # With the channels last its products are those of matrices.
        last = [xp.moveaxis(slopes, 1, -1) for slopes in (inner, outer)]
        return _trace_by_matrices(backend, kernels.boxes, (*last, kernels.kernels))
    matrices = xp.unstack(kernels.kernels)
    padded = None if outer is None or middle is None else _extended(xp, middle, outer)
    products = []
    for box, here, kernel in zip(kernels.boxes, _parts(backend, inner, kernels.boxes, 2), matrices, strict=True):
        if padded is None or middle is None:
            image = xp.reshape(kernel, (kernel.shape[0], *(1,) * axes))
        else:
            sides = (slice(a, b + r) for (a, b), r in zip(box, middle.reach, strict=True))
            slab = padded[(slice(None), slice(None), *sides)]
            image = backend.conv(
                slab, kernel, stride=(1,) * axes, padding=((0, 0),) * axes, dilation=middle.dilation, groups=1
            )
        products.append(here * image)
    return _summed(xp, products)


def _trace_by_matrices(backend: Backend, boxes: Sequence[Box], arrays: tuple[Array, Array, Array]) -> Array:
    """Return the sum over boxes of D1 * (D2 K), per sample, for slopes (batch, *spatial, channels) and matrices K.

    Of a trace that is differentiated the slopes alone are kept, not their parts and products.
    """
    xp = backend.xp

    def split(inner: Array, outer: Array, kernels: Array) -> list[tuple[Array, Array, Array]]:
        parts = [_parts(backend, slopes, boxes, 1) for slopes in (inner, outer)]
        return list(zip(*parts, xp.unstack(kernels), strict=True))

    def value(*arrays: Array) -> Array:
        return _summed(xp, [D1 * backend.rows_times(D2, K) for D1, D2, K in split(*arrays)])

    def backward(arrays: Any, kept: Any, cotangents: Sequence[Array], needed: Sequence[bool]) -> list[Array]:
        inner, outer, kernels = arrays
        scale = xp.reshape(cotangents[0], (-1, *(1,) * (inner.ndim - 1)))
        of_inner, of_outer, of_kernels = [], [], []
        for D1, D2, K in split(scale * inner, outer, kernels):
            of_inner.append(backend.rows_times(D2, K))
            of_outer.append(backend.rows_times(D1, xp.matrix_transpose(K)))
            rows = (xp.reshape(part, (-1, part.shape[-1])) for part in (D2, D1))
            of_kernels.append(xp.matmul(xp.matrix_transpose(next(rows)), next(rows)))
        of_inner, of_outer = (_joined(xp, parts, boxes, 1) for parts in (of_inner, of_outer))
        return [scale * of_inner, of_outer, xp.stack(of_kernels)]

    if not backend.takes_derivatives_by_hand(*arrays):
        return value(*arrays)
    return backend.with_derivative_by_hand(
        lambda *arrays: ((value(*arrays),), ()), backward, lambda arrays, kept: (value(*arrays),), arrays
    )[0]


def _joined(xp: Any, parts: Sequence[Array], boxes: Sequence[Box], axis: int) -> Array:
    """Return the array whose `_parts` they are."""
    for side, cuts in reversed(list(enumerate(zip(*boxes, strict=True)))):
        count = len(set(cuts))
        parts = [xp.concat(parts[i : i + count], axis=axis + side) for i in range(0, len(parts), count)]
    return parts[0]


def _parts(backend: Backend, x: Array, boxes: Sequence[Box], axis: int) -> list[Array]:
    """The parts of an array that lie in the boxes, whose sides are along its axes from `axis` on."""
    parts = [x]
    for side, cuts in enumerate(zip(*boxes, strict=True)):
        sizes = [end - begin for begin, end in sorted(set(cuts))]
        parts = [piece for part in parts for piece in backend.split(part, sizes, axis + side)]
    return parts


def _summed(xp: Any, parts: Sequence[Array]) -> Array:
    """The sums of arrays (batch, ...) over all but the samples, added up."""
    total: Any = 0.0
    for part in parts:
        total = total + xp.sum(xp.reshape(part, (part.shape[0], math.prod(part.shape[1:]))), axis=-1)
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
