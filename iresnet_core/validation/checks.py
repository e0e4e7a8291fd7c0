"""The comparisons of `iresnet validate`: every method of every primitive on one problem, as records.

A certificate is checked sample by sample against the exact answer; each breach counts as a violation. A randomised
log-determinant is checked twice: its truncation, for the very probes that were used, against `bias_bound`, and its mean
over the batch against its standard error.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from iresnet_core import reference
from iresnet_core.determinant import logdet
from iresnet_core.inverse import SOLVERS, invert
from iresnet_core.lipschitz import lipschitz_bound, spectral_norm
from iresnet_core.validation.flow_problem import FlowProblem
from iresnet_core.validation.methods import SPECTRAL_METHODS, TOLERANCES, Setting
from iresnet_core.validation.problem import Problem, cut_convolution
from iresnet_core.validation.records import (
    EPS,
    Floats,
    Record,
    bound_record,
    breaches,
    errors,
    inverse_record,
    record_of,
    statistics,
    timed,
)

__all__ = ["CHECKS"]


def _each(call: Callable[..., Any], operators: Sequence[Any], **options: Any) -> list[Any]:
    return [call(operator, **options) for operator in operators]


def _check_spectral_norm(problem: Problem) -> Iterator[Record]:
    """Estimates from below, on each layer: not above the norm, and a singular value within `residual`."""
    layers = problem.chain.operators
    spectra = [np.linalg.svd(reference.matrix(layer), compute_uv=False) for layer in layers]
    exact = np.array([float(reference.spectral_norm(layer)) for layer in layers])
    rounding = np.array([max(layer.shape) for layer in layers]) * _unit(problem) * exact
    for method in SPECTRAL_METHODS:
        results, seconds = timed(_each, spectral_norm, layers, method=method)
        value = np.array([float(result.value) for result in results])
        residual = np.array([float(result.residual) for result in results])
        nearest = np.array([np.min(np.abs(s - v)) for s, v in zip(spectra, value, strict=True)])
        above = breaches(np.maximum(value - exact, 0), np.zeros_like(value), rounding)
        yield record_of(
            problem,
            "spectral_norm",
            method,
            **errors(value - exact),
            certificate="lower bound",
            max_certified_error=float(np.max(nearest)),
            max_bound=float(np.max(residual)),
            bound_violations=above + breaches(nearest, residual, rounding),
            products=2 * max(int(result.iterations) for result in results),
            seconds=seconds,
            converged=all(bool(result.converged) for result in results),
        )


def _unit(problem: Problem) -> float:
    """Distance from 1 to the next number of the problem's dtype."""
    return float(np.finfo(problem.dtype).eps)


def _check_lipschitz_bound(problem: Problem) -> Iterator[Record]:
    """Certificates from above: on each layer, on a convolution, and on the whole block."""
    layers: tuple[Any, ...] = problem.chain.operators
    convolution = cut_convolution(problem)
    checks = [(method, method, layers) for method in problem.bound_methods]
    if convolution is not None:
        checks.append(("fft", "fft, 3x3 kernel", (convolution,)))
    exact_of = dict(zip(map(id, layers), problem.layer_norms(), strict=True))
    if convolution is not None:
        exact_of[id(convolution)] = float(reference.spectral_norm(convolution))
    for method, label, group in checks:
        results, seconds = timed(_each, lipschitz_bound, group, method=method, rng=problem.seed)
        exact = np.array([exact_of[id(layer)] for layer in group])
        # The SVD of the reference has a backward error of its own.
        rounding = np.array([max(layer.shape) for layer in group]) * EPS * exact
        yield bound_record(
            problem,
            label if results[0].method == method else f"{label} ({results[0].method})",
            np.array([float(result.value) for result in results]),
            exact,
            rounding,
            certificate=results[0].certificate,
            seconds=seconds,
        )
    norms = np.array([float(reference.spectral_norm(J)) for J in problem.exact.jacobian])
    constant, seconds = timed(getattr, problem.chain, "lipschitz")
    yield bound_record(
        problem,
        "block constant",
        np.full_like(norms, constant),
        norms,
        norms.size * EPS * norms,
        certificate="certified",
        seconds=seconds,
    )


def _check_inverse(problem: Problem) -> Iterator[Record]:
    """Each solver at each tolerance, against Newton's method."""
    for solver in SOLVERS:
        for rtol in TOLERANCES:
            result, seconds = timed(invert, problem.chain, problem.y, solver=solver, rtol=rtol, on_failure="return")
            yield inverse_record(problem, "inverse", f"{solver}, rtol {rtol:.0e}", result, problem.root, seconds)


def _check_exact_logdet(problem: Problem) -> Iterator[Record]:
    """Compare the dense determinant, and the one through the narrowest width."""
    result, seconds = timed(logdet, problem.chain, problem.x, method="exact")
    yield _exact_logdet_record(problem, "exact", result, problem.exact.logdet, seconds)
    if problem.opened is not None:
        chain, h = problem.opened
        result, seconds = timed(logdet, chain, h, method="exact")
        yield _exact_logdet_record(problem, "exact, narrow width", result, reference.logdet(chain, h), seconds)


def _exact_logdet_record(problem: Problem, method: str, result: Any, exact: Floats, seconds: float) -> Record:
    error = problem.host(result.value) - exact
    bias = problem.host(result.bias_bound)
    return record_of(
        problem,
        "logdet",
        method,
        **errors(error),
        certificate="certified",
        max_certified_error=float(np.max(np.abs(error))),
        max_bound=float(np.max(bias)),
        bound_violations=breaches(error, bias, _rounding(problem)),
        bias_bound=float(np.mean(bias)),
        products=int(np.max(problem.backend.to_numpy(result.products))),
        seconds=seconds,
    )


def _rounding(problem: Problem) -> float:
    """Error of the reference itself, LU or logm: a few roundings for each of d eigenvalues, times the condition."""
    return 100 * EPS * int(problem.exact.jacobian.shape[-1])


def _check_estimators(problem: Problem) -> Iterator[Record]:
    """Randomised log-determinants: truncation for given probes, and the mean against the standard error."""
    for setting in problem.estimators:
        result, seconds = timed(
            logdet, problem.chain, problem.x, probes=setting.probes, rng=problem.seed, **setting.options
        )
        value, std_error, bias = map(problem.host, (result.value, result.std_error, result.bias_bound))
        if setting.unbiased:
            value, std_error = _one_by_one(problem, setting)
            known: dict[str, Any] = {"certificate": "unbiased", "bound_violations": 0}
        else:
            known = _truncation(problem, setting)
        error = value - problem.exact.logdet
        yield record_of(
            problem,
            "logdet",
            setting.label,
            **errors(error),
            **statistics(error, std_error, bias),
            probes=setting.probes,
            bias_bound=float(np.mean(bias)),
            products=int(np.max(problem.backend.to_numpy(result.products))),
            seconds=seconds,
            **known,
        )


def _truncation(problem: Problem, setting: Setting) -> dict[str, Any]:
    """Compare the answer for given probes with what they give without truncation."""
    given, exact = problem.given(problem.probes(setting.probe_kind, setting.probes), setting)
    truncation, bound = problem.host(given.value) - exact, problem.host(given.bias_bound)
    return {
        "certificate": "certified",
        "max_certified_error": float(np.max(np.abs(truncation))),
        "max_bound": float(np.max(bound)),
        "bound_violations": breaches(truncation, bound, _rounding(problem)),
    }


def _one_by_one(problem: Problem, setting: Setting) -> tuple[Floats, Floats]:
    """Estimate every sample in a call of its own; in a batch the roulette's lengths, so its errors, are shared."""
    results = [
        logdet(
            problem.chain,
            problem.x[i : i + 1, ...],
            probes=setting.probes,
            rng=problem.seed + i,
            **problem.options(setting),
        )
        for i in range(problem.x.shape[0])
    ]
    value, std_error = ([float(result[part][0]) for result in results] for part in (0, 1))
    return np.array(value), np.array(std_error)


def _check_flow_inverse(problem: FlowProblem) -> Iterator[Record]:
    """Invert the whole flow, against Newton's method block by block."""
    for rtol in TOLERANCES:
        result, seconds = timed(problem.flow.inverse, problem.z, rtol=rtol, on_failure="return")
        yield inverse_record(problem, "flow_inverse", f"default, rtol {rtol:.0e}", result, problem.root, seconds)


def _check_log_density(problem: FlowProblem) -> Iterator[Record]:
    """Compare the log-density, which is exact in few dimensions, with its bound."""
    result, seconds = timed(problem.flow.log_prob, problem.x)
    error, bias = problem.host(result.value) - problem.exact.log_prob, problem.host(result.bias_bound)
    yield record_of(
        problem,
        "log_prob",
        result.method,
        **errors(error),
        certificate="certified",
        max_certified_error=float(np.max(np.abs(error))),
        max_bound=float(np.max(bias)),
        bound_violations=breaches(error, bias, problem.rounding),
        bias_bound=float(np.mean(bias)),
        products=int(np.max(problem.backend.to_numpy(result.products))),
        seconds=seconds,
    )


# Every check by its name; a problem says in `checks` which are its own.
CHECKS: dict[str, Callable[[Any], Iterator[Record]]] = {
    "spectral norm": _check_spectral_norm,
    "Lipschitz bound": _check_lipschitz_bound,
    "inverse": _check_inverse,
    "exact log-determinant": _check_exact_logdet,
    "log-determinant estimators": _check_estimators,
    "flow inverse": _check_flow_inverse,
    "log-density": _check_log_density,
}
