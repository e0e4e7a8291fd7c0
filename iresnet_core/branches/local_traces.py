"""Traces of preconditioned Jacobians of convolutional chains: tr(B J) for a matrix B, without matrices of the layers.

As in `dense_traces`, slopes D_1 .. D_L at every position are taken about given ones M_i, with R_i = D_i - M_i:

    tr(B J) = tr(B J0) + sum_i tr(B .. R_i ..) + sum_(i < j) tr(B .. R_j F_ij R_i ..) + third order,

with the M's in all other places and F_ij the path from D_i to D_j. Convolutions are local: F_ij has entries for
neighbouring positions alone, so that each term of second order is a matrix (h_i, h_j) for every position and offset,

    F_ij * (A_i B C_j)^T entry by entry, A_i from the input to D_i and C_j from D_j to the output.

The columns of A_i B and the rows of C_j are d images that are sent through the layers, once for all samples.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches.convolution_traces import are_alike, convolution_taps
from iresnet_core.branches.dense_traces import SlopePlan, slope_runs, third_order
from iresnet_core.operators import Convolution, LinearLayer

__all__ = [
    "LocalKernels",
    "has_large_images",
    "local_kernels",
    "local_mean_matrix",
    "local_plan",
    "local_remainder",
    "local_trace",
    "position_means",
]

Offset = tuple[int, ...]
# Entries up to which images of all units at one layer, and the matrices of one pair, are worked on.
MOST_ENTRIES = 2**24


class LocalOperator(NamedTuple):
    """Matrices (taps, positions or 1, out, in) that take position p + offset to p; zero where that is outside."""

    offsets: tuple[Offset, ...]
    taps: Array


class LocalKernels(NamedTuple):
    """What slopes are multiplied by: the value at the M's, and the terms of first and second order in the deviations.

    `pairs` are (i, j, offsets, matrices (positions, taps h_i, h_j)).
    """

    value: Array
    linear: list[Array]
    pairs: list[tuple[int, int, tuple[Offset, ...], Array]]


def local_plan(layers: Sequence[Any]) -> SlopePlan | None:
    """Where convolutions and slopes stand; None if the chain is of another kind, or too wide for its images.

    What is worked on is d images at the widest layer, and for every two groups a matrix for every tap and position.
    """
    convolutions: list[Any] = [layer for layer in layers if isinstance(layer, LinearLayer)]
    plan = slope_runs(layers)
    if plan is None or not plan.groups or not are_alike(convolutions):
        return None
    positions = math.prod(convolutions[0].spatial)
    images = max(layer.out_channels for layer in convolutions) * math.prod(convolutions[0].input_shape)
    matrices, widths = 0, [convolutions[0].channels, *(layer.out_channels for layer in convolutions)]
    for i in range(len(convolutions)):
        taps = 1
        for j in range(i, len(convolutions)):
            taps = min(positions, taps * math.prod(convolutions[j].window))
            matrices = max(matrices, taps * widths[i] * widths[j + 1])
    return plan if positions * max(images, matrices) <= MOST_ENTRIES else None


def has_large_images(layers: Sequence[Any]) -> bool:
    """Whether nothing but the size of its images keeps a chain from such a plan."""
    plan = slope_runs(layers)
    alike = are_alike([layer for layer in layers if isinstance(layer, LinearLayer)])
    return plan is not None and bool(plan.groups) and alike and local_plan(layers) is None


def position_means(backend: Backend, slopes: Sequence[Array], *, constant: bool = True) -> list[Array]:
    """The means of slopes (batch, channels, *spatial) over the batch, (channels, positions)."""
    xp = backend.xp
    means = [xp.mean(xp.reshape(s, (*s.shape[:2], math.prod(s.shape[2:]))), axis=0) for s in slopes]
    return [backend.stop_gradient(mean) for mean in means] if constant else means


def local_mean_matrix(backend: Backend, layers: Sequence[Any], plan: SlopePlan, means: Sequence[Array]) -> Array:
    """The Jacobian (d, d) at slopes (channels, positions) that are the same for all samples."""
    d = math.prod(layers[_first(layers)].input_shape)
    units = backend.xp.eye(d, dtype=means[0].dtype, device=device_of(means[0]))
    images = _forward(backend, layers, plan, means, units)[-1]
    return backend.xp.matrix_transpose(backend.xp.reshape(_given(layers, images), (d, d)))


def local_kernels(
    backend: Backend, layers: Sequence[Any], plan: SlopePlan, means: Sequence[Array], B: Array
) -> LocalKernels:
    """The terms of tr(B J) about slopes (channels, positions); functions of the weights, of these slopes and of B.

    Cost: the products of d vectors with J and with J^T, and one of matrices (h_i, d) and (d, h_j) for every position
    and neighbour.
    """
    xp = backend.xp
    into = _forward(backend, layers, plan, means, xp.matrix_transpose(B))
    out = _backward(backend, layers, plan, means, xp.eye(B.shape[0], dtype=B.dtype, device=device_of(B)))
    linear = [xp.sum(a * c, axis=0) for a, c in zip(into, out, strict=False)]
    value = xp.sum(means[0] * linear[0])
    spatial, torus = _geometry(layers)
    pairs = []
    for i in range(len(means)):
        path: LocalOperator | None = None
        for j in range(i + 1, len(means)):
            for place in plan.segments[j]:
                step = _local(backend, layers[place])
                path = step if path is None else _composed(backend, step, path, spatial, torus)
            assert path is not None
            pairs.append((i, j, path.offsets, _pair(backend, path, into[i], out[j], spatial, torus)))
            path = path._replace(taps=path.taps * xp.matrix_transpose(means[j])[None, :, :, None])
    return LocalKernels(value, linear, pairs)


def local_trace(
    backend: Backend, layers: Sequence[Any], kernels: LocalKernels, slopes: Sequence[Array], means: Sequence[Array]
) -> Array:
    """Tr(B J) (batch,) up to the second order, for slopes (batch, channels, *spatial)."""
    xp, (spatial, torus) = backend.xp, _geometry(layers)
    deviations = [
        xp.reshape(s, (*s.shape[:2], math.prod(spatial))) - mean for s, mean in zip(slopes, means, strict=True)
    ]
    total = kernels.value
    for deviation, linear in zip(deviations, kernels.linear, strict=True):
        total = total + xp.sum(deviation * linear, axis=(1, 2))
    for i, j, offsets, matrices in kernels.pairs:
        near = _neighbours(backend, deviations[i], offsets, spatial, torus)
        image = xp.matmul(xp.permute_dims(near, (2, 0, 1)), matrices)  # (positions, batch, h_j)
        total = total + xp.sum(image * xp.permute_dims(deviations[j], (2, 0, 1)), axis=(0, 2))
    return total


def local_remainder(
    backend: Backend,
    layers: Sequence[Any],
    plan: SlopePlan,
    slopes: Sequence[Array],
    means: Sequence[Array],
    u: Array,
) -> Array:
    """T^T u for u (probes, batch, d), T the terms of J from the third order on."""
    xp, spatial = backend.xp, _geometry(layers)[0]
    given = [_given(layers, mean[None, ...]) for mean in means]
    deviations = [
        _given(layers, xp.reshape(s, (*s.shape[:2], math.prod(spatial))) - mean)
        for s, mean in zip(slopes, means, strict=True)
    ]

    def transposed(place: int, u: Array) -> Array:
        for at in reversed(plan.segments[place]):
            u = layers[at].adjoint(u)
        return u

    event = layers[_first(layers)].input_shape
    image = third_order(backend, transposed, given, deviations, xp.reshape(u, (*u.shape[:-1], *event)))
    return xp.reshape(image, u.shape)


def _first(layers: Sequence[Any]) -> int:
    return next(place for place, layer in enumerate(layers) if isinstance(layer, Convolution))


def _geometry(layers: Sequence[Any]) -> tuple[tuple[int, ...], bool]:
    layer = layers[_first(layers)]
    return layer.spatial, layer.padding_mode == "circular"


def _given(layers: Sequence[Any], x: Array) -> Array:
    """Bring (n, channels, positions) to the layout of the layers."""
    layer = layers[_first(layers)]
    return layer.given_format(layer.backend.xp.reshape(x, (*x.shape[:2], *layer.spatial)))


def _flat(layers: Sequence[Any], x: Array) -> Array:
    """Bring samples in the layout of the layers to (n, channels, positions)."""
    layer = layers[_first(layers)]
    x = layer.channels_first(x)
    return layer.backend.xp.reshape(x, (*x.shape[:2], -1))


def _forward(backend: Backend, layers: Sequence[Any], plan: SlopePlan, means: Sequence[Array], v: Array) -> list[Array]:
    """What rows v (n, d) are before each group of slopes, and behind the chain: (n, channels, positions)."""
    found, x = [], backend.xp.reshape(v, (v.shape[0], *layers[_first(layers)].input_shape))
    for number, segment in enumerate(plan.segments):
        for place in segment:
            x = layers[place].apply(x)
        found.append(_flat(layers, x))
        if number < len(means):
            x = _given(layers, means[number] * found[-1])
    return found


def _backward(
    backend: Backend, layers: Sequence[Any], plan: SlopePlan, means: Sequence[Array], u: Array
) -> list[Array]:
    """What rows u (n, d) are behind each group of slopes, by the transposed chain: (n, channels, positions)."""
    found: list[Array] = []
    last = max(place for place, layer in enumerate(layers) if isinstance(layer, Convolution))
    x = backend.xp.reshape(u, (u.shape[0], *layers[last].output_shape))
    for number in reversed(range(len(means))):
        for place in reversed(plan.segments[number + 1]):
            x = layers[place].adjoint(x)
        found.insert(0, _flat(layers, x))
        x = _given(layers, means[number] * found[0])
    return found


@functools.lru_cache(maxsize=1024)
def _places(offset: Offset, spatial: tuple[int, ...], torus: bool) -> tuple[np.ndarray, np.ndarray]:
    """The number of position p + offset for every p, and whether it is inside; some number where it is not."""
    at = np.indices(spatial).reshape(len(spatial), -1) + np.asarray(offset)[:, None]
    extent = np.asarray(spatial)[:, None]
    inside = np.full(at.shape[1], True) if torus else ((at >= 0) & (at < extent)).all(axis=0)
    numbers = np.ravel_multi_index(tuple(at % extent), spatial)
    return numbers.astype(np.int64), inside.astype(np.float64)


def _numbers(offset: Offset, spatial: tuple[int, ...], torus: bool) -> np.ndarray:
    return _places(offset, spatial, torus)[0]


def _inside(offset: Offset, spatial: tuple[int, ...], torus: bool) -> np.ndarray:
    return _places(offset, spatial, torus)[1]


def _all_numbers(offsets: tuple[Offset, ...], spatial: tuple[int, ...], torus: bool) -> np.ndarray:
    return np.concatenate([_places(offset, spatial, torus)[0] for offset in offsets])


def _neighbours(
    backend: Backend, x: Array, offsets: tuple[Offset, ...], spatial: tuple[int, ...], torus: bool
) -> Array:
    """Collect x (n, channels, positions) at p + offset: (n, taps channels, positions), or anything outside."""
    xp = backend.xp
    if len(offsets) == 1 and not any(offsets[0]):
        return x
    numbers = backend.constant_array(_all_numbers, offsets, spatial, torus, like=x)
    near = xp.reshape(xp.take(x, numbers, axis=2), (*x.shape[:2], len(offsets), x.shape[2]))
    return xp.reshape(xp.permute_dims(near, (0, 2, 1, 3)), (x.shape[0], -1, x.shape[2]))


def _local(backend: Backend, layer: Convolution) -> LocalOperator:
    """A convolution that keeps the extent."""
    xp = backend.xp
    offsets, taps = convolution_taps(layer)
    spatial, torus = layer.spatial, layer.padding_mode == "circular"
    inside = [backend.constant_array(_inside, offset, spatial, torus, like=taps) for offset in offsets]
    return LocalOperator(offsets, xp.astype(xp.stack(inside), taps.dtype)[:, :, None, None] * taps[:, None, ...])


def _composed(
    backend: Backend, after: LocalOperator, before: LocalOperator, spatial: tuple[int, ...], torus: bool
) -> LocalOperator:
    """One local operator after the other; on a small torus an offset may have several names."""
    xp = backend.xp
    found: dict[Offset, Array] = {}
    for a, step in enumerate(after.offsets):
        numbers = backend.constant_array(_numbers, step, spatial, torus, like=after.taps)
        for b, offset in enumerate(before.offsets):
            taps = xp.matmul(after.taps[a, ...], xp.take(before.taps[b, ...], numbers, axis=0))
            total = tuple(s + o for s, o in zip(step, offset, strict=True))
            found[total] = found[total] + taps if total in found else taps
    return LocalOperator(tuple(found), xp.stack(list(found.values())))


def _pair(
    backend: Backend, path: LocalOperator, into: Array, out: Array, spatial: tuple[int, ...], torus: bool
) -> Array:
    """The matrices of two groups with `path` between them, (positions, taps h_i, h_j)."""
    xp = backend.xp
    behind = xp.permute_dims(out, (2, 0, 1))  # (positions, d, h_j)
    found = []
    for offset, taps in zip(path.offsets, (path.taps[t, ...] for t in range(len(path.offsets))), strict=True):
        numbers = backend.constant_array(_numbers, offset, spatial, torus, like=into)
        before = xp.permute_dims(xp.take(into, numbers, axis=2), (2, 1, 0))  # (positions, h_i, d)
        found.append(xp.matmul(before, behind) * xp.matrix_transpose(taps))
    return xp.concat(found, axis=1)
