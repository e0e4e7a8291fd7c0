"""How a log-determinant comes to a tolerance: the number of probes that it takes, and the samples that are done."""

import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.determinant.exact import EXACT
from iresnet_core.determinant.probes import ProbeSource
from iresnet_core.determinant.request import Problem, Request
from iresnet_core.errors import NotConvergedError
from iresnet_core.results import LogDet

__all__ = ["MOST_PROBES", "Found", "above_its_floor", "next_goal", "too_many_probes"]

# Probes at which a tolerance is given up: it would take as much again to halve the noise once more.
MOST_PROBES = 2**12


class Found(NamedTuple):
    """Answers to a tolerance, sample by sample: the first that met it, as the number of probes is doubled."""

    result: LogDet
    done: Array

    @classmethod
    def with_further(cls, xp: Any, found: "Found | None", result: LogDet, tol: float) -> "Found":
        """Take a later answer where none has met the tolerance, or what its own bias leaves of it."""
        met = result.std_error <= xp.maximum(result.bias_bound, xp.full_like(result.bias_bound, tol))
        if found is None:
            return cls(result, met)
        return cls(merged(xp, found.done, found.result, result), found.done | met)

    def are_all(self, xp: Any) -> bool:
        """Whether all samples have met the tolerance."""
        return bool(xp.all(self.done))

    def or_exact(self, problem: Problem) -> LogDet:
        """Return the exact answer for the samples that have not met the tolerance."""
        exact = EXACT.answer(problem)[1]
        assert exact is not None
        method = f"{self.result.method}+{exact.method}"
        return merged(problem.backend.xp, self.done, self.result, exact)._replace(method=method)


def merged(xp: Any, done: Array, first: LogDet, second: LogDet) -> LogDet:
    """Return the first answer where it is done, else the second."""
    return second._replace(
        **{name: xp.where(done, getattr(first, name), getattr(second, name)) for name in LogDet._fields[:4]}
    )


def too_many_probes(
    method: str, request: Request, goal: int, probes: int, result: LogDet, backend: Backend
) -> NotConvergedError:
    """What is said where a tolerance would take more probes than `MOST_PROBES`."""
    xp = backend.xp
    return NotConvergedError(
        f"logdet: tol={request.tol:g} nats would take {goal} probes of method {method!r} (std_error "
        f"{float(xp.max(result.std_error)):.3g}, bias_bound {float(xp.max(result.bias_bound)):.3g} after {probes}). "
        "Raise tol, or use method='exact' (or 'auto')."
    )


def above_its_floor(backend: Backend, result: LogDet, tol: float) -> LogDet:
    """Say so where the rounding is above the tolerance."""
    bias = float(backend.xp.max(result.bias_bound))
    if bias <= tol:
        return result
    return result._replace(reason=f"the rounding in bias_bound, {bias:.2g} nats, is above tol={tol:g}")


def next_goal(backend: Backend, result: LogDet, probes: int, source: ProbeSource, request: Request) -> int:
    """How many probes the tolerance needs in all, judged by the sample that needs most.

    Where the bias is above the tolerance, no number of probes meets it, and the noise need not be below the bias.
    """
    assert request.tol is not None
    worst = float(backend.xp.max(result.std_error))
    tol = max(request.tol, float(backend.xp.max(result.bias_bound)))
    if worst <= tol:
        return probes
    needed = math.ceil(1.2 * probes * (worst / tol) ** 2)
    needed = max(needed, probes + 1)
    order = source.exhausted_after
    if order is not None and probes < order and request.terms is None:
        # A full set of Hadamard rows has no noise left; below that the correction helps.
        corrected = math.ceil(needed / (1 + needed / order))
        needed = min(order, max(corrected, probes + 1))
    return needed
