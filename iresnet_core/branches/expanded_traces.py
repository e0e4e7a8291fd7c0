"""Traces of convolutional Jacobians with three groups of slopes, but for a remainder that is left to the probes.

Such are the branches of the published image models, which begin with an activation: J = K3 D2 K2 D1 K1 D0, or by the
cyclic symmetry of a trace the same with D0 at the other end. With M0 the means of D0, one number a channel, the
deviations R0 = D0 - M0, and the like for D1 and D2,

    D0 D1 D2 = M0 D1 D2 + R0 D1 M2 + R0 M1 R2 + R0 R1 R2     (each at its place between the convolutions).

The first three products have two groups of slopes that vary with the position; the third is folded into a kernel, so
that their traces are those of `convolution_traces`, with any window and any padding. What remains is
T = K3 R2 K2 R1 K1 R0, of third order in the deviations; its products cost as much as those with J. The identity holds
for any means.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.branches.convolution_traces import (
    Cycle,
    Factors,
    Kernels,
    convolution_cycle,
    convolution_kernels,
    convolution_trace,
)
from iresnet_core.branches.dense_traces import SlopeTrace
from iresnet_core.operators import Convolution

__all__ = ["Term", "channel_means", "expanded_cycle", "expanded_terms", "expanded_trace"]

# Of each of the terms M0 D1 D2, R0 D1 M2 and R0 M1 R2 the two groups of slopes that vary, first the one that stands
# before the convolution between them, and whether they are deviations from the means.
TERMS = (((1, False), (2, False)), ((0, True), (1, False)), ((2, True), (0, True)))


class Term(NamedTuple):
    """The trace of two varying groups of slopes, `inner` and `outer`, with K2 between them and its kernels."""

    middle: Convolution
    kernels: Kernels
    inner: tuple[int, bool]
    outer: tuple[int, bool]


def expanded_cycle(layers: Sequence[Any]) -> Cycle | None:
    """The convolutions K1, K2, K3 and the groups D0, D1, D2 before each; None for a chain of another kind."""
    cycle = convolution_cycle(layers)
    if cycle is None or len(cycle.groups) != 3 or len(cycle.places) != 4 or None not in cycle.places:
        return None
    if cycle.places[0] is None:
        return Cycle(cycle.places[1:], cycle.groups)
    return Cycle(cycle.places[:-1], (cycle.groups[2], *cycle.groups[:2]))


def channel_means(backend: Backend, slopes: Sequence[Array]) -> list[Array]:
    """The means of slopes (batch, channels, *spatial) over batch and positions, as constants (channels,)."""
    return [backend.stop_gradient(backend.xp.mean(s, axis=(0, *range(2, s.ndim)))) for s in slopes]


def expanded_terms(backend: Backend, convolutions: Sequence[Any], means: Sequence[Array]) -> list[Term]:
    """The three terms: functions of the weights and of the means.

    The borders cost a part for every box that the window of the first factor makes. Where that of the last is smaller,
    the term is that of the transposed factors, whose trace is the same.
    """
    terms = []
    for inner, outer in TERMS:
        # Behind the second group comes the last factor, then the third group, then the first factor.
        before, between, behind = (convolutions[place] for place in (inner[0] - 1, inner[0], outer[0]))
        factors = Factors(before, between, behind)
        if math.prod(behind.window) < math.prod(before.window):
            factors, inner, outer = Factors(*map(_transposed, (behind, between, before))), outer, inner
        assert factors.middle is not None
        group = 3 - inner[0] - outer[0]
        terms.append(Term(factors.middle, convolution_kernels(backend, factors, means[group]), inner, outer))
    return terms


def _transposed(layer: Convolution) -> Convolution:
    """The adjoint of a convolution that keeps the extent, on samples (channels, *spatial)."""
    xp, axes = layer.backend.xp, len(layer.window)
    kernel = xp.permute_dims(layer.standard_kernel, (1, 0, *range(2, axes + 2)))
    return Convolution(
        xp.flip(kernel, axis=tuple(range(2, axes + 2))),
        input_shape=(layer.out_channels, *layer.spatial),
        padding=[(after, before) for before, after in layer.padding],
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        checked=True,
    )


def expanded_trace(
    backend: Backend,
    terms: Sequence[Term],
    slopes: Sequence[Array],
    means: Sequence[Array],
    transposed: Callable[[Sequence[Array], Array], Array],
) -> SlopeTrace:
    """tr(J - T) for slopes D0, D1, D2, given as (batch, channels, *spatial), and the products with T^T.

    `transposed` multiplies by the transposed Jacobian with other slopes in place of D0, D1, D2.
    """
    xp = backend.xp
    deviations = [
        s - xp.reshape(mean, (mean.shape[0], *(1,) * (s.ndim - 2))) for s, mean in zip(slopes, means, strict=True)
    ]
    total: Any = 0.0
    for middle, kernels, *groups in terms:
        inner, outer = ((deviations if deviates else slopes)[group] for group, deviates in groups)
        total = total + convolution_trace(backend, middle, kernels, inner, outer)
    return SlopeTrace(total, lambda u: transposed(deviations, u))
