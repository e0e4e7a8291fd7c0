"""The comparisons of `iresnet validate`: every method of every primitive on one problem, as records.

A certificate is checked sample by sample against the exact answer; each breach counts as a violation. A randomised
log-determinant is checked twice: its truncation, for the very probes that were used, against `bias_bound`, and its mean
over the batch against its standard error.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from iresnet_core import reference
from iresnet_core.branches import Chain
from iresnet_core.determinant import logdet
from iresnet_core.inverse import SOLVERS, invert
from iresnet_core.lipschitz import lipschitz_bound, spectral_norm
from iresnet_core.operators import Dense
from iresnet_core.validation.methods import BOUND_METHODS, ESTIMATORS, SPECTRAL_METHODS, TOLERANCES, Setting
from iresnet_core.validation.problem import Floats, Problem, cut_convolution

__all__ = ["CHECKS", "FIELDS", "Record"]

Record = dict[str, Any]

FIELDS: dict[str, str] = {
    "kind": "accuracy (compared with the exact answer) or agreement (with the same method on NumPy)",
    "backend": "backend",
    "dtype": "of weights and inputs",
    "case": "trained branch, d<dimension>_c<block constant>; for agreement the one that agrees least",
    "primitive": "spectral_norm, lipschitz_bound, inverse or logdet; for agreement also normalize and branch",
    "method": "method and its settings",
    "certificate": "exact, certified, lower bound, probabilistic, or unbiased (no bound on one answer)",
    "samples": "answers that were compared: inputs, or layers of the branch",
    "max_abs_error": "largest |answer - exact|; for bounds their excess over the exact norm",
    "rmse": "root mean square of the same",
    "max_certified_error": "largest error of the part that the bound is about: without the noise of the probes",
    "max_bound": "largest certified bound",
    "bound_violations": "answers whose error exceeds their own bound",
    "products": "largest number per answer of operator or Jacobian products; evaluations of g for the inverse",
    "seconds": "wall time of the whole batch, first call",
    "probes": "random probes per sample",
    "std_error": "mean standard error, in nats",
    "z": "mean error over the batch divided by its standard error",
    "spread": "rms error divided by the rms standard error; 1 where the standard error is right",
    "within_error_bar": "whether the mean error is within 5 standard errors and the mean bias bound",
    "bias_bound": "mean certified bias, in nats",
    "converged": "whether every answer says that it met its tolerance or the floor of the dtype",
    "quantity": "agreement: what was compared, a field of the answer",
    "disagreement": "agreement: largest difference relative to the size of the answer; of counts, the difference",
    "limit": "agreement: what the disagreement must not exceed",
}

_EPS = float(np.finfo(np.float64).eps)
_ERROR_BAR = 5.0


def _record(problem: Problem, primitive: str, method: str, **known: Any) -> Record:
    """Fill in the keys that the record does not have."""
    record: Record = dict.fromkeys(FIELDS)
    record |= {
        "kind": "accuracy",
        "backend": problem.backend.name,
        "dtype": problem.dtype,
        "case": problem.case,
        "primitive": primitive,
        "method": method,
    }
    unknown = set(known) - set(FIELDS)
    if unknown:
        raise KeyError(f"no such field: {sorted(unknown)}")
    return record | {key: _plain(value) for key, value in known.items()}


def _plain(value: Any) -> Any:
    """Return a Python number instead of a NumPy scalar."""
    return value.item() if isinstance(value, np.generic) else value


def _errors(error: Floats) -> dict[str, Any]:
    error = np.asarray(error, dtype=np.float64)
    return {
        "samples": error.size,
        "max_abs_error": float(np.max(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
    }


def _breaches(error: Floats, bound: Floats, rounding: Floats | float) -> int:
    """Count the errors above their bound; NaN on either side is a breach. `rounding` is the reference's own error."""
    return int(np.sum(~(np.abs(error) <= bound + rounding)))


def _timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call(*arguments, **options)
    return result, time.perf_counter() - begin


def _each(call: Callable[..., Any], operators: Sequence[Any], **options: Any) -> list[Any]:
    return [call(operator, **options) for operator in operators]


def _check_spectral_norm(problem: Problem) -> Iterator[Record]:
    """Estimates from below, on each layer: not above the norm, and a singular value within `residual`."""
    layers = problem.chain.operators
    spectra = [np.linalg.svd(reference.matrix(layer), compute_uv=False) for layer in layers]
    exact = np.array([float(reference.spectral_norm(layer)) for layer in layers])
    rounding = np.array([max(layer.shape) for layer in layers]) * _unit(problem) * exact
    for method in SPECTRAL_METHODS:
        results, seconds = _timed(_each, spectral_norm, layers, method=method)
        value = np.array([float(result.value) for result in results])
        residual = np.array([float(result.residual) for result in results])
        nearest = np.array([np.min(np.abs(s - v)) for s, v in zip(spectra, value, strict=True)])
        above = _breaches(np.maximum(value - exact, 0), np.zeros_like(value), rounding)
        yield _record(
            problem,
            "spectral_norm",
            method,
            **_errors(value - exact),
            certificate="lower bound",
            max_certified_error=float(np.max(nearest)),
            max_bound=float(np.max(residual)),
            bound_violations=above + _breaches(nearest, residual, rounding),
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
    checks = [(method, method, layers) for method in BOUND_METHODS]
    if convolution is not None:
        checks.append(("fft", "fft, 3x3 kernel", (convolution,)))
    exact_of = {id(layer): float(reference.spectral_norm(layer)) for _, _, group in checks for layer in group}
    for method, label, group in checks:
        results, seconds = _timed(_each, lipschitz_bound, group, method=method, rng=problem.seed)
        exact = np.array([exact_of[id(layer)] for layer in group])
        # The SVD of the reference has a backward error of its own.
        rounding = np.array([max(layer.shape) for layer in group]) * _EPS * exact
        yield _bound_record(
            problem,
            label if results[0].method == method else f"{label} ({results[0].method})",
            np.array([float(result.value) for result in results]),
            exact,
            rounding,
            certificate=results[0].certificate,
            seconds=seconds,
        )
    norms = np.array([float(reference.spectral_norm(J)) for J in problem.exact.jacobian])
    constant, seconds = _timed(getattr, problem.chain, "lipschitz")
    yield _bound_record(
        problem,
        "block constant",
        np.full_like(norms, constant),
        norms,
        norms.size * _EPS * norms,
        certificate="certified",
        seconds=seconds,
    )


def _bound_record(
    problem: Problem, method: str, value: Floats, exact: Floats, rounding: Floats, **known: Any
) -> Record:
    return _record(
        problem,
        "lipschitz_bound",
        method,
        **_errors(value - exact),
        max_certified_error=float(np.max(value - exact)),
        max_bound=float(np.max(value)),
        bound_violations=int(np.sum(~(value >= exact - rounding))),
        **known,
    )


def _check_inverse(problem: Problem) -> Iterator[Record]:
    """Each solver at each tolerance, against Newton's method."""
    for solver in SOLVERS:
        for rtol in TOLERANCES:
            result, seconds = _timed(invert, problem.chain, problem.y, solver=solver, rtol=rtol, on_failure="return")
            error = np.linalg.norm(problem.host(result.value) - problem.root, axis=1)
            bound = problem.host(result.error_bound)
            # The reference is the exact root rounded to float64.
            rounding = 2 * _EPS * np.linalg.norm(problem.root, axis=1)
            yield _record(
                problem,
                "inverse",
                f"{solver}, rtol {rtol:.0e}",
                **_errors(error),
                certificate="certified",
                max_certified_error=float(np.max(error)),
                max_bound=float(np.max(bound)),
                bound_violations=_breaches(error, bound, rounding),
                products=int(np.max(problem.backend.to_numpy(result.iterations))),
                seconds=seconds,
                converged=bool(np.all(problem.backend.to_numpy(result.converged))),
            )


def _check_exact_logdet(problem: Problem) -> Iterator[Record]:
    """Compare the dense determinant, and the one through the narrowest width."""
    result, seconds = _timed(logdet, problem.chain, problem.x, method="exact")
    yield _exact_logdet_record(problem, "exact", result, problem.exact.logdet, seconds)
    # The chain opened after its first layer has the same determinant by Sylvester's identity, but acts on the wide
    # hidden layer, so that "exact" has to find the narrow one.
    first, *rest = problem.chain.layers
    opened, h = Chain([*rest, Dense(problem.chain.operators[0].weight)]), first(problem.x)
    result, seconds = _timed(logdet, opened, h, method="exact")
    yield _exact_logdet_record(problem, "exact, narrow width", result, reference.logdet(opened, h), seconds)


def _exact_logdet_record(problem: Problem, method: str, result: Any, exact: Floats, seconds: float) -> Record:
    error = problem.host(result.value) - exact
    bias = problem.host(result.bias_bound)
    return _record(
        problem,
        "logdet",
        method,
        **_errors(error),
        certificate="certified",
        max_certified_error=float(np.max(np.abs(error))),
        max_bound=float(np.max(bias)),
        bound_violations=_breaches(error, bias, _rounding(problem)),
        bias_bound=float(np.mean(bias)),
        products=int(np.max(problem.backend.to_numpy(result.products))),
        seconds=seconds,
    )


def _rounding(problem: Problem) -> float:
    """Error of the reference itself, LU or logm: a few roundings for each of d eigenvalues, times the condition."""
    return 100 * _EPS * int(problem.exact.x.shape[1])


def _check_estimators(problem: Problem) -> Iterator[Record]:
    """Randomised log-determinants: truncation for given probes, and the mean against the standard error."""
    for setting in ESTIMATORS:
        result, seconds = _timed(
            logdet, problem.chain, problem.x, probes=setting.probes, rng=problem.seed, **setting.options
        )
        value, std_error, bias = map(problem.host, (result.value, result.std_error, result.bias_bound))
        if setting.unbiased:
            value, std_error = _one_by_one(problem, setting)
            known: dict[str, Any] = {"certificate": "unbiased", "bound_violations": 0}
        else:
            known = _truncation(problem, setting)
        error = value - problem.exact.logdet
        yield _record(
            problem,
            "logdet",
            setting.label,
            **_errors(error),
            **_statistics(error, std_error, bias),
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
        "bound_violations": _breaches(truncation, bound, _rounding(problem)),
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


def _statistics(error: Floats, std_error: Floats, bias: Floats) -> dict[str, Any]:
    """Mean error of the batch in units of its standard error; the samples have independent probes."""
    of_mean = math.sqrt(float(np.sum(std_error**2))) / error.size
    mean = float(np.mean(error))
    slack = float(np.mean(bias)) + 1e-12  # rounding of the exact value
    return {
        "std_error": float(np.mean(std_error)),
        "z": mean / of_mean if of_mean > 0 else None,
        "spread": math.sqrt(float(np.mean(error**2)) / float(np.mean(std_error**2))) if of_mean > 0 else None,
        "within_error_bar": bool(abs(mean) <= _ERROR_BAR * of_mean + slack),
    }


CHECKS: dict[str, Callable[[Problem], Iterator[Record]]] = {
    "spectral norm": _check_spectral_norm,
    "Lipschitz bound": _check_lipschitz_bound,
    "inverse": _check_inverse,
    "exact log-determinant": _check_exact_logdet,
    "log-determinant estimators": _check_estimators,
}
