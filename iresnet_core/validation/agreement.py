"""Agreement of the backends in `iresnet validate`: every method once more on each, on the same noise, beside NumPy's.

Noise and start vectors are drawn with NumPy and passed as arrays, so that nothing but rounding can differ. What is
compared, and relative to what, is in `QUANTITIES`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.backends import Array
from iresnet_core.backends import backend as find_backend
from iresnet_core.determinant import logdet
from iresnet_core.inverse import SOLVERS, invert
from iresnet_core.lipschitz import lipschitz_bound, normalize, spectral_norm
from iresnet_core.validation.case_table import problem_class
from iresnet_core.validation.methods import ESTIMATORS, SPECTRAL_METHODS
from iresnet_core.validation.problem import cut_convolution
from iresnet_core.validation.records import FIELDS, Floats, Record

__all__ = ["COUNTS", "DTYPES", "LIMITS", "QUANTITIES", "REFERENCE", "compare_backends", "compared", "disagreeing"]

REFERENCE = "numpy"
DTYPES = ("float64", "float32")
LIMITS = {"float64": 1e-10, "float32": 1e-4}
# Far above the rounding, so that no sample stops a step earlier or later because of it.
RTOL = 1e-6
CAP = 0.5  # of the normalised branch; below the constants of the shipped ones, so that there is something to scale

# The quantities that are compared, and the number by which the largest difference in each is divided.
QUANTITIES = {
    "value": "its own largest entry",
    "left": "what rounding is multiplied by: sigma_1 / (sigma_1 - sigma_2)",
    "right": "what rounding is multiplied by: sigma_1 / (sigma_1 - sigma_2)",
    "std_error": "its own largest entry",
    "jvp": "its own largest entry",
    "vjp": "its own largest entry",
    "trace": "its own largest entry",
    "residual": "the largest entry of the value",
    "error_bound": "the largest entry of the value",
    "bias_bound": "the largest entry of the value",
    "iterations": "nothing: a count",
    "products": "nothing: a count",
}
COUNTS = frozenset(("iterations", "products"))
VECTORS = ("left", "right")

Answer = dict[str, Floats]


class Noise:
    """Everything random about one branch, drawn with NumPy in float64."""

    def __init__(self, exact: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shape = exact.x.shape
        constant = exact.chain.lipschitz
        self.starts = [rng.standard_normal(layer.shape[0]) for layer in exact.chain.operators]
        self.first = rng.standard_normal(shape)
        self.tangents = rng.standard_normal((2, *shape))
        probes = max(setting.probes for setting in ESTIMATORS)
        self.probes = {
            "rademacher": rng.choice([-1.0, 1.0], size=(probes, *shape)),
            "gaussian": rng.standard_normal((probes, *shape)),
        }
        self.lengths = [int(n) - 1 for n in rng.geometric(1 - constant, size=probes)]


@dataclass(frozen=True)
class Trial:
    """One case on one backend, with its share of the noise; a flow takes none."""

    problem: Any
    noise: Any

    def array(self, values: Floats) -> Array:
        """Send noise to the backend, in the dtype of the problem."""
        return self.problem.backend.from_numpy(values.astype(self.problem.dtype), self.problem.x)

    def answer(self, result: Any) -> Answer:
        """Copy the fields of a result that are compared."""
        fields = result._asdict() if hasattr(result, "_asdict") else result
        return {name: self.problem.host(array) for name, array in fields.items() if name in QUANTITIES}


def _spectral_norms(trial: Trial) -> Iterator[tuple[str, Answer]]:
    for method in SPECTRAL_METHODS:
        answers = []
        for layer, start in zip(trial.problem.chain.operators, trial.noise.starts, strict=True):
            answer = trial.answer(spectral_norm(layer, method=method, start=trial.array(start)))
            # A pair of singular vectors is known up to their common sign, which no start decides for an SVD.
            sign = np.sign(answer["left"][np.argmax(np.abs(answer["left"]))])
            gap = _relative_gap(trial.problem.host(layer.matrix()))
            answers.append(answer | {side: sign * gap * answer[side] for side in VECTORS})
        yield method, _joined(answers)


def _relative_gap(matrix: Floats) -> float:
    """Distance between the two largest singular values, relative to the larger one."""
    first, second, *_ = (*np.linalg.svd(matrix)[1], 0.0)
    return float((first - second) / first)


def _lipschitz_bounds(trial: Trial) -> Iterator[tuple[str, Answer]]:
    layers = trial.problem.chain.operators
    for method in trial.problem.bound_methods:
        rng = np.random.default_rng(trial.problem.seed)  # of NumPy, so that every backend has the same start
        yield method, _joined([trial.answer(lipschitz_bound(layer, method=method, rng=rng)) for layer in layers])
    convolution = cut_convolution(trial.problem)
    if convolution is not None:
        yield "fft, 3x3 kernel", trial.answer(lipschitz_bound(convolution, method="fft"))
    yield "block constant", {"value": np.array([trial.problem.chain.lipschitz])}


def _normalized(trial: Trial) -> Iterator[tuple[str, Answer]]:
    scaled = normalize(trial.problem.chain, CAP)
    yield "branch", _joined([trial.answer({"value": layer.weight}) for layer in scaled.operators])


def _branches(trial: Trial) -> Iterator[tuple[str, Answer]]:
    at = trial.problem.chain.linearize(trial.problem.x)
    tangent, cotangent = map(trial.array, trial.noise.tangents)
    answer = {"value": at.value, "vjp": at.vjp(cotangent)}
    if at.jvp is not None:
        answer["jvp"] = at.jvp(tangent)
    if at.trace is not None:
        answer["trace"] = at.trace()
    yield "chain", trial.answer(answer)


def _inverses(trial: Trial) -> Iterator[tuple[str, Answer]]:
    y = trial.problem.x + trial.problem.chain(trial.problem.x)
    start = trial.array(trial.noise.first)
    for solver in SOLVERS:
        result = invert(trial.problem.chain, y, solver=solver, rtol=RTOL, start=start, on_failure="return")
        yield solver, trial.answer(result)


def _log_determinants(trial: Trial) -> Iterator[tuple[str, Answer]]:
    chain, x = trial.problem.chain, trial.problem.x
    yield "exact", trial.answer(logdet(chain, x, method="exact"))
    if trial.problem.opened is not None:
        opened, h = trial.problem.opened
        yield "exact, narrow width", trial.answer(logdet(opened, h, method="exact"))
    for setting in trial.problem.estimators:
        probes = trial.array(trial.noise.probes[setting.probe_kind][: setting.probes])
        noise = (probes, trial.noise.lengths[: setting.probes]) if setting.unbiased else probes
        yield setting.label, trial.answer(logdet(chain, x, noise=noise, **setting.options))


def _flow_inverses(trial: Trial) -> Iterator[tuple[str, Answer]]:
    result = trial.problem.flow.inverse(trial.problem.z, rtol=RTOL, on_failure="return")
    # Its bound grows with the rounding of the residuals, block after block, which is another on every backend.
    yield "default", trial.answer({"value": result.value})


def _log_densities(trial: Trial) -> Iterator[tuple[str, Answer]]:
    result = trial.problem.flow.log_prob(trial.problem.x)
    yield result.method, trial.answer(result)


# Every primitive by its name; a problem says in `primitives` which are its own.
PRIMITIVES: dict[str, Callable[[Trial], Iterator[tuple[str, Answer]]]] = {
    "spectral_norm": _spectral_norms,
    "lipschitz_bound": _lipschitz_bounds,
    "normalize": _normalized,
    "branch": _branches,
    "inverse": _inverses,
    "logdet": _log_determinants,
    "flow_inverse": _flow_inverses,
    "log_prob": _log_densities,
}


def _joined(answers: Sequence[Answer]) -> Answer:
    """Put the answers for several layers into one."""
    joined: dict[str, list[Floats]] = {}
    for answer in answers:
        for name, values in answer.items():
            joined.setdefault(name, []).append(np.ravel(values))
    return {name: np.concatenate(parts) for name, parts in joined.items()}


class _Seen(NamedTuple):
    """The largest disagreement so far, and where it was seen."""

    disagreement: float
    case: str
    samples: int


def _disagreement(name: str, answer: Answer, expected: Answer) -> float:
    """Return the largest difference as `QUANTITIES` says; infinite where one is not a number or of another shape."""
    mine, theirs = answer[name], expected[name]
    if mine.shape != theirs.shape or not (np.all(np.isfinite(mine)) and np.all(np.isfinite(theirs))):
        return float("inf")
    difference = float(np.max(np.abs(mine - theirs), initial=0.0))
    if name in COUNTS or name in VECTORS or difference == 0:
        return difference  # vectors are multiplied by the gap already
    of_value = QUANTITIES[name].endswith("of the value")
    size = float(np.max(np.abs(expected["value"] if of_value else theirs)))
    return difference / size if size > 0 else float("inf")


def compared(backends: Sequence[str]) -> list[str]:
    """Return the backends among `backends` that there is something to compare for: all but the reference."""
    return [name for name in dict.fromkeys(backends) if name != REFERENCE]


def compare_backends(
    backends: Sequence[str],
    cases: Sequence[str],
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Record]:
    """Run every method of every primitive with the same noise on each backend and on NumPy, and compare.

    Parameters
    ----------
    backends : sequence of str
        Names of backends; NumPy itself is left out.
    cases : sequence of str
        Names of cases (`iresnet_core.validation.cases()`).
    seed : int
        Seed of the noise.
    progress : callable (done, total, label), optional
        Called before each step and once at the end.

    Returns
    -------
    list of dict
        One record a primitive, method, backend, dtype and quantity, with the keys of `FIELDS`; `kind` is "agreement",
        `disagreement` the largest of all cases, and `case` where that was. Counts may differ in float32, where
        `limit` is None for them.

    Raises
    ------
    InvalidArgumentError, MissingDependencyError
        For an unknown backend or case, or a backend whose framework is absent.
    """
    others = compared(backends)
    if not others:
        return []
    seen: dict[tuple[str, ...], _Seen] = {}
    done, total = 0, len(cases) * len(DTYPES) * (len(others) + 1)
    for case in cases:
        exact = problem_class(case).exact_answers(case)
        noise = Noise(exact, seed) if "branch" in problem_class(case).primitives else None
        for dtype in DTYPES:
            expected: dict[tuple[str, str], Answer] = {}
            for name in (REFERENCE, *others):
                if progress is not None:
                    progress(done, total, f"agreement of {name}, {case}")
                answers = _answers(case, name, dtype, seed, exact, noise)
                if name == REFERENCE:
                    expected = answers
                else:
                    _keep_largest(seen, (name, dtype), case, answers, expected)
                done += 1
    if progress is not None:
        progress(done, total, "done")
    return list(_records(seen, others))


def _answers(
    case: str, backend: str, dtype: str, seed: int, exact: Any, noise: Noise | None
) -> dict[tuple[str, str], Answer]:
    """Return the answers of every method, by primitive and method."""
    with find_backend(backend).full_precision():
        trial = Trial(problem_class(case).load(case, backend, dtype, seed, exact), noise)
        return {
            (primitive, method): answer
            for primitive in trial.problem.primitives
            for method, answer in PRIMITIVES[primitive](trial)
        }


def _keep_largest(
    seen: dict[tuple[str, ...], _Seen],
    key: tuple[str, str],
    case: str,
    answers: dict[tuple[str, str], Answer],
    expected: dict[tuple[str, str], Answer],
) -> None:
    """Compare one backend with the reference at one case, and keep what is larger than at the cases before."""
    for method, answer in answers.items():
        for name in answer:
            now = _Seen(_disagreement(name, answer, expected[method]), case, expected[method][name].size)
            before = seen.get((*method, *key, name))
            seen[*method, *key, name] = now if before is None or now.disagreement > before.disagreement else before


def _records(seen: dict[tuple[str, ...], _Seen], backends: Sequence[str]) -> Iterator[Record]:
    """Turn the largest disagreements into records, backend by backend."""
    for backend in backends:
        for (primitive, method, name, dtype, quantity), largest in seen.items():
            if name != backend:
                continue
            limit = LIMITS[dtype] if quantity not in COUNTS else 0.0 if dtype == DTYPES[0] else None
            record: Record = dict.fromkeys(FIELDS)
            yield record | {
                "kind": "agreement",
                "backend": backend,
                "dtype": dtype,
                "case": largest.case,
                "primitive": primitive,
                "method": method,
                "samples": largest.samples,
                "quantity": quantity,
                "disagreement": largest.disagreement,
                "limit": limit,
            }


def disagreeing(records: Iterable[Record]) -> list[Record]:
    """Return the records of backends that differ from the reference by more than their limit."""
    return [r for r in records if r["limit"] is not None and not r["disagreement"] <= r["limit"]]
