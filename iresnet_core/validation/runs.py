"""The run over backends, dtypes and trained branches, which collects the records of all checks.

`methods` lists the methods, `cases` the problems with their exact answers. `checks` compares methods with those
answers and `agreement` backends with NumPy, both as records. `summary` puts records into words,
`report` into a page with plots of the `curves`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.validation.agreement import compare_backends, disagreeing
from iresnet_core.validation.case_table import cases as all_cases
from iresnet_core.validation.case_table import problem_class
from iresnet_core.validation.checks import CHECKS
from iresnet_core.validation.records import FIELDS, Record

__all__ = [
    "FIELDS",
    "Progress",
    "Record",
    "ValidationJob",
    "compare_backends",
    "disagreeing",
    "run",
    "steps_of",
    "violated",
]

Progress = Callable[[int, int, str], None]


def steps_of(backends: Sequence[str], cases: Sequence[str], dtypes: Sequence[str]) -> int:
    """Return how many steps `run` reports to its progress callback."""
    return len(backends) * len(dtypes) * sum(len(problem_class(case).checks) for case in cases)


def run(
    backends: Sequence[str] = ("numpy",),
    cases: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    dtypes: Sequence[str] = ("float64",),
) -> list[Record]:
    """Run every method of every primitive and compare with the exact answers.

    Parameters
    ----------
    backends : sequence of str
        Names of backends.
    cases : sequence of str, optional
        Names of cases (`iresnet_core.validation.cases()`); default all.
    seed : int
        Seed of the probes.
    progress : callable (done, total, label), optional
        Called before each step and once at the end.
    dtypes : sequence of {"float64", "float32"}
        Dtypes to run in.

    Returns
    -------
    list of dict
        One record a method and case, with the keys of `FIELDS`.

    Raises
    ------
    InvalidArgumentError, MissingDependencyError
        For an unknown backend, case or dtype, or a backend whose framework is absent.
    """
    cases = all_cases() if cases is None else cases
    if seed < 0:
        raise InvalidArgumentError(f"seed={seed}: a seed must not be negative.")
    plan = [(backend, dtype, case) for backend in backends for dtype in dtypes for case in cases]
    total, done = steps_of(backends, cases, dtypes), 0
    records: list[Record] = []
    answers: dict[str, Any] = {}
    for backend, dtype, case in plan:
        if case not in answers:
            answers[case] = problem_class(case).exact_answers(case)
        with find_backend(backend).full_precision():
            problem = problem_class(case).load(case, backend, dtype, seed, answers[case])
            for name in problem.checks:
                if progress is not None:
                    progress(done, total, f"{backend} {case}: {name}")
                records.extend(CHECKS[name](problem))
                done += 1
    if progress is not None:
        progress(done, total, "done")
    return records


@dataclass(frozen=True)
class ValidationJob:
    """The same in parts that know nothing of each other: those of a case, backend and dtype, and the agreement.

    Attributes
    ----------
    backends, cases, dtypes : tuple of str
        As in `run`.
    seed : int
        Of the probes.
    """

    backends: tuple[str, ...]
    cases: tuple[str, ...]
    dtypes: tuple[str, ...]
    seed: int

    @property
    def parts(self) -> list[tuple[str, str, str]]:
        """Backend, dtype and case of each part that `run` does; one more is all of `compare_backends`."""
        return [(name, dtype, case) for name in self.backends for dtype in self.dtypes for case in self.cases]

    @property
    def count(self) -> int:
        """Number of the parts."""
        return len(self.parts) + 1

    def identity(self) -> dict[str, Any]:
        """Return what the records depend on."""
        return {"job": "validate", **asdict(self)}

    def chunk(self, k: int) -> list[Record]:
        """Return the records of part k."""
        if k == len(self.parts):
            return compare_backends(self.backends, self.cases, self.seed)
        name, dtype, case = self.parts[k]
        return run([name], [case], self.seed, None, [dtype])


def violated(records: Iterable[Record]) -> list[Record]:
    """Return the records with a bound that was certified, not merely probable, and did not hold."""
    return [r for r in records if r["bound_violations"] and r["certificate"] != "probabilistic"]
