"""Stochastic log-determinants: as many probes as asked for, or as a tolerance needs."""

import math

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import Linearization
from iresnet_core.common import flatten
from iresnet_core.determinant.estimator import Estimator, Sums
from iresnet_core.determinant.probes import ExplicitProbes, ProbeSource, make_source
from iresnet_core.determinant.request import Request, given_lengths, given_probes, refuse_tolerance
from iresnet_core.errors import InvalidArgumentError, NotConvergedError
from iresnet_core.results import LogDet

__all__ = ["FEWEST_PROBES", "stochastic_logdet"]

# Products of Arnoldi's method where nobody looks at its errors.
UNSEEN_PRODUCTS = 4
# A tolerance is not believed to be met by fewer probes than this: all of fewer may miss a dominating direction.
FEWEST_PROBES = 8
# Probes x samples that are worked on at a time.
CHUNK = 2**12
# Probes at which a tolerance is given up.
MOST_PROBES = 2**14


def stochastic_logdet(
    backend: Backend, linearization: Linearization, x: Array, constant: float, method: str, request: Request
) -> LogDet | None:
    """Estimate the log-determinant; None if the tolerance costs more than the exact answer (``give_up_at``)."""
    xp = backend.xp
    flat = flatten(xp, x)
    if method == "arnoldi" and not request.errors and request.terms is None:
        request = request._replace(terms=min(UNSEEN_PRODUCTS, flat.shape[1]))
    if backend.is_tracing(x, linearization.value):  # before anything is drawn, which may fail there for a lesser reason
        refuse_tolerance(request)
    estimator = Estimator(backend, linearization, x, constant, method, request)
    source, count = _source(backend, x, flat, estimator, request)
    # A batch of unknown size is worked on as a whole.
    batch = max(1, x.shape[0]) if backend.knows_size(x.shape[0]) else 1
    sums: Sums | None = None
    goal = count if request.tol is None else max(count, FEWEST_PROBES)
    while True:
        while sums is None or sums.probes < goal:
            done = 0 if sums is None else sums.probes
            step = goal if isinstance(source, ExplicitProbes) else min(goal - done, max(1, CHUNK // batch))
            sums = estimator.add(sums, source.draw(step), source.kind)
        result = estimator.result(sums, source)
        if request.tol is None:
            return result
        goal = _next_goal(backend, result, sums, source, request)
        if goal <= sums.probes:
            return result
        cost = goal * sums.products / sums.probes
        if request.give_up_at is not None and cost > request.give_up_at:
            return None
        if goal > MOST_PROBES:
            raise NotConvergedError(
                f"logdet: tol={request.tol:g} nats would take {goal} probes of method {method!r} (std_error "
                f"{float(xp.max(result.std_error)):.3g}, bias_bound {float(xp.max(result.bias_bound)):.3g} after "
                f"{sums.probes}). Raise tol, or use method='exact' (or 'auto')."
            )


def _next_goal(backend: Backend, result: LogDet, sums: Sums, source: ProbeSource, request: Request) -> int:
    """How many probes the tolerance needs in all, judged by the sample that needs most."""
    xp = backend.xp
    assert request.tol is not None
    worst = float(xp.max(result.std_error))
    if worst <= request.tol:
        return sums.probes
    needed = math.ceil(1.2 * sums.probes * (worst / request.tol) ** 2)
    needed = max(needed, sums.probes + 1)
    order = source.exhausted_after
    if order is not None and sums.probes < order and request.terms is None:
        # A full set of Hadamard rows has no noise left; below that the correction helps.
        corrected = math.ceil(needed / (1 + needed / order))
        needed = min(order, max(corrected, sums.probes + 1))
    return needed


def _source(backend: Backend, x: Array, flat: Array, estimator: Estimator, request: Request) -> tuple[ProbeSource, int]:
    """Where the probes come from, and how many to begin with."""
    if request.noise is None:
        rng = backend.generator(request.rng)
        estimator.request = request._replace(rng=rng)
        return make_source(backend, request.probe_kind, flat, rng), request.probes
    noise = request.noise
    if estimator.roulette is not None:
        if not (isinstance(noise, tuple) and len(noise) == 2):
            raise InvalidArgumentError(
                "for an unbiased answer, and so for method 'roulette', noise is a pair (probes, lengths)."
            )
        noise, lengths = noise
        estimator.lengths = given_lengths(lengths)
    probes = given_probes(backend, x, noise, request.probes, estimator.method)
    if estimator.lengths is not None:
        if len(estimator.lengths) != probes.shape[0] or min(estimator.lengths) < 0:
            raise InvalidArgumentError(
                f"lengths must hold one number >= 0 for each of the {probes.shape[0]} probes, got {estimator.lengths}."
            )
        order = sorted(range(len(estimator.lengths)), key=lambda i: -estimator.lengths[i])  # type: ignore[index]
        probes = backend.xp.stack([probes[i, ...] for i in order])
        estimator.lengths = [estimator.lengths[i] for i in order]
    return ExplicitProbes(probes, request.probe_kind), probes.shape[0]  # type: ignore[arg-type]
