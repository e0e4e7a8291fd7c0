"""Traces of Jacobians with three groups of slopes or more, but for a remainder that is left to the probes.

Such are the branches of the published image models, which begin with an activation: J = K3 D3 K2 D2 K1 D1, and all with
more layers. With M the means of D, one number a channel, and the deviations R = D - M, the product of all groups is the
sum over those which deviate. Every term with at most two deviating groups is a trace of `convolution_traces`, with the
means of the other groups between. For D1 .. Dn these are

    M1 .. D(n-1) Dn + sum over i < n - 1 of (M .. Ri D(i+1) .. M + sum over j > i + 1 of M .. Ri M .. Rj .. M),

each group at its place between the layers. What remains, T, is of third order in the deviations; its products cost as
much as n - 2 of those with J. The identity holds for any means.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.branches.convolution_traces import PairKernels, links, pair_kernels, pair_trace
from iresnet_core.branches.dense_traces import SlopePlan, SlopeTrace, third_order
from iresnet_core.operators import Convolution

__all__ = ["Term", "channel_means", "expanded_terms", "expanded_trace"]


class Term(NamedTuple):
    """The trace with two groups of slopes, of which those in `deviating` are deviations from the means."""

    kernels: PairKernels
    deviating: tuple[int, ...]


def channel_means(backend: Backend, slopes: Sequence[Array]) -> list[Array]:
    """The means of slopes (batch, channels, *spatial) over batch and positions, as constants (channels,)."""
    return [backend.stop_gradient(backend.xp.mean(s, axis=(0, *range(2, s.ndim)))) for s in slopes]


def expanded_terms(backend: Backend, layers: Sequence[Any], plan: SlopePlan, means: Sequence[Array]) -> list[Term]:
    """The terms for every pair of groups: functions of the weights and of the means."""
    terms, groups = [], len(plan.groups)
    constant, known = dict(enumerate(means)), links(backend, layers, plan)
    for first, second in combinations(range(groups), 2):
        if second > first + 1:
            deviating: tuple[int, ...] = (first, second)
        else:
            deviating = (first,) if second < groups - 1 else ()
        terms.append(Term(pair_kernels(backend, known, (first, second), constant), deviating))
    return terms


def expanded_trace(
    backend: Backend,
    layers: Sequence[Any],
    plan: SlopePlan,
    terms: Sequence[Term],
    slopes: Sequence[Array],
    means: Sequence[Array],
) -> SlopeTrace:
    """tr(J - T) for slopes (batch, channels, *spatial), and the products with the T^T of the same trace."""
    xp = backend.xp
    wide = [xp.reshape(mean, (mean.shape[0], *(1,) * (s.ndim - 2))) for s, mean in zip(slopes, means, strict=True)]
    deviations = [s - mean for s, mean in zip(slopes, wide, strict=True)]
    total: Any = 0.0
    for known, deviating in terms:
        groups = (known.base, known.other)
        inner, outer = ((deviations if group in deviating else slopes)[group] for group in groups if group is not None)
        total = total + pair_trace(backend, known, inner, outer)

    def transposed(place: int, u: Array) -> Array:
        for at in reversed(plan.segments[place]):
            u = layers[at].adjoint(u)
        return u

    def remainder(u: Array) -> Array:
        places = [at for segment in plan.segments for at in segment]
        first, last = layers[places[0]], layers[places[-1]]
        constant = [_given(first, mean[None, ...]) for mean in wide]
        varying = [_given(first, deviation) for deviation in deviations]
        v = xp.reshape(u, (*u.shape[:-1], *last.output_shape))
        return xp.reshape(third_order(backend, transposed, constant, varying, v), u.shape)

    return SlopeTrace(total, remainder)


def _given(layer: Any, x: Array) -> Array:
    """Bring (batch, channels, *spatial) to the layout of the layers."""
    return layer.given_format(x) if isinstance(layer, Convolution) else x
