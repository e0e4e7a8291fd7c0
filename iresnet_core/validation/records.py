"""One comparison as a record: the fields that it has, and how errors, breaches of bounds and z scores are counted."""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from iresnet_core.backends import Array, Backend

__all__ = [
    "EPS",
    "FIELDS",
    "Compared",
    "Floats",
    "Record",
    "bound_record",
    "breaches",
    "errors",
    "inverse_record",
    "record_of",
    "statistics",
    "timed",
]

Floats = NDArray[Any]  # float64 on the host
Record = dict[str, Any]


class Compared(Protocol):
    """A problem whose answers are compared: its name, its dtype, and the way from its backend to the host."""

    @property
    def backend(self) -> Backend:
        """The backend that answers."""

    @property
    def case(self) -> str:
        """Name of the case."""

    @property
    def dtype(self) -> str:
        """Dtype of weights and inputs."""

    def host(self, x: Array) -> Floats:
        """Copy to NumPy float64."""


FIELDS: dict[str, str] = {
    "kind": "accuracy (compared with the exact answer) or agreement (with the same method on NumPy)",
    "backend": "backend",
    "dtype": "of weights and inputs",
    "case": "branch, d<dimension>_c<block constant>, the convolutions or the flow; for agreement the worst one",
    "primitive": "spectral_norm, lipschitz_bound, inverse, logdet, flow_inverse or log_prob; for agreement also "
    "normalize and branch",
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

EPS = float(np.finfo(np.float64).eps)
_ERROR_BAR = 5.0


def record_of(problem: Compared, primitive: str, method: str, **known: Any) -> Record:
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


def errors(error: Floats) -> dict[str, Any]:
    """Count the errors, and return the largest and the root mean square."""
    error = np.asarray(error, dtype=np.float64)
    return {
        "samples": error.size,
        "max_abs_error": float(np.max(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
    }


def breaches(error: Floats, bound: Floats, rounding: Floats | float) -> int:
    """Count the errors above their bound; NaN on either side is a breach. `rounding` is the reference's own error."""
    return int(np.sum(~(np.abs(error) <= bound + rounding)))


def timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Call a function, and return its result with the wall time."""
    begin = time.perf_counter()
    result = call(*arguments, **options)
    return result, time.perf_counter() - begin


def bound_record(
    problem: Compared, method: str, value: Floats, exact: Floats, rounding: Floats, **known: Any
) -> Record:
    """Compare bounds on norms with the exact norms, which have the error `rounding`."""
    return record_of(
        problem,
        "lipschitz_bound",
        method,
        **errors(value - exact),
        max_certified_error=float(np.max(value - exact)),
        max_bound=float(np.max(value)),
        bound_violations=int(np.sum(~(value >= exact - rounding))),
        **known,
    )


def inverse_record(problem: Compared, primitive: str, method: str, result: Any, root: Floats, seconds: float) -> Record:
    """Compare an inverse and its bound with the exact root, which is rounded to float64."""
    error = np.linalg.norm((problem.host(result.value) - root).reshape(len(root), -1), axis=1)
    bound = problem.host(result.error_bound)
    rounding = 2 * EPS * np.linalg.norm(root.reshape(len(root), -1), axis=1)
    return record_of(
        problem,
        primitive,
        method,
        **errors(error),
        certificate="certified",
        max_certified_error=float(np.max(error)),
        max_bound=float(np.max(bound)),
        bound_violations=breaches(error, bound, rounding),
        products=int(np.max(problem.backend.to_numpy(result.iterations))),
        seconds=seconds,
        converged=bool(np.all(problem.backend.to_numpy(result.converged))),
    )


def statistics(error: Floats, std_error: Floats, bias: Floats) -> dict[str, Any]:
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
