"""What layers return, and the errors that the closed forms among them have."""

from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import round_up, sample_norms, unit_roundoff, widest, working_dtype
from iresnet_core.errors import ShapeError
from iresnet_core.flows.preimage import Preimage
from iresnet_core.results import Inverse, LogDet

__all__ = [
    "Transformed",
    "channel_axis",
    "closed_form_inverse",
    "closed_form_logdet",
    "scaled_error",
    "wide_norms",
    "with_moved_point",
]


class Transformed(NamedTuple):
    """A transformed batch with its log-determinants, as a layer or a flow returns it.

    Attributes
    ----------
    value : array (batch, ...)
        The transformed samples.
    logdet : LogDet
        log|det| of the Jacobian at every sample, in nats, with its errors. It belongs to the samples as given: the
        rounding of `value` is not part of its error.
    """

    value: Array
    logdet: LogDet


def scaled_error(backend: Backend, error: Array, factor: Any) -> Array:
    """Return errors (batch,) times a factor, which may be infinite; no error stays none."""
    xp = backend.xp
    return xp.where(error > 0, xp.where(error > 0, error, xp.ones_like(error)) * factor, xp.zeros_like(error))


def with_moved_point(backend: Backend, layer: Any, state: Preimage, logdet: LogDet) -> LogDet:
    """Add to the error of a log-determinant, taken at computed points, what their distance to the exact ones changes.

    With `part` in the options the points of the others have none, and errors are not asked for.
    """
    xp, wide = backend.xp, widest(backend)
    with backend.no_grad():
        point = backend.stop_gradient(state.value)
        off = sample_norms(xp, xp.astype(point, wide) - state.refined) * (1 + 1e-12)
        _, change = layer._spread(backend, point, off + state.error)
        bias = xp.astype(logdet.bias_bound, wide) + change
        return logdet._replace(bias_bound=backend.stop_gradient(round_up(backend, bias, logdet.bias_bound.dtype)))


def channel_axis(axis: int, ndim: int, owner: str) -> int:
    """Return the position (1 or later) of a channel axis in a batch with `ndim` axes."""
    position = axis + ndim if axis < 0 else axis
    if not 0 < position < ndim:
        raise ShapeError(f"{owner} works along axis {axis}, which samples with {ndim - 1} axes do not have.")
    return position


def wide_norms(backend: Backend, x: Array) -> Array:
    """Euclidean norm of every sample (batch,), in float64."""
    return sample_norms(backend.xp, backend.xp.astype(x, widest(backend)))


def closed_form_logdet(backend: Backend, value: Array, rounding: Array, dtype: Any) -> LogDet:
    """Return the answer of a layer whose log-determinant has a closed form, so that rounding is its only error.

    Parameters
    ----------
    value, rounding : float64 array (batch,)
        The log-determinant in nats, and a bound on its rounding error so far.
    dtype : dtype
        Dtype of the samples; the result has the same, but at least float32.
    """
    xp = backend.xp
    target = working_dtype(backend, dtype)
    zeros = xp.zeros(value.shape, dtype=target, device=device_of(value))
    rounding = rounding + unit_roundoff(backend, target) * xp.abs(value)
    return LogDet(
        value=xp.astype(value, target),
        std_error=zeros,
        bias_bound=round_up(backend, rounding, target),
        products=xp.astype(zeros, xp.int32),
        method="exact",
    )


def closed_form_inverse(backend: Backend, value: Array, rounding: Array, residual: Array | None = None) -> Inverse:
    """Return the answer of a layer whose inverse has a closed form, so that rounding is its only error.

    `rounding` bounds it for every sample; it and `residual` are float64 arrays (batch,).
    """
    xp = backend.xp
    zeros = xp.zeros(rounding.shape, dtype=rounding.dtype, device=device_of(value))
    return Inverse(
        value=value,
        error_bound=rounding,
        residual=zeros if residual is None else residual,
        iterations=xp.astype(zeros, xp.int32),
        converged=xp.astype(zeros + 1, xp.bool),
        error_estimate=rounding,
    )
