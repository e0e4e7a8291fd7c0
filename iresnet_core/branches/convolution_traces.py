"""Traces of the Jacobians of cycles of linear layers and slopes, at the cost of one layer for each pair of groups.

Let D and D' be two groups of slopes at every position and channel, and A and B what lies between them on either side:
convolutions that keep the extent and, where there are further groups, constant slopes of theirs, one number a channel.
With the matrices A[o] that lead from position q to q + o, and B[o] that lead back,

    tr(D' A D B) = sum over q, o of D'[q + o]^T (A[o] * B[o]^T) D[q],

with the entrywise product *. With zero padding a walk counts only if it stays inside of the image, see `closed_walks`,
so that A and B are sums over such walks for each of a few boxes of positions q. The sum over o is a convolution of D'.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches.closed_walks import Box, Geometry, Levels, Offset, Walks, are_few, counts, walk_numbers
from iresnet_core.branches.dense_traces import SlopePlan, cyclic_plan
from iresnet_core.operators import Convolution, LinearLayer, wrapped

__all__ = [
    "Links",
    "PairKernels",
    "are_alike",
    "convolution_taps",
    "exact_kernels",
    "links",
    "pair_kernels",
    "pair_trace",
    "walk_plan",
]

# Of more groups there are too many pairs: their traces would cost more than the products.
MOST_GROUPS = 6


class PairKernels(NamedTuple):
    """What the slopes of two groups are multiplied by, or those of one.

    For every box of positions of the `base` it is a kernel (h, h', *window), or a vector (h,) for one group. For a
    window of one displacement it is a matrix (h', h), since products with (h, h') take twice as long for 256 channels.
    """

    base: int
    other: int | None
    walks: Walks
    circular: bool
    kernels: Array


def walk_plan(layers: Sequence[Any]) -> SlopePlan | None:
    """Where convolutions and slopes stand whose trace is a sum of those of pairs of groups; None if it is not cheap."""
    plan = cyclic_plan(layers)
    if plan is None or not 1 <= len(plan.groups) <= MOST_GROUPS:
        return None
    linear = [layer for layer in layers if isinstance(layer, LinearLayer)]
    if not are_alike(linear):
        return None
    widths = [layers[link[0]].channels for link in _places(plan)]
    few: bool = linear[0].backend.host_constant(are_few, _geometry(layers, plan), tuple(widths))
    return plan if few else None


def are_alike(layers: Sequence[Any]) -> bool:
    """Whether linear layers are plain convolutions that keep one extent."""
    plain = all(
        isinstance(layer, Convolution)
        and layer.groups == 1
        and set(layer.stride) == {1}
        and layer.out_spatial == layer.spatial
        for layer in layers
    )
    return plain and len({(layer.padding_mode, layer.data_format, layer.spatial) for layer in layers}) == 1


class Links(NamedTuple):
    """What lies behind each group of slopes: the matrices (taps, out, in) of its layers, in their order."""

    geometry: Geometry
    matrices: list[list[Array]]


def links(backend: Backend, layers: Sequence[Any], plan: SlopePlan) -> Links:
    """Return the links of a plan: functions of the weights."""
    matrices = [[_matrices(backend, layers[place]) for place in link] for link in _places(plan)]
    return Links(_geometry(layers, plan), matrices)


def pair_kernels(backend: Backend, known: Links, pair: tuple[int, int], means: Mapping[int, Array]) -> PairKernels:
    """The kernels of the trace with the slopes of a pair of groups, and of all others the `means` (channels,).

    The first group comes before the second; if they are the same, it is the only one that varies.
    """
    xp, geometry = backend.xp, known.geometry
    found = Walks(*backend.host_constant(walk_numbers, geometry, *pair))
    first, second = pair
    behind, before = _way(known, means, first, second), _way(known, means, second, first)
    if first == second:
        behind = []
    elif found.turned:
        behind, before = before, behind
    # From the base on: with the layers behind it, and against those before it.
    against = [xp.matrix_transpose(matrices) for matrices in reversed(before)]
    ways = (behind, against) if found.along else (against, behind)
    sums: Any = None
    for way, levels, back in zip(ways, (found.there, found.back), (False, True), strict=True):
        if not way:
            continue
        products = _products(backend, way, levels)
        flat = xp.reshape(products, (products.shape[0], -1))
        chosen = xp.astype(backend.constant_array(counts, geometry, *pair, back, like=flat), flat.dtype)
        own = xp.reshape(xp.matmul(chosen, flat), (-1, math.prod(found.window), *products.shape[1:]))
        sums = own if sums is None else sums * own
    base, other = (second, first) if found.turned else (first, second)
    if first == second:
        return PairKernels(first, None, found, geometry[2], xp.linalg.diagonal(sums[:, 0, ...]))
    if math.prod(found.window) == 1:
        kernels = sums[:, 0, ...]
    else:
        kernels = xp.permute_dims(sums, (0, 3, 2, 1))
        kernels = xp.reshape(kernels, (*kernels.shape[:-1], *found.window))
    return PairKernels(base, other, found, geometry[2], kernels)


def exact_kernels(backend: Backend, layers: Sequence[Any], plan: SlopePlan) -> PairKernels:
    """The kernels of a trace with one or two groups of slopes, which is exact."""
    return pair_kernels(backend, links(backend, layers, plan), (0, len(plan.groups) - 1), {})


def _places(plan: SlopePlan) -> list[tuple[int, ...]]:
    """The places of the layers behind each group of slopes; behind the last one come those before the first."""
    first, *others, last = plan.segments
    return [*others, last + first]


def _way(known: Links, means: Mapping[int, Array], begin: int, end: int) -> list[Array]:
    """The matrices from behind one group of slopes to before another, with the constant slopes on the way."""
    found: list[Array] = []
    groups = len(known.matrices)
    for k in range((end - begin) % groups or groups):
        at = (begin + k) % groups
        first, *others = known.matrices[at]
        found += [first * means[at] if k else first, *others]
    return found


def _geometry(layers: Sequence[Any], plan: SlopePlan) -> Geometry:
    places = _places(plan)
    first = layers[places[0][0]]
    links = tuple(tuple(_offsets(layers[place]) for place in link) for link in places)
    return links, first.spatial, first.padding_mode == "circular"


def _offsets(layer: Convolution) -> tuple[Offset, ...]:
    return tuple(
        tuple(k * d - before for k, d, (before, _) in zip(at, layer.dilation, layer.padding, strict=True))
        for at in product(*map(range, layer.window))
    )


def _matrices(backend: Backend, layer: Convolution) -> Array:
    xp, kernel = backend.xp, layer.standard_kernel
    return xp.moveaxis(xp.reshape(kernel, (*kernel.shape[:2], math.prod(layer.window))), -1, 0)


def convolution_taps(layer: Convolution) -> tuple[tuple[Offset, ...], Array]:
    """Offsets of the taps of a convolution and their matrices (taps, out, in)."""
    return _offsets(layer), _matrices(layer.backend, layer)


def _products(backend: Backend, way: Sequence[Array], levels: Levels) -> Array:
    """The products of matrices (taps, out, in) along walks, one layer after the other: (walks, out, in)."""
    total = None
    for taps, (beginnings, numbers) in zip(way, levels, strict=True):
        matrices = _chosen(backend, taps, numbers)
        total = matrices if total is None else backend.xp.matmul(matrices, _chosen(backend, total, beginnings))
    return total


def _chosen(backend: Backend, stack: Array, numbers: Sequence[int]) -> Array:
    if len(numbers) == stack.shape[0] and all(number == k for k, number in enumerate(numbers)):
        return stack
    matrices = backend.xp.unstack(stack)  # whose derivative is a stack again, while each index would make one of zeros
    return backend.xp.stack([matrices[n] for n in numbers])


def pair_trace(backend: Backend, known: PairKernels, inner: Array, outer: Array | None) -> Array:
    """Return the trace (batch,) for slopes of the base and of the other group, (batch, channels, *spatial)."""
    xp, found = backend.xp, known.walks
    axes = inner.ndim - 2
    if outer is not None and math.prod(found.window) == 1:
        # With the channels last its products are those of matrices.
        last = [xp.moveaxis(slopes, 1, -1) for slopes in (inner, outer)]
        return _trace_by_matrices(backend, found.boxes, (*last, known.kernels))
    padded = None if outer is None else _extended(xp, known, outer)
    reach = [(size - 1) * step for size, step in zip(found.window, found.step, strict=True)]
    matrices, products = xp.unstack(known.kernels), []
    for box, here, kernel in zip(found.boxes, _parts(backend, inner, found.boxes, 2), matrices, strict=True):
        if padded is None:
            image = xp.reshape(kernel, (kernel.shape[0], *(1,) * axes))
        else:
            sides = (slice(a, b + r) for (a, b), r in zip(box, reach, strict=True))
            slab = padded[(slice(None), slice(None), *sides)]
            image = backend.conv(
                slab, kernel, stride=(1,) * axes, padding=((0, 0),) * axes, dilation=found.step, groups=1
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


def _extended(xp: Any, known: PairKernels, x: Array) -> Array:
    """Pad slopes so that position q + o is there for every q, with zeros or around."""
    for axis, (low, high) in enumerate(zip(known.walks.low, known.walks.high, strict=True), start=2):
        if known.circular:
            x = wrapped(xp, x, axis, -low, high)
            continue
        sides = [
            xp.zeros((*x.shape[:axis], width, *x.shape[axis + 1 :]), dtype=x.dtype, device=device_of(x))
            for width in (-low, high)
        ]
        x = xp.concat([sides[0], x, sides[1]], axis=axis)
    return x
