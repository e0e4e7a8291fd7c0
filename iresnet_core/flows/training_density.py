"""Log-densities in a step of training, where one sample that is far out must not destroy the weights."""

import math
from typing import Unpack

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import which_samples
from iresnet_core.determinant import LogDetOptions
from iresnet_core.errors import NonFiniteError
from iresnet_core.flows.flow import Flow, LogProb

__all__ = ["training_log_prob"]


def training_log_prob(flow: Flow, x: Array, **options: Unpack[LogDetOptions]) -> LogProb:
    """Return `Flow.log_prob` for a step of training, which is refused where its gradient would overflow.

    The gradient of a log-density is about as large as itself. Optimisers such as Adam keep squares of gradients: one
    that overflows stops a weight for good, and one that is infinite destroys it. So log-densities must be smaller than
    a quarter of the root of the largest number of the dtype, 4.6e18 nats in float32, which a latent of 3e9 reaches.

    A compiled program cannot raise. There such samples, and those with entries that are not finite or so large that the
    flow would overflow, have the log-density NaN and no gradient: the loss says NaN, and the weights learn from the
    other samples of the batch.

    Raises
    ------
    NonFiniteError
        Outside of compiled programs, with the samples.
    Others
        As `Flow.log_prob`.
    """
    backend = get_backend(x)
    xp = backend.xp
    if backend.is_tracing(x):
        small = xp.abs(x) < _largest_entry(backend, x)
        axes = tuple(range(1, x.ndim))
        result = flow.log_prob(xp.where(xp.all(small, axis=axes, keepdims=True), x, xp.zeros_like(x)), **options)
        usable = xp.all(small, axis=axes) & (xp.abs(result.value) < _largest_value(backend, result.value))
        return result._replace(value=xp.where(usable, result.value, xp.full_like(result.value, math.nan)))
    result = flow.log_prob(x, **options)
    largest = _largest_value(backend, result.value)
    usable = xp.abs(result.value) < largest
    if not bool(xp.all(usable)):
        raise NonFiniteError(
            f"the log-density of {which_samples(backend, usable)} is beyond {largest:.1e} nats, so that a step of "
            "training with it would destroy the weights. Look at these data."
        )
    return result


def _largest_value(backend: Backend, log_prob: Array) -> float:
    """Return the log-density from which on squares of gradients may overflow."""
    return math.sqrt(float(backend.xp.finfo(log_prob.dtype).max)) / 4


def _largest_entry(backend: Backend, x: Array) -> float:
    """Return the entry of a sample from which on the flow may overflow, and zero times its products be NaN.

    An ActNorm of data of scale 1e-9 may come: 3e26 in float32.
    """
    info = backend.xp.finfo(x.dtype)
    return float(info.max) * (2.0**-40 if info.bits >= 32 else 1.0)
