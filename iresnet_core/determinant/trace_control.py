"""The trace of the Jacobian that is known without probes, as a control variate of log-determinants."""

from iresnet_core.backends import Array
from iresnet_core.branches import SlopeTrace
from iresnet_core.determinant.preconditioning import fixed_linearization
from iresnet_core.determinant.request import Problem
from iresnet_core.determinant.sample_seed import SampleSeed

__all__ = ["expands_trace", "known_trace"]


def expands_trace(problem: Problem) -> bool:
    """Whether the branch knows its trace but for a remainder."""
    structure = problem.linearization.structure
    return structure is not None and structure.expanded_trace is not None


def known_trace(problem: Problem) -> SlopeTrace | None:
    """Tr J, or tr(J - T) with the products of a small T, as far as the branch offers it cheaply.

    The means that T deviates from are those of the batch, for training. Where an answer is to be that of the sample
    alone, for samples with seeds of their own and for given probes, they are those of fixed points.
    """
    backend, g, x, linearization, _, request, *_ = problem
    if linearization.trace is not None:
        return SlopeTrace(linearization.trace(), None)
    structure = linearization.structure
    if structure is None or structure.expanded_trace is None:
        return None
    if request.control_variate == "auto" and not structure.cheap_expansion:
        return None
    if request.noise is None and not isinstance(request.rng, SampleSeed):
        return structure.expanded_trace()

    def means() -> list[Array]:
        there = fixed_linearization(backend, g, x)
        assert there.structure is not None
        assert there.structure.channel_means is not None
        return there.structure.channel_means()

    with backend.no_grad():
        fixed = g.kept("channel means", means)
    return structure.expanded_trace(fixed)
