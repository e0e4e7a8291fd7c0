"""Error against work, for the plots of `iresnet validate --report`: how each method gets to its answer."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from iresnet_core import reference
from iresnet_core.backends import backend as find_backend
from iresnet_core.determinant import logdet
from iresnet_core.example_data import cases as shipped_cases
from iresnet_core.inverse import invert
from iresnet_core.lipschitz import lipschitz_bound, spectral_norm
from iresnet_core.validation.methods import NOISE, TRUNCATIONS
from iresnet_core.validation.problem import Problem
from iresnet_core.validation.records import Floats

__all__ = ["error_curves"]

Curves = dict[str, Any]

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
EVALUATIONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64)
PRODUCTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
PROBES = (1, 2, 4, 8, 16, 32)  # 64 of them would be all of the rows there are at d = 64, and exact
# Newton's method is left out: an evaluation of g is a small part of what one of its steps takes.
PLOTTED_SOLVERS = ("picard", "anderson")
PLOTTED_BOUNDS = ("frobenius", "holder", "gram", "cholesky", "svd")


def error_curves(
    backend: str = "numpy",
    cases: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Curves:
    """Compute the data of all plots.

    Parameters
    ----------
    backend : str
        Name of a backend.
    cases : sequence of str
        Names of cases; those that are no shipped branches have no curves.
    seed : int
        Seed of the probes.
    progress : callable (done, total, label), optional
        Called before each step.

    Returns
    -------
    dict
        ``{"spectral": {case: ...}, "inverse": {case: ...}, "logdet": {case: ...}, "dimension": {case: d}}`` with plain
        lists of numbers; the functions below say what each part holds.
    """
    parts: dict[str, Callable[[Problem], Curves]] = {
        "spectral": _spectral,
        "inverse": _inverse,
        "logdet": _log_determinant,
    }
    result: Curves = {name: {} for name in (*parts, "dimension")}
    cases = [case for case in cases if case in shipped_cases()]
    done, total = 0, len(cases) * len(parts)
    for case in cases:
        with find_backend(backend).full_precision():
            problem = Problem.load(case, backend, seed=seed)
            result["dimension"][case] = problem.exact.x.shape[1]
            for name, compute in parts.items():
                if progress is not None:
                    progress(done, total, f"curves, {case}: {name}")
                result[name][case] = compute(problem)
                done += 1
    return result


def _spectral(problem: Problem) -> Curves:
    """Compare the middle layer's estimates after k steps, and its certificates, with its exact norm.

    ``{"estimates": {method: {"products", "relative"}}, "bounds": {method: relative}}``.
    """
    layer = problem.chain.operators[1]
    exact = float(reference.spectral_norm(layer))
    estimates = {}
    for method in ("power", "lanczos"):
        steps = [k for k in STEPS if k <= min(layer.shape)]
        values = [float(spectral_norm(layer, method=method, rtol=0.0, max_iter=k).value) for k in steps]
        estimates[method] = {"products": [2 * k for k in steps], "relative": [v / exact - 1 for v in values]}
    bounds = {method: float(lipschitz_bound(layer, method=method).value) / exact - 1 for method in PLOTTED_BOUNDS}
    return {"estimates": estimates, "bounds": bounds}


def _inverse(problem: Problem) -> Curves:
    """Compute the largest error and largest certified bound of the batch after k evaluations of g.

    ``{solver: {"evaluations", "error", "bound"}}``.
    """
    result: Curves = {}
    for solver in PLOTTED_SOLVERS:
        evaluations, errors, bounds = [], [], []
        for k in EVALUATIONS:
            answer = invert(
                problem.chain, problem.y, solver=solver, rtol=0.0, atol=0.0, max_iter=k, on_failure="return"
            )
            error = np.linalg.norm(problem.host(answer.value) - problem.root, axis=1)
            evaluations.append(int(np.max(problem.backend.to_numpy(answer.iterations))))
            errors.append(float(np.max(error)))
            bounds.append(float(np.max(problem.host(answer.error_bound))))
            if len(evaluations) > 1 and evaluations[-1] == evaluations[-2]:
                break  # at the floor of the dtype
        result[solver] = {"evaluations": evaluations, "error": errors, "bound": bounds}
    return result


def _log_determinant(problem: Problem) -> Curves:
    """Compute the truncation of one probe and the noise of the answer, against products.

    ``{"truncation": {method: {"products", "error", "bound"}}, "noise": {method: {"products", "rmse"}}}``; error and
    bound are the largest of the batch, rmse over the batch, all in nats.
    """
    noise = problem.probes("rademacher", 1)
    truncation = {}
    for setting in TRUNCATIONS:
        products, errors, bounds = [], [], []
        for m in PRODUCTS:
            answer, exact = problem.given(noise, setting.with_terms(m))
            products.append(m)
            errors.append(float(np.max(np.abs(problem.host(answer.value) - exact))))
            bounds.append(float(np.max(problem.host(answer.bias_bound))))
        truncation[setting.label] = {"products": products, "error": errors, "bound": bounds}
    variance = {}
    for setting in NOISE:
        spent: list[float] = []
        rmse = []
        for count in _up_to(PROBES, problem.exact.x.shape[1]):
            answer = logdet(problem.chain, problem.x, probes=count, rng=problem.seed, **setting.options)
            spent.append(float(np.mean(problem.backend.to_numpy(answer.products))))
            rmse.append(_rms(problem.host(answer.value) - problem.exact.logdet))
        variance[setting.label] = {"products": spent, "rmse": rmse}
    return {"truncation": truncation, "noise": variance}


def _up_to(values: Iterable[int], largest: int) -> list[int]:
    return [value for value in values if value <= largest]


def _rms(error: Floats) -> float:
    return float(np.sqrt(np.mean(error**2)))
