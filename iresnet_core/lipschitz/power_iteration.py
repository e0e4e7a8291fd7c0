"""Power iteration for the largest singular value: of a vector, and of a block that is kept from call to call.

The vector is what `spectral_norm` iterates with its method "power". While weights are trained a block does better: it
does not mind that the leading singular values lie close together, pressed against the cap, and it is refined by a step
a pass (`first_basis`, `refine_basis`).
"""

from typing import Any

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.common import fixed_start
from iresnet_core.lipschitz.lanczos import unit
from iresnet_core.operators import LinearOperator

__all__ = ["first_basis", "iterate_vector", "refine_basis"]

# A compiled program holds this many steps written out. More are looped over, as many in every turn, since in a graph of
# TensorFlow a turn costs a quarter of a step with a 512 x 512 matrix.
UNROLLED_STEPS = 8
# Degree of the polynomial that filters a block, and the share of the squared Frobenius norm that it damps at least.
DEGREE = 5
LEAST_DAMPED = 1e-3


def iterate_vector(operator: LinearOperator, left: Array, rtol: float, max_iter: int) -> tuple[Array, ...]:
    """Power iteration: right <- A^T left / ||A^T left||, left <- A right / ||A right||, the norm is ||A right||.

    It approaches the largest singular value from below (Golub and Van Loan 2013, Sec. 8.2.1), by two operator products
    a step. Every matrix of a stack stops on its own, at ``residual <= rtol * value`` or after `max_iter` steps, so that
    its result does not depend on its companions. Returns (value, left, right, iterations, converged).
    """
    backend, xp = operator.backend, operator.backend.xp
    if rtol == 0:
        return _fixed_number_of_steps(operator, left, max_iter)

    def unfinished(sigma: Array, left: Array, right: Array, iterations: Array, done: Array) -> Array:
        return ~xp.all(done)

    def step(sigma: Array, left: Array, right: Array, iterations: Array, done: Array) -> tuple[Array, ...]:
        pulled = operator.rmatvec(left)
        # This product also tells the residual of the step before, which therefore stops the iteration one step late.
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


def _fixed_number_of_steps(operator: LinearOperator, left: Array, steps: int) -> tuple[Array, ...]:
    """Take as many steps as are asked for, with rtol = 0.

    This form exists beside the loop above because it looks at no value, and so waits for no device, and because
    compiled programs run it several times faster: no matrix stops on its own, and the steps are written out.
    """
    backend, xp = operator.backend, operator.backend.xp
    # The divisor keeps a zero vector at zero; no other length is below it.
    least = xp.full((), float(xp.finfo(left.dtype).smallest_normal), dtype=left.dtype, device=device_of(left))

    def unfinished(image: Array, right: Array) -> Array:
        return least > 0  # This is always true: the number of steps alone ends the loop.

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


def first_basis(matrix: Array, size: int) -> Array:
    """Return images (k, m) of fixed pseudo-random vectors, k the least of `size`, m and n; of zero, such vectors."""
    backend, (m, n) = get_backend(matrix), matrix.shape
    before, after = (fixed_start(backend, (min(size, m, n), extent), matrix) for extent in (n, m))
    images = backend.xp.matmul(before, backend.xp.matrix_transpose(matrix))
    return backend.xp.where(backend.xp.any(images != 0), images, after)


def refine_basis(matrices: Array, basis: Array) -> tuple[Array, Array, Array]:
    """Take a step of subspace iteration with a Chebyshev filter: `DEGREE` + 1 products of the block each way.

    Parameters
    ----------
    matrices : array (..., m, n)
        In at least float32.
    basis : array (..., k, m)
        Orthonormal rows that approximate the leading left singular space; before the first step, any that are
        independent. One of the whole space, k = m, is not looked at.

    Returns
    -------
    left, right : array (..., m), (..., n)
        Unit vectors; ``left^T A right`` approaches the largest singular value from below.
    basis : array (..., k, m)
        Orthonormal up to rounding, for the next call; the one that was given, where the matrix annihilates it, since
        no later step would get away from zero.

    Notes
    -----
    The polynomial in A A^T stays within 1 up to the least of the block's squared singular values and grows fast above
    it (Zhou et al. 2006). A block does not mind that the leading values lie close together, as the cap makes them.
    """
    xp, given = get_backend(matrices).xp, basis
    if basis.shape[-2] == basis.shape[-1]:  # of the whole space: any other one will do, for the exact answer
        right = xp.matmul(xp.eye(basis.shape[-1], dtype=basis.dtype, device=device_of(basis)), matrices)
    else:
        right = _filtered(xp, matrices, basis)
    rotation, lengths = _rotation(xp, right)
    right = xp.matmul(rotation / lengths, right)
    image = xp.matmul(right, xp.matrix_transpose(matrices))
    rotation, lengths = _rotation(xp, image)
    basis = xp.matmul(rotation / lengths, image)
    top = xp.matmul(rotation[..., -1:, :], right)[..., 0, :]
    length = xp.linalg.vector_norm(top, axis=-1, keepdims=True)
    top = top / xp.where(length > 0, length, xp.ones_like(length))
    alive = xp.any(basis[..., -1:, :] != 0, axis=-1, keepdims=True)  # The last vector has the longest image.
    return basis[..., -1, :], top, xp.where(alive, basis, given)


def _filtered(xp: Any, matrices: Array, basis: Array) -> Array:
    """Return rows (..., k, n) along T(2 A A^T / a - 1) B with A, for the Chebyshev polynomial T of degree `DEGREE`.

    With the damped interval [0, a] not too short, a row grows to 10^18 at most, whose square float32 can hold.
    """
    turned = xp.matrix_transpose(matrices)
    right = xp.matmul(basis, matrices)
    squares = xp.sum(right * right, axis=-1, keepdims=True)
    size = xp.sum(matrices * matrices, axis=(-2, -1), keepdims=True)
    damped = xp.maximum(xp.min(squares, axis=-2, keepdims=True), LEAST_DAMPED * size)
    damped = xp.where(damped > 0, damped, xp.ones_like(damped))
    before, last = basis, (2 / damped) * xp.matmul(right, turned) - basis
    for _ in range(DEGREE - 1):
        step = (2 / damped) * xp.matmul(xp.matmul(last, matrices), turned) - last
        before, last = last, 2 * step - before
    length = xp.linalg.vector_norm(last, axis=-1, keepdims=True)
    return xp.matmul(last / xp.where(length > 0, length, xp.ones_like(length)), matrices)


def _rotation(xp: Any, rows: Array) -> tuple[Array, Array]:
    """Return a rotation (..., k, k) after which the rows are orthogonal, and their lengths (..., k, 1), growing.

    Directions that are lost in rounding are said to be longer than they are: noise, from which they may grow again.
    """
    gram = xp.matmul(rows, xp.matrix_transpose(rows))
    # What is not finite shows in the vectors; the eigenvalues of all would end in an error of the framework's.
    gram = xp.where(xp.isfinite(gram), gram, xp.zeros_like(gram))
    scale = xp.linalg.trace(gram)[..., None, None]
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    squares, vectors = xp.linalg.eigh(gram / scale)
    least = xp.full((), 4 * float(xp.finfo(rows.dtype).eps), dtype=rows.dtype, device=device_of(rows))
    return xp.matrix_transpose(vectors), xp.sqrt(xp.maximum(squares, least)[..., None] * scale)
