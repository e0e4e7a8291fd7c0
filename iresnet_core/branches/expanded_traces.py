"""Traces of Jacobians with three groups of slopes or more, but for a remainder that is left to the probes.

Such are the branches of the published image models, which begin with an activation: J = K3 D3 K2 D2 K1 D1, and all with
more layers. With M the means of D, one number a channel, and the deviations R = D - M, the product of all groups is the
sum over those which deviate. Every term with at most two deviating groups is a trace of `convolution_traces`, with the
means of the other groups between. For D1 .. Dn these are

    M1 .. D(n-1) Dn + sum over i < n - 1 of (M .. Ri D(i+1) .. M + sum over j > i + 1 of M .. Ri M .. Rj .. M),

each group at its place between the layers. What remains, T, is of third order in the deviations; its products carry at
most four vectors through the layers. The identity holds for any means.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.branches.convolution_traces import PairKernels, links, pair_kernels, pair_trace
from iresnet_core.branches.dense_traces import SlopePlan, SlopeTrace, third_order

__all__ = ["Term", "channel_means", "expanded_remainder", "expanded_terms", "expanded_trace"]


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
    deviations = [s - mean for s, mean in zip(slopes, _wide(backend, slopes, means), strict=True)]
    total: Any = 0.0
    for known, deviating in terms:
        groups = (known.base, known.other)
        inner, outer = ((deviations if group in deviating else slopes)[group] for group in groups if group is not None)
        total = total + pair_trace(backend, known, inner, outer)
    return SlopeTrace(total, expanded_remainder(backend, layers, plan, slopes, means))


def expanded_remainder(
    backend: Backend, layers: Sequence[Any], plan: SlopePlan, slopes: Sequence[Array], means: Sequence[Array]
) -> Callable[[Array], Array]:
    """Return u -> T^T u for stacks (probes, batch, d)."""
    xp, wide = backend.xp, _wide(backend, slopes, means)
    places = [at for segment in plan.segments for at in segment]
    first, last = layers[places[0]], layers[places[-1]]
    constant = [first.given_format(mean[None, ...]) for mean in wide]
    deviations = [first.given_format(s - mean) for s, mean in zip(slopes, wide, strict=True)]

    def transposed(place: int, u: Array) -> Array:
        for at in reversed(plan.segments[place]):
            u = layers[at].adjoint(u)
        return u

    def remainder(u: Array) -> Array:
        images = xp.reshape(u, (*u.shape[:-1], *last.output_shape))
        return xp.reshape(third_order(backend, transposed, constant, deviations, images), u.shape)

    return remainder


def _wide(backend: Backend, slopes: Sequence[Array], means: Sequence[Array]) -> list[Array]:
    """The means (channels,) with the axes of the slopes behind the channels."""
    shapes = ((mean.shape[0], *(1,) * (s.ndim - 2)) for s, mean in zip(slopes, means, strict=True))
    return [backend.xp.reshape(mean, shape) for mean, shape in zip(means, shapes, strict=True)]
