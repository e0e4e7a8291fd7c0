"""Spectral norm: power iteration, Golub-Kahan-Lanczos and SVD, for one operator or a stack of matrices."""

import math
from typing import Any

import numpy as np

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import (
    fixed_start,
    require_finite,
    require_floating,
    require_nonnegative,
    require_positive_int,
    require_same_device,
    working_dtype,
)
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.lipschitz.lanczos import bidiagonalize, filled_stack, unit
from iresnet_core.operators import (
    LinearLayer,
    LinearOperator,
    Matrices,
    Scaled,
    as_operator,
    constant_operator,
)
from iresnet_core.results import SpectralNorm

__all__ = ["power_of_two_near", "prepared", "spectral_norm"]

# Up to this many rows or columns an SVD costs no more than the iterations that would replace it.
SMALL = 128
# Lanczos steps in a compiled program, which cannot end early and holds every step.
TRACED_STEPS = 24
# Steps of a fixed number that a compiled program holds, written out; more are looped over, as many in every turn, since
# in a graph of TensorFlow a turn costs a quarter of a step with a 512 x 512 matrix.
UNROLLED_STEPS = 8


def spectral_norm(
    A: Any,
    *,
    method: str = "auto",
    start: Array | SpectralNorm | None = None,
    rtol: float = 1e-3,
    max_iter: int = 100,
) -> SpectralNorm:
    """Estimate the largest singular value of an operator, with its singular vectors.

    The estimate approaches the norm from below; it certifies nothing. For an upper bound use `lipschitz_bound`.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, or anything `as_operator` takes
        One operator, or a stack of matrices that are treated side by side.
    method : {"auto", "power", "lanczos", "svd"}
        "power": power iteration (Behrmann et al. 2019, report Eq. 32-34). "lanczos": Golub-Kahan-Lanczos, which needs a
        third of the steps or less. "svd": of the explicit matrix. "auto": "svd" where m or n is at most 128, else
        "lanczos".
    start : array (..., m) or SpectralNorm, optional
        Left singular vector to begin from, say of the last training step. The default is a fixed pseudo-random vector,
        the same on every backend.
    rtol : float
        Stop when ``residual <= rtol * value``; with 0 "power" takes `max_iter` steps without looking.
    max_iter : int
        Steps at most.

    Returns
    -------
    SpectralNorm
        With value, left, right, iterations, converged and residual, each of the shape of the stack.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, UnknownArrayError, InvalidArgumentError
        For operators or options that make no sense.

    Notes
    -----
    Cost: two operator products a step ("svd": none, but O(m n min(m, n))). Some singular value lies within `residual`
    of `value`; that it is the largest one is practically certain from a random start, and not certified.
    Differentiating `value` gives u v^T, its gradient where the largest singular value is simple.

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
    m, n = operator.shape
    if method == "auto":
        method = "svd" if min(m, n) <= SMALL and not _is_foreign(operator) else "lanczos"
    if not isinstance(method, str) or method not in _METHODS:
        raise InvalidArgumentError(f"spectral_norm has the methods auto, {', '.join(_METHODS)}; got {method!r}.")
    with backend.full_precision():
        return _estimate(operator, method, start, rtol, max_iter)


def _estimate(
    operator: LinearOperator, method: str, start: Array | SpectralNorm | None, rtol: float, max_iter: int
) -> SpectralNorm:
    """Run one method on the entries as constants; the value of its vectors carries the derivative."""
    backend, xp = operator.backend, operator.backend.xp
    constant = constant_operator(operator)
    with backend.no_grad():
        scaled, scale = prepared(constant)
        left = _left_start(backend, scaled, start)
        value, left, right, iterations, converged = _METHODS[method](scaled, left, rtol, max_iter)
        residual = xp.linalg.vector_norm(scaled.rmatvec(left) - value[..., None] * right, axis=-1) / 2**0.5
        left, right = backend.stop_gradient(left), backend.stop_gradient(right)
    if constant is not operator:
        scaled = _divided(operator, scaled.like.dtype, scale)
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


def prepared(operator: LinearOperator, dtype: Any = None) -> tuple[LinearOperator, Array]:
    """Scale an operator by powers of two so that its entries are near 1, where no square over- or underflows.

    Returns the scaled operator (in `dtype`, by default at least float32) and the factor that was taken out.
    """
    backend, xp = operator.backend, operator.backend.xp
    target = working_dtype(backend, operator.like.dtype) if dtype is None else dtype
    if isinstance(operator, Matrices):
        array = xp.astype(operator.array, target, copy=False)
        scale = power_of_two_near(backend, xp.max(xp.abs(array), axis=(-2, -1)))
        return Matrices(array / scale[..., None, None]), scale
    if isinstance(operator, LinearLayer):
        layer = operator.astype(target)
        scale = power_of_two_near(backend, xp.max(xp.abs(layer.weight)))
        if layer.shape == tuple(layer.weight.shape):
            return Matrices(layer.weight / scale), scale
        return layer.with_parameters(layer.weight / scale, None), scale
    # The entries are out of sight, but a product shows their scale. Within 2^40 of the ends of the range it is left to
    # the products, so that vectors divided by it stay in range themselves.
    magnitude = xp.max(xp.abs(operator.matvec(_random_right(operator))))
    info = xp.finfo(magnitude.dtype)
    lowest, highest = (xp.full_like(magnitude, end) for end in (info.smallest_normal * 2.0**40, info.max * 2.0**-40))
    magnitude = xp.where(magnitude > 0, xp.maximum(xp.minimum(magnitude, highest), lowest), magnitude)
    scale = power_of_two_near(backend, magnitude)
    return Scaled(operator, scale), scale


def _divided(operator: LinearOperator, dtype: Any, scale: Array) -> LinearOperator:
    """The operator in another dtype, divided by a scale (...,) that `prepared` found for its constant twin."""
    if isinstance(operator, LinearLayer):
        return operator.with_parameters(operator.backend.xp.astype(operator.weight, dtype) / scale, None)
    entries = operator.backend.xp.astype(operator.entries, dtype, copy=False)
    return Matrices(entries / scale[..., None, None])


def power_of_two_near(backend: Backend, magnitude: Array) -> Array:
    """The power of two just below a magnitude; 1 for zero.

    Out of a table, since the powers that a GPU computes can be a unit in the last place off.
    """
    xp = backend.xp
    info = xp.finfo(magnitude.dtype)
    highest = _exponent(info.max)
    lowest = _exponent(info.smallest_normal) + _exponent(info.eps)
    positive = xp.where(magnitude > 0, magnitude, xp.ones_like(magnitude))
    exponent = xp.astype(xp.floor(xp.clip(xp.log2(positive), lowest, highest)), xp.int32)
    # The logarithm of numbers next to the largest one rounds up, to a power that would be infinite; that of subnormal
    # ones may be -infinity, and that of NaN becomes any number.
    place = xp.clip(exponent, lowest, highest) - lowest
    table = backend.constant_array(_powers_of_two, lowest, highest, like=magnitude)
    powers = xp.take(xp.astype(table, magnitude.dtype), xp.reshape(place, (-1,)), axis=0)
    return xp.reshape(powers, tuple(magnitude.shape))


def _exponent(number: Any) -> int:
    return math.frexp(float(number))[1] - 1


def _powers_of_two(lowest: int, highest: int) -> np.ndarray:
    return np.ldexp(1.0, np.arange(lowest, highest + 1))


def _is_foreign(operator: LinearOperator) -> bool:
    return not isinstance(operator, Matrices | LinearLayer)


def _random_right(operator: LinearOperator) -> Array:
    """The right vector (..., n) from which every backend begins."""
    n = operator.shape[1]
    right = fixed_start(operator.backend, (n,), operator.like)
    return operator.backend.xp.broadcast_to(right, (*operator.batch_shape, n))


def _left_start(backend: Backend, operator: LinearOperator, start: Array | SpectralNorm | None) -> Array:
    """The left vector to begin from, of shape (..., m)."""
    xp, m = backend.xp, operator.shape[0]
    shape = (*operator.batch_shape, m)
    default = operator.matvec(_random_right(operator))
    if start is None:
        return default
    given = start.left if isinstance(start, SpectralNorm) else start
    get_backend(operator.like, given)
    require_floating(backend, given, "start")
    require_same_device(backend, given, "start", operator.like, "the operator")
    require_finite(backend, given, "start")
    if tuple(given.shape) != shape:
        raise ShapeError(f"start is a left vector of shape {shape}, got {tuple(given.shape)}.")
    given = xp.astype(given, operator.like.dtype)
    given = given / power_of_two_near(backend, xp.max(xp.abs(given), axis=-1))[..., None]
    # No iteration gets away from a vector that the transpose annihilates, such as the zero one left by a zero matrix.
    annihilated = xp.all(operator.rmatvec(given) == 0, axis=-1)
    return xp.where(annihilated[..., None], default, given)


def _power(operator: LinearOperator, left: Array, rtol: float, max_iter: int) -> tuple[Array, ...]:
    """Power iteration (report, Eq. 34); converges from below. Two operator products a step.

    Every matrix of a stack stops on its own, so that its result does not depend on its companions.
    """
    backend, xp = operator.backend, operator.backend.xp
    if rtol == 0:
        return _fixed_power(operator, left, max_iter)

    def unfinished(sigma: Array, left: Array, right: Array, iterations: Array, done: Array) -> Array:
        return ~xp.all(done)

    def step(sigma: Array, left: Array, right: Array, iterations: Array, done: Array) -> tuple[Array, ...]:
        pulled = operator.rmatvec(left)
        # One step late, the product that the next step needs anyway tells the residual of the last.
        residual = xp.linalg.vector_norm(pulled - sigma[..., None] * right, axis=-1) / 2**0.5
        done = (iterations > 0) & (residual <= rtol * sigma)
        new_right, _ = unit(xp, pulled)
        new_left, new_sigma = unit(xp, operator.matvec(new_right))
        keep = done[..., None]
        return (
            xp.where(done, sigma, new_sigma),
            xp.where(keep, left, new_left),
            xp.where(keep, right, new_right),
            iterations + xp.astype(~done, iterations.dtype),
            done,
        )

    left, length = unit(xp, left)
    right = xp.zeros((*operator.batch_shape, operator.shape[1]), dtype=left.dtype, device=device_of(left))
    iterations = xp.zeros(operator.batch_shape, dtype=xp.int32, device=device_of(left))
    state = (length, left, right, iterations, iterations > 0)
    sigma, left, right, iterations, _ = backend.while_loop(unfinished, step, state, max_iter)
    residual = xp.linalg.vector_norm(operator.rmatvec(left) - sigma[..., None] * right, axis=-1) / 2**0.5
    return sigma, left, right, iterations, residual <= rtol * sigma


def _fixed_power(operator: LinearOperator, left: Array, steps: int) -> tuple[Array, ...]:
    """Power iteration of a fixed number of steps, which looks at no value and so waits for no device."""
    backend, xp = operator.backend, operator.backend.xp
    # The divisor keeps a zero vector at zero; no other length is below it.
    least = xp.full((), float(xp.finfo(left.dtype).smallest_normal), dtype=left.dtype, device=device_of(left))

    def unfinished(image: Array, right: Array) -> Array:
        return least > 0  # always: the number of steps alone ends it

    def step(image: Array, right: Array) -> tuple[Array, ...]:
        # Only one of the two vectors is brought to length one: `prepared` keeps the operator's norm near one.
        pulled = operator.rmatvec(image)
        right = pulled / xp.maximum(xp.linalg.vector_norm(pulled, axis=-1, keepdims=True), least)
        return operator.matvec(right), right

    def several_steps(*state: Array) -> tuple[Array, ...]:
        for _ in range(UNROLLED_STEPS):
            state = step(*state)
        return state

    right = xp.zeros((*operator.batch_shape, operator.shape[1]), dtype=left.dtype, device=device_of(left))
    state: tuple[Array, ...] = (unit(xp, left)[0], right)
    turns = steps // UNROLLED_STEPS if steps > UNROLLED_STEPS and backend.is_tracing(left) else 0
    if turns:
        state = backend.while_loop(unfinished, several_steps, state, turns)
    for _ in range(steps - turns * UNROLLED_STEPS):
        state = step(*state)
    image, right = state
    left, sigma = unit(xp, image)
    iterations = xp.full(operator.batch_shape, steps, dtype=xp.int32, device=device_of(left))
    residual = xp.linalg.vector_norm(operator.rmatvec(left) - sigma[..., None] * right, axis=-1)
    return sigma, left, right, iterations, residual <= 0


def _lanczos(operator: LinearOperator, left: Array, rtol: float, max_iter: int) -> tuple[Array, ...]:
    """Golub-Kahan-Lanczos; two operator products a step. A stack goes on until its last matrix has converged."""
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


_METHODS = {"power": _power, "lanczos": _lanczos, "svd": _svd}
