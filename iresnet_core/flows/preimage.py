"""What a flow carries from layer to layer while it inverts: the samples, and where the exact ones certainly are."""

import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import per_sample, sample_norms, unit_roundoff, widest
from iresnet_core.results import Inverse

__all__ = ["Preimage", "begun", "finished", "nearest", "uncertified"]

# Relative tolerance of `invert` in float64.
USUAL_TOLERANCE = 1e-10


class Preimage(NamedTuple):
    """Samples on their way back through the layers.

    Attributes
    ----------
    value : array (batch, ...)
        The samples in the dtype of the flow, with a derivative where the backend has one.
    refined : float64 array (batch, ...)
        Points near to the exact samples, without derivative; `value` is the nearest in its dtype, or close to it.
    error : float64 array (batch,)
        Bound on the distances of `refined` to the exact samples.
    estimate : float64 array (batch,)
        What that distance is to first order.
    residual, iterations, converged : array (batch,)
        As in `Inverse`, summed up over the layers.
    """

    value: Array
    refined: Array
    error: Array
    estimate: Array
    residual: Array
    iterations: Array
    converged: Array

    def after(self, step: Inverse, **found: Any) -> "Preimage":
        """Return the state with `found` instead of its own, after one more layer."""
        xp = get_backend(self.residual).xp
        # A branch that is known in one dtype only has its residual in that.
        return self._replace(
            residual=self.residual + xp.astype(step.residual, self.residual.dtype, copy=False),
            iterations=self.iterations + step.iterations,
            converged=self.converged & step.converged,
            **found,
        )


def begun(backend: Backend, z: Array) -> Preimage:
    """Begin with latents, which are exact."""
    xp, wide = backend.xp, widest(backend)
    zero = xp.zeros((z.shape[0],), dtype=wide, device=device_of(z))
    refined = backend.stop_gradient(xp.astype(z, wide))
    return Preimage(z, refined, zero, zero, zero, xp.astype(zero, xp.int32), xp.astype(zero + 1, xp.bool))


def nearest(backend: Backend, value: Array, refined: Array) -> Array:
    """Return `refined` in the dtype of `value`, with the derivative of that.

    In float64 a value within the usual tolerance of a solution stays as it is: refined further it would be nearer to
    the exact one than any bound on rounding can show.
    """
    xp = backend.xp
    known = backend.stop_gradient(value)
    rounded = xp.astype(refined, value.dtype)
    if value.dtype == refined.dtype:
        far = sample_norms(xp, known - refined) > USUAL_TOLERANCE * sample_norms(xp, refined)
        rounded = xp.where(per_sample(xp, far, known), rounded, known)
    return value + (rounded - known) if backend.differentiates else rounded


def finished(backend: Backend, state: Preimage) -> Inverse:
    """Return the answer at the end: the distance to the refined points is known, and their error is bounded."""
    xp, wide = backend.xp, widest(backend)
    off = sample_norms(xp, xp.astype(backend.stop_gradient(state.value), wide) - state.refined)
    off = off * (1 + 1e-12)
    estimate = off + state.estimate + unit_roundoff(backend, wide) * sample_norms(xp, state.refined)
    estimate, bound = backend.stop_gradient(estimate), backend.stop_gradient(off + state.error)
    return Inverse(state.value, bound, state.residual, state.iterations, state.converged, xp.minimum(estimate, bound))


def uncertified(backend: Backend, state: Preimage) -> Inverse:
    """Return the answer without bounds, which nobody asked for."""
    unknown = backend.xp.full_like(state.error, math.nan)
    return Inverse(state.value, unknown, state.residual, state.iterations, state.converged, unknown)
