"""The spectral norm estimated from below, with its singular vectors, for one operator or a stack of matrices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import (
    require_finite,
    require_floating,
    require_nonnegative,
    require_positive_int,
    require_same_device,
)
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.lipschitz.lanczos import bidiagonalize, filled_stack
from iresnet_core.lipschitz.one_tap import at_one_pixel, simplified, spread_over_image
from iresnet_core.lipschitz.power_iteration import iterate_vector
from iresnet_core.lipschitz.scaling import divided, first_right, power_of_two_near, prepared
from iresnet_core.operators import (
    Convolution,
    LinearLayer,
    LinearOperator,
    Matrices,
    as_operator,
    detached_operator,
)
from iresnet_core.results import SpectralNorm

__all__ = ["ESTIMATES", "SVD_LIMIT", "spectral_norm"]

# Up to this many rows or columns an SVD costs no more than the iterations that would replace it.
SVD_LIMIT = 128
# Lanczos steps in a compiled program, which cannot end early and holds every step.
TRACED_STEPS = 24


def spectral_norm(
    A: Any,
    *,
    method: str = "auto",
    start: Array | SpectralNorm | None = None,
    rtol: float = 1e-3,
    max_iter: int = 100,
) -> SpectralNorm:
    """Estimate the spectral norm, max ||A v|| / ||v||, from below: the value is u^T A v for unit vectors u and v.

    Use it for gradients, penalties and plots, where a little less than the norm does no harm. For what has to hold,
    such as a Lipschitz constant, take the bound from above: `lipschitz_bound`. The norm of a square matrix is not its
    largest absolute eigenvalue: that of [[0, 1], [0, 0]] is 1, and its eigenvalues are 0.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, or anything `as_operator` takes
        One operator, or a stack of matrices that are treated side by side.
    method : {"auto", "svd", "lanczos", "power"}
        "auto" takes "svd", of the explicit matrix, where m or n is at most 128, and otherwise "lanczos", which is
        Golub-Kahan-Lanczos bidiagonalisation (Golub and Kahan 1965). "power" is the power iteration of Behrmann et al.
        (2019). It needs at least three times the steps of "lanczos", but with a warm start one or two steps per call.
    start : array (..., m) or SpectralNorm, optional
        Left singular vector to begin from, say of the last training step. The default is a fixed pseudo-random vector,
        the same on every backend. Of a convolution with one tap the pixel is taken where it is longest.
    rtol : float
        Stop when ``residual <= rtol * value``; with 0 "power" takes `max_iter` steps without looking.
    max_iter : int
        The largest number of steps.

    Returns
    -------
    SpectralNorm
        value (...,); left u (..., m) and right v (..., n); iterations; converged, whether ``residual <= rtol * value``;
        residual, ``||A^T u - value v|| / sqrt(2)``. All but iterations and converged have the dtype of A.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, UnknownArrayError, InvalidArgumentError
        For operators or options that make no sense.

    Notes
    -----
    Cost: two operator products per step; for "svd" none, but O(m n min(m, n)) operations. Half precision is computed in
    float32. Differentiating `value` gives u v^T, the gradient of the norm where the largest singular value is simple.
    A convolution with one tap is the stack of its groups' matrices, at the cost of those, whatever the size of the
    images; its vectors are zero but at one pixel.

    Some singular value lies within `residual` of `value`, by Weyl's inequality. That it is the largest one is
    practically certain from a random start, and not certified.

    Examples
    --------
    >>> import numpy as np
    >>> result = spectral_norm(np.array([[3.0, 0.0], [0.0, 1.0]]), method="power")
    >>> round(float(result.value), 4), bool(result.converged)
    (3.0, True)
    """
    rtol = require_nonnegative(rtol, "rtol")
    max_iter = require_positive_int(max_iter, "max_iter")
    operator = as_operator(A)
    backend = operator.backend
    matrices = simplified(operator)
    if method == "auto":
        method = next(name for name, row in ESTIMATES.items() if row.suits(matrices))
    if not isinstance(method, str) or method not in ESTIMATES:
        raise InvalidArgumentError(f"spectral_norm has the methods auto, {', '.join(ESTIMATES)}; got {method!r}.")
    with backend.certified_precision():
        given = _given_start(backend, operator, start)
        if not isinstance(operator, Convolution) or matrices is operator:
            return _estimate(operator, method, given, rtol, max_iter)
        given = None if given is None else at_one_pixel(operator, given)
        return spread_over_image(operator, _estimate(matrices, method, given, rtol, max_iter), rtol)


def _estimate(operator: LinearOperator, method: str, start: Array | None, rtol: float, max_iter: int) -> SpectralNorm:
    """Run one method on the entries without their derivative; the value of its vectors carries the derivative."""
    backend, xp = operator.backend, operator.backend.xp
    detached = detached_operator(operator)
    with backend.no_grad():
        scaled, scale = prepared(detached)
        left = _left_start(backend, scaled, start)
        value, left, right, iterations, converged = ESTIMATES[method].estimate(scaled, left, rtol, max_iter)
        residual = xp.linalg.vector_norm(scaled.rmatvec(left) - value[..., None] * right, axis=-1) / 2**0.5
        left, right = backend.stop_gradient(left), backend.stop_gradient(right)
    if detached is not operator:
        scaled = divided(operator, scaled.like.dtype, scale)
    value = xp.sum(left * scaled.matvec(right), axis=-1)
    dtype = operator.like.dtype
    return SpectralNorm(
        xp.astype(value * scale, dtype),
        xp.astype(left, dtype),
        xp.astype(right, dtype),
        iterations,
        converged,
        xp.astype(residual * scale, dtype),
    )


def _given_start(backend: Backend, operator: LinearOperator, start: Array | SpectralNorm | None) -> Array | None:
    """The left vector (..., m) that the caller gave, checked."""
    if start is None:
        return None
    shape = (*operator.batch_shape, operator.shape[0])
    given = start.left if isinstance(start, SpectralNorm) else start
    get_backend(operator.like, given)
    require_floating(backend, given, "start")
    require_same_device(backend, given, "start", operator.like, "the operator")
    require_finite(backend, given, "start")
    if tuple(given.shape) != shape:
        raise ShapeError(f"start is a left vector of shape {shape}, got {tuple(given.shape)}.")
    return given


def _left_start(backend: Backend, operator: LinearOperator, given: Array | None) -> Array:
    """The left vector to begin from, of shape (..., m)."""
    xp = backend.xp
    default = operator.matvec(first_right(operator))
    if given is None:
        return default
    given = xp.astype(given, operator.like.dtype)
    given = given / power_of_two_near(backend, xp.max(xp.abs(given), axis=-1))[..., None]
    # No iteration gets away from a vector that the transpose annihilates, such as the zero one left by a zero matrix.
    annihilated = xp.all(operator.rmatvec(given) == 0, axis=-1)
    return xp.where(annihilated[..., None], default, given)


def _lanczos(operator: LinearOperator, left: Array, rtol: float, max_iter: int) -> tuple[Array, ...]:
    """Golub-Kahan-Lanczos; two operator products per step. A stack goes on until its last matrix has converged."""
    xp = operator.backend.xp
    right = operator.rmatvec(left)
    iterations = xp.zeros(operator.batch_shape, dtype=xp.int32, device=device_of(left))
    done = iterations > 0
    limit = min(max_iter, TRACED_STEPS) if operator.backend.is_tracing(left) else max_iter
    for state in bidiagonalize(operator, right, min(limit, *operator.shape)):
        U, S, Vh = xp.linalg.svd(state.matrix(xp), full_matrices=False)
        sigma = S[..., 0]
        residual = state.beta[-1] * xp.abs(U[..., len(state.alpha) - 1, 0]) / 2**0.5
        iterations = iterations + xp.astype(~done, iterations.dtype)
        done = residual <= rtol * sigma
        if not operator.backend.is_tracing(done) and bool(xp.all(done)):
            break
    new_left = xp.matmul(filled_stack(xp, state.left, axis=-1), U[..., :, :1])[..., 0]
    new_right = xp.matmul(filled_stack(xp, state.right[:-1], axis=-1), xp.matrix_transpose(Vh[..., :1, :]))[..., 0]
    return sigma, new_left, new_right, iterations, done


def _svd(operator: LinearOperator, left: Array, rtol: float, max_iter: int) -> tuple[Array, ...]:
    """Singular value decomposition of the explicit matrix."""
    xp = operator.backend.xp
    U, S, Vh = xp.linalg.svd(operator.matrix(), full_matrices=False)
    iterations = xp.zeros(operator.batch_shape, dtype=xp.int32, device=device_of(left))
    return S[..., 0], U[..., :, 0], Vh[..., 0, :], iterations, iterations == 0


@dataclass(frozen=True)
class EstimateMethod:
    """One method of `spectral_norm`, a row of the table ESTIMATES.

    Attributes
    ----------
    estimate : callable (operator, left, rtol, max_iter) -> (value, left, right, iterations, converged)
        For an operator whose entries are near one, from a left vector.
    suits : callable (operator) -> bool
        Whether "auto" takes the method, if no method before it in the table suits.
    """

    estimate: Callable[[LinearOperator, Array, float, int], tuple[Array, ...]]
    suits: Callable[[LinearOperator], bool]


def _has_few_entries(operator: LinearOperator) -> bool:
    return isinstance(operator, Matrices | LinearLayer) and min(operator.shape) <= SVD_LIMIT


# The methods of `spectral_norm`. "auto" is the first one that suits the operator.
ESTIMATES: dict[str, EstimateMethod] = {
    "svd": EstimateMethod(_svd, _has_few_entries),
    "lanczos": EstimateMethod(_lanczos, lambda operator: True),
    "power": EstimateMethod(iterate_vector, lambda operator: False),
}
