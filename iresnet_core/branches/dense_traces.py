"""Traces of preconditioned Jacobians of chains, as multilinear forms in the slopes of the activations.

With groups of slopes D_1 .. D_L between runs of weights, J = M_L D_L M_(L-1) .. D_1 M_0, and for a fixed matrix B

    tr(B J) = tr(D_L M_(L-1) .. D_1 C),   C = M_0 B M_L.

For L <= 2 that is a number, a vector or a matrix applied to the slopes. Beyond that the slopes are taken about their
means over the batch: the terms of at most second order in the deviations are linear and bilinear forms, and exact; what
is left, B T, is of third order and small, and its products are those of a chain whose slopes are the deviations.

Convolutions of moderate extent take part as the matrices that they are; the slopes are those of every position.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.operators import Dense, LinearLayer

__all__ = [
    "SlopePlan",
    "SlopeTrace",
    "cyclic_plan",
    "expanded_plan",
    "mean_matrix",
    "mean_slopes",
    "preconditioned_trace",
    "slope_plan",
    "slope_remainder",
    "slope_runs",
    "third_order",
    "trace_form",
    "trace_kernel",
    "trace_plan",
]

# Terms of this order in the deviations of the slopes are the first that are not summed exactly.
REMAINDER_ORDER = 3
# Groups of slopes of dense layers up to which tr J is expanded, since there are products of weights for all pairs.
MOST_EXPANDED = 4
# Entries up to which a convolution is written out as a matrix.
MATRIX_ENTRIES = 2**22


class SlopePlan(NamedTuple):
    """Places of the linear layers of M_0 .. M_L, and of the activations of D_1 .. D_L."""

    segments: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]


class SlopeTrace(NamedTuple):
    """``tr(B (J - T))`` for every sample (batch,), and u -> T^T u for stacks (probes, batch, d); None where T = 0."""

    value: Array
    remainder: Callable[[Array], Array] | None


def slope_plan(layers: Sequence[Any]) -> SlopePlan | None:
    """Where a chain's weights and slopes stand; None if an activation is not entrywise, or a convolution large."""
    others = [layer for layer in layers if isinstance(layer, LinearLayer) and not isinstance(layer, Dense)]
    if any(math.prod(layer.input_shape + layer.output_shape) > MATRIX_ENTRIES for layer in others):
        return None
    return slope_runs(layers)


def slope_runs(layers: Sequence[Any]) -> SlopePlan | None:
    """Where a chain's weights and slopes stand; None if an activation is not entrywise."""
    segments: list[list[int]] = [[]]
    groups: list[list[int]] = []
    for place, layer in enumerate(layers):
        if isinstance(layer, LinearLayer):
            segments[-1].append(place)
        elif not layer.entrywise:
            return None
        elif not layer.has_unit_slope:
            if segments[-1] or not groups:
                groups.append([])
                segments.append([])
            groups[-1].append(place)
    return SlopePlan(tuple(map(tuple, segments)), tuple(map(tuple, groups)))


def cyclic_plan(layers: Sequence[Any]) -> SlopePlan | None:
    """Where a chain's weights and slopes stand for its trace; None if an activation is not entrywise.

    A trace is cyclic: slopes at both ends of a chain multiply. They are one group, the last.
    """
    plan = slope_runs(layers)
    if plan is None:
        return None
    segments, groups = plan
    if groups and not segments[0] and not segments[-1]:
        return SlopePlan(segments[1:], (*groups[1:-1], groups[-1] + groups[0]))
    return plan


def trace_plan(layers: Sequence[Any]) -> SlopePlan | None:
    """The plan of tr J itself for a chain of dense layers; None if more than two groups of slopes remain."""
    if not all(isinstance(layer, Dense) for layer in layers if isinstance(layer, LinearLayer)):
        return None
    plan = cyclic_plan(layers)
    return plan if plan is not None and len(plan.groups) <= 2 else None


def expanded_plan(layers: Sequence[Any]) -> SlopePlan | None:
    """The plan of a trace that is known but for a remainder; None for a chain of another kind or of too many groups."""
    if not all(isinstance(layer, Dense) for layer in layers if isinstance(layer, LinearLayer)):
        return None
    plan = cyclic_plan(layers)
    return plan if plan is not None and 2 < len(plan.groups) <= MOST_EXPANDED else None


def trace_kernel(backend: Backend, layers: Sequence[Any], plan: SlopePlan, B: Array | None = None) -> Array:
    """What at most two groups of slopes are multiplied by in tr(B J), B = I without an argument.

    It is the number itself without slopes, the vector k of k^T d1 for one group and the matrix K of d2^T K d1 for two:
    tr(M_2 D_2 M_1 D_1 M_0 B) = d2^T (M_1 * (M_0 B M_2)^T) d1.
    """
    return _kernel(backend, [_run(backend, layers, segment) for segment in plan.segments], B)


def _kernel(backend: Backend, matrices: Sequence[Array | None], B: Array | None) -> Array:
    xp = backend.xp
    before = _times(backend, matrices[0], B)
    if len(matrices) == 1:
        return xp.linalg.trace(before)
    closing = _times(backend, before, matrices[-1])
    return xp.linalg.diagonal(closing) if len(matrices) == 2 else matrices[1] * xp.matrix_transpose(closing)


def trace_form(backend: Backend, kernel: Array, slopes: Sequence[Array], like: Array) -> Array:
    """The trace (batch,) from its kernel and the slopes (batch, h) of each group, for a batch like the one given."""
    xp = backend.xp
    if not slopes:
        return kernel + xp.zeros((like.shape[0],), dtype=like.dtype, device=device_of(like))
    if len(slopes) == 1:
        return xp.matmul(slopes[0], kernel)
    return xp.linalg.vecdot(xp.matmul(slopes[1], kernel), slopes[0])


def mean_matrix(backend: Backend, layers: Sequence[Any], plan: SlopePlan, slopes: Sequence[Array]) -> Array:
    """The Jacobian (d, d) at the mean slopes of the batch; of norm at most the chain's constant, by convexity."""
    xp = backend.xp
    total = None
    for place, segment in enumerate(plan.segments):
        if place:
            mean = xp.mean(slopes[place - 1], axis=0)
            total = _diagonal(backend, mean) if total is None else mean[:, None] * total
        for at in segment:
            total = _times(backend, _matrix(backend, layers[at]), total)
    return total


def mean_slopes(backend: Backend, slopes: Sequence[Array]) -> list[Array]:
    """The means of slopes (batch, h_i) over the batch, as constants."""
    return [backend.stop_gradient(backend.xp.mean(s, axis=0)) for s in slopes]


def preconditioned_trace(
    backend: Backend,
    layers: Sequence[Any],
    plan: SlopePlan,
    slopes: Sequence[Array],
    B: Array | None,
    value: Array,
    about: Sequence[Array] | None = None,
) -> SlopeTrace:
    """tr(B J) for slopes D_i (batch, h_i), as far as it is cheap; `value` is the chain's, whose batch it has.

    B is the identity where it is None. The slopes that deviations are taken from are `about`, and by default the means.

    Cost: weight products, once for each batch; for L = 2 one bilinear form, half a Jacobian product, and for L > 2 one
    for every pair of groups. A product with T^T carries at most four vectors through the layers.
    """
    xp = backend.xp
    matrices = [_run(backend, layers, segment) for segment in plan.segments]
    if len(slopes) <= 2:
        return SlopeTrace(trace_form(backend, _kernel(backend, matrices, B), slopes, value), None)
    closing = _times(backend, _times(backend, matrices[0], B), matrices[-1])
    nothing = xp.zeros((value.shape[0],), dtype=value.dtype, device=device_of(value))
    means = mean_slopes(backend, slopes) if about is None else about
    deviations = [s - mean for s, mean in zip(slopes, means, strict=True)]
    inner = matrices[1:-1]
    value = _second_order(backend, inner, closing, means, deviations)
    return SlopeTrace(value + nothing, slope_remainder(backend, layers, plan, slopes, means))


def slope_remainder(
    backend: Backend, layers: Sequence[Any], plan: SlopePlan, slopes: Sequence[Array], means: Sequence[Array]
) -> Callable[[Array], Array]:
    """Return u -> T^T u for stacks (probes, batch, d), T of third order in the deviations of the slopes from means."""
    matrices = [_run(backend, layers, segment) for segment in plan.segments]
    deviations = [s - mean for s, mean in zip(slopes, means, strict=True)]
    return lambda u: _remainder(backend, matrices, means, deviations, u)


def _run(backend: Backend, layers: Sequence[Any], segment: tuple[int, ...]) -> Array | None:
    """Product of the weights of neighbouring dense layers; None for the identity."""
    total = None
    for place in segment:
        total = _times(backend, _matrix(backend, layers[place]), total)
    return total


def _matrix(backend: Backend, layer: LinearLayer) -> Array:
    """The matrix of a layer, with its derivative; that of a convolution from its images of the unit vectors."""
    if isinstance(layer, Dense):
        return layer.weight
    xp, n = backend.xp, math.prod(layer.input_shape)
    units = xp.eye(n, dtype=layer.weight.dtype, device=device_of(layer.weight))
    images = layer.apply(xp.reshape(units, (n, *layer.input_shape)))
    return xp.matrix_transpose(xp.reshape(images, (n, math.prod(layer.output_shape))))


def _times(backend: Backend, left: Array | None, right: Array | None) -> Array:
    if left is None or right is None:
        return right if left is None else left
    return backend.xp.matmul(left, right)


def _diagonal(backend: Backend, entries: Array) -> Array:
    xp = backend.xp
    return entries[:, None] * xp.eye(entries.shape[0], dtype=entries.dtype, device=device_of(entries))


def _second_order(
    backend: Backend, inner: list[Array], closing: Array, means: Sequence[Array], deviations: list[Array]
) -> Array:
    """Terms of tr(D_L M_(L-1) .. D_1 C) up to the second order in the deviations (batch,).

    `forward[i][j]` is the path from behind D_i to before D_j with mean slopes between, `around[j][i]` that from behind
    D_j through C to before D_i: the coefficient of the deviations of the two is forward * around^T, entry by entry.
    """
    xp, count = backend.xp, len(means)
    into = [closing]  # from the closing matrix's input to before D_i
    for i in range(1, count):
        into.append(xp.matmul(inner[i - 1], means[i - 1][:, None] * into[-1]))
    out: list[Array | None] = [None]  # from behind D_j to behind D_L; None for the identity
    for j in reversed(range(count - 1)):
        step = means[j + 1][:, None] * inner[j]
        out.insert(0, _times(backend, out[0], step))
    constant = xp.sum(means[-1] * xp.linalg.diagonal(into[-1]))
    value = constant
    for j in range(count):
        around = _times(backend, into[j], out[j])  # from behind D_j, once around, to before D_j
        value = value + xp.matmul(deviations[j], xp.linalg.diagonal(around))
    for i in range(count):
        forward = inner[i] if i < count - 1 else None
        for j in range(i + 1, count):
            around = _times(backend, into[i], out[j])
            kernel = forward * xp.matrix_transpose(around)
            value = value + xp.sum(xp.matmul(deviations[j], kernel) * deviations[i], axis=-1)
            if j < count - 1:
                forward = xp.matmul(inner[j], means[j][:, None] * forward)
    return value


def third_order(
    backend: Backend,
    transposed: Callable[[int, Array], Array],
    means: Sequence[Array],
    deviations: Sequence[Array],
    u: Array,
) -> Array:
    """T^T u: the paths that take a deviation in at least three groups; `transposed` (i, u) multiplies by M_i^T.

    One vector for every number of deviations so far is carried through the chain, but those which can no longer reach
    the third order are left out.
    """
    count = len(means)
    carried: dict[int, Array] = {0: transposed(count, u)}
    for place in reversed(range(count)):
        grown: dict[int, Array] = {}
        for order, vector in carried.items():
            for step, scale in ((0, means[place]), (1, deviations[place])):
                reached = min(order + step, REMAINDER_ORDER)
                if reached + place < REMAINDER_ORDER:
                    continue
                term = scale * vector
                grown[reached] = grown[reached] + term if reached in grown else term
        carried = {order: transposed(place, vector) for order, vector in grown.items()}
    return carried[REMAINDER_ORDER] if carried else backend.xp.zeros_like(u)


def _remainder(
    backend: Backend, matrices: list[Array | None], means: Sequence[Array], deviations: list[Array], u: Array
) -> Array:
    """T^T u for u (probes, batch, d)."""
    return third_order(backend, lambda place, u: _through(backend, matrices[place], u), means, deviations, u)


def _through(backend: Backend, matrix: Array | None, u: Array) -> Array:
    """Multiply the last axis of u (..., out) by a matrix (out, in); None stands for the identity."""
    return u if matrix is None else backend.rows_times(u, matrix)
