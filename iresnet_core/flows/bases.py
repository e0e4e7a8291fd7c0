"""Densities of latents, and the log-density of a sample from them and a log-determinant."""

import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.common import flatten, round_up, unit_roundoff, which_samples, widest
from iresnet_core.errors import NonFiniteError
from iresnet_core.results import LogDet

__all__ = ["LogProb", "scored"]


class LogProb(NamedTuple):
    """Log-density of samples under a flow, with the errors of its log-determinant.

    Attributes
    ----------
    value : array (batch,)
        In nats.
    std_error : array (batch,)
        Standard error over the random probes.
    bias_bound : array (batch,)
        Bound on the deterministic part of the error: truncation and the rounding of the sums. The rounding of the
        latents themselves is not part of it.
    products : int array (batch,)
        Jacobian products spent on the sample.
    method : str
        Methods of the log-determinants.
    reason : str
        Why "auto" chose these methods.
    """

    value: Array
    std_error: Array
    bias_bound: Array
    products: Array
    method: str
    reason: str = ""


def scored(backend: Backend, z: Array, logdet: LogDet) -> LogProb:
    """Return the log-density of samples with the latents z (batch, ...) and the log-determinant at them."""
    xp, wide = backend.xp, widest(backend)
    base, base_rounding = _log_normal(backend, z)
    value = xp.astype(logdet.value, wide) + base
    dtype = logdet.value.dtype
    _require_representable(backend, value, dtype)
    own = unit_roundoff(backend, dtype) + 4 * unit_roundoff(backend, wide)
    rounding = base_rounding + own * xp.abs(value)
    return LogProb(
        xp.astype(value, dtype),
        logdet.std_error,
        backend.stop_gradient(round_up(backend, xp.astype(logdet.bias_bound, wide) + rounding, dtype)),
        logdet.products,
        logdet.method,
        logdet.reason,
    )


def _log_normal(backend: Backend, z: Array) -> tuple[Array, Array]:
    """Return log N(z; 0, I) and a bound on its rounding, both float64 (batch,)."""
    xp, wide = backend.xp, widest(backend)
    size = math.prod(z.shape[1:])
    squares = xp.sum(flatten(xp, xp.astype(z, wide)) ** 2, axis=1)
    constant = 0.5 * size * math.log(2 * math.pi)
    return -0.5 * squares - constant, (size + 4) * unit_roundoff(backend, wide) * (squares + constant)


def _require_representable(backend: Backend, log_prob: Array, dtype: Any) -> None:
    """Refuse float64 log-densities (batch,) that are below the range of a dtype; programs look at no value."""
    if backend.is_tracing(log_prob):
        return
    representable = backend.xp.abs(log_prob) <= float(backend.xp.finfo(dtype).max)
    if not bool(backend.xp.all(representable)):
        raise NonFiniteError(
            f"the log-density of {which_samples(backend, representable)} is below the range of {dtype}. Look at these "
            "data, which are far from all that the flow describes."
        )
