"""What is asked of a stochastic log-determinant, and what of that makes no sense."""

import operator
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.determinant.probes import explicit_probes
from iresnet_core.errors import InvalidArgumentError

__all__ = ["Request", "given_lengths", "given_probes", "refuse_tolerance"]


class Request(NamedTuple):
    """What was asked for; see `logdet`. At `give_up_at` products a sample "auto" prefers the exact answer."""

    tol: float | None
    probes: int
    noise: Any
    rng: Any
    terms: int | None
    probe_kind: str
    control_variate: str
    give_up_at: int | None
    reference: Any = None
    errors: bool = True
    unbiased: bool = False


def refuse_tolerance(request: Request) -> None:
    """Refuse a tolerance where there are no values to meet it by."""
    if request.tol is not None:
        raise InvalidArgumentError(
            "tol decides by values, which a program that is being compiled or batched does not have; give terms and "
            "probes."
        )


def given_probes(backend: Backend, x: Array, noise: Any, count: int, method: str) -> Array:
    """Check probes that were given as `noise`, of which there are `count`, or any number where that is 1."""
    if isinstance(noise, tuple):
        raise InvalidArgumentError(
            f"for method {method!r} noise is one array, got a tuple; a pair is for unbiased=True."
        )
    probes = explicit_probes(backend, x, noise)
    if count not in (1, probes.shape[0]):
        raise InvalidArgumentError(f"probes={count}, but noise holds {probes.shape[0]}.")
    return probes


def given_lengths(lengths: Any) -> list[int]:
    """Return the lengths of a roulette as ints; refuse anything else."""
    try:
        return [operator.index(n) for n in lengths]
    except TypeError:
        raise InvalidArgumentError(f"lengths must hold whole numbers, one a probe, got {lengths!r}.") from None
