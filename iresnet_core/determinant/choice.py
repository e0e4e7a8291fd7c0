"""Whether "auto" takes the exact determinant or an estimate, by what the two cost on the backend at hand.

The exact answer has no noise, and is taken as long as it costs at most `WORTH` times the estimate. Both are timed on
the very branch and samples (the exact answer on as many as take little time), once a process for each kind of problem,
with the host's clock and a copy to the host, so that nothing is still under way. A program that is being compiled
cannot be timed: there `DOCUMENTED_LIMIT` holds.

Two runs that measure may choose differently where the costs are close. Where runs have to agree, ``exact_up_to`` of
`logdet` or the environment variable IRESNET_EXACT_UP_TO gives the limit, and nothing is measured. Every answer says
what was chosen, and why.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.errors import InvalidArgumentError, IResNetError

__all__ = [
    "DOCUMENTED_LIMIT",
    "ENVIRONMENT",
    "Choice",
    "Costs",
    "Kind",
    "by_cost",
    "by_limit",
    "environment_limit",
    "forget",
    "kind_of",
    "sample",
    "time_both",
]

# Order of the determinant up to which it is computed exactly where nothing may be measured.
DOCUMENTED_LIMIT = 32
# Up to this order the exact answer is as cheap as a few products, on every backend.
SMALLEST = 8
# Beyond these orders it never is, with the matrix from the branch itself and from one product a column.
LARGEST = 512
LARGEST_FROM_PRODUCTS = 64
# How often the cost of the estimate the exact answer may take, since it has no noise.
WORTH = 2.0
# Entries of the Jacobians that are made to take the time, on a CPU and on an accelerator.
ENTRIES = 2**20
ENTRIES_ACCELERATED = 2**24
# Timed runs of each, after one that is not; the shortest counts.
REPEATS = 2
ENVIRONMENT = "IRESNET_EXACT_UP_TO"

clock: Callable[[], float] = time.perf_counter


class Kind(NamedTuple):
    """What the costs depend on; sizes are rounded up to powers of two."""

    backend: str
    device: str
    dtype: str
    order: int
    d: int
    samples: int
    probes: int
    terms: int | None
    method: str
    errors: bool


class Costs(NamedTuple):
    """Seconds of the two answers, and the products a sample that the estimate took."""

    exact: float
    estimate: float
    products: int


class Choice(NamedTuple):
    """Whether to be exact, why, and the products a sample that cost as much as the exact answer."""

    exact: bool
    reason: str
    worth: int


_measured: dict[Kind, Costs] = {}
_lock = threading.Lock()


def environment_limit() -> int:
    """The limit that the environment sets, -1 for none."""
    text = os.environ.get(ENVIRONMENT, "")
    if not text:
        return -1
    if not text.isdecimal():
        raise InvalidArgumentError(f"{ENVIRONMENT} must be a whole number >= 0, got {text!r}.")
    return int(text)


def by_limit(order: int, limit: int, whose: str) -> Choice:
    """Be exact up to a given order; `whose` limit it is becomes part of the reason."""
    exact = order <= limit
    return Choice(exact, f"order {order} is {'at most' if exact else 'above'} {limit}, {whose}", order)


def by_cost(order: int, matrices: bool, kind: Kind | None, measure: Callable[[], Costs] | None) -> Choice:
    """Compare the costs of a kind of problem, which are measured if they are not known yet.

    `matrices` says whether the branch gives its Jacobian as a matrix. Without `kind` and `measure` nothing is measured.
    """
    if order <= SMALLEST:
        return by_limit(order, SMALLEST, "where the exact answer is always cheap")
    largest = LARGEST if matrices else LARGEST_FROM_PRODUCTS
    if order > largest:
        return Choice(False, f"order {order} is above {largest}, where the exact answer is always dear", order)
    if kind is None or measure is None:
        return by_limit(order, DOCUMENTED_LIMIT, "the default where nothing can be measured")
    with _lock:
        costs = _measured.get(kind)
        if costs is None:
            try:
                costs = measure()
            except IResNetError:  # the answer itself will say what is wrong
                return by_limit(order, DOCUMENTED_LIMIT, "the default, since the measurement failed")
            _measured[kind] = costs
    exact = costs.exact <= WORTH * costs.estimate
    reason = (
        f"measured for order {kind.order} and {kind.samples} samples on {kind.backend} ({kind.device}, "
        f"{kind.dtype}): exact {1e3 * costs.exact:.3g} ms, {kind.method} {1e3 * costs.estimate:.3g} ms; exact is "
        f"taken up to {WORTH:g} times that"
    )
    return Choice(exact, reason, max(1, int(costs.products * costs.exact / max(costs.estimate, 1e-12))))


def forget() -> None:
    """Forget all measurements, so that the next calls measure again."""
    with _lock:
        _measured.clear()


def sample(backend: Backend, x: Array, order: int) -> int:
    """How many of the samples x to time the exact answer with."""
    entries = ENTRIES_ACCELERATED if backend.is_accelerated(x) else ENTRIES
    return min(int(x.shape[0]), max(1, entries // (order * order)))


def kind_of(
    backend: Backend,
    x: Array,
    *,
    order: int,
    d: int,
    samples: int,
    probes: int,
    terms: int | None,
    method: str,
    errors: bool,
) -> Kind:
    """Under what the costs are kept."""
    order, d, samples, probes = (1 << max(0, n - 1).bit_length() for n in (order, d, samples, probes))
    device = str(device_of(x))
    return Kind(backend.name, device, str(x.dtype), order, d, samples, probes, terms, method, errors)


def time_both(backend: Backend, exact: Callable[[], Any], estimate: Callable[[], Any], scale: float) -> Costs:
    """Take the time of two functions that return a `LogDet`, in turn; that of the first is multiplied by `scale`."""
    best, result = [float("inf"), float("inf")], None
    for repeat in range(REPEATS + 1):
        for i, answer in enumerate((exact, estimate)):
            begin = clock()
            result = answer()
            backend.to_numpy(backend.stop_gradient(result.value))  # waits for the device
            if repeat:
                best[i] = min(best[i], clock() - begin)
    assert result is not None
    return Costs(scale * best[0], best[1], int(backend.to_numpy(result.products)[0]))
