"""Block power iteration for the largest singular value: a few steps on a basis that is kept from call to call."""

from typing import Any

from iresnet_core.backends import Array, device_of
from iresnet_core.common import fixed_start
from iresnet_core.operators import LinearOperator, Matrices

__all__ = ["first_basis", "refine_basis"]


def first_basis(operator: LinearOperator, size: int) -> Array:
    """Return images (k, m) of fixed pseudo-random vectors, k the least of `size`, m and n; of zero, such vectors."""
    backend, xp = operator.backend, operator.backend.xp
    size = min(size, *operator.shape)
    m, n = operator.shape
    before, after = (fixed_start(backend, (size, extent), operator.like) for extent in (n, m))
    images = operator.matvec(before)
    return xp.where(xp.any(images != 0), images, after)


def refine_basis(operator: LinearOperator, basis: Array, steps: int) -> tuple[Array, Array, Array]:
    """Take a Rayleigh-Ritz step on the block Krylov space of a basis; 2 `steps` products of the block.

    Parameters
    ----------
    operator : LinearOperator (m, n)
        In at least float32; or a stack of matrices, treated side by side.
    basis : array (..., k, m)
        Rows that span an approximation of the leading left singular space; any that are independent. One of the whole
        space, k = m, is not looked at.
    steps : int
        At least 1.

    Returns
    -------
    left, right : array (..., m), (..., n)
        Unit vectors; ``left^T A right`` approaches the largest singular value from below, faster than by as many steps
        of the power iteration with the block (Golub and Underwood 1977). A block does not mind that the leading values
        lie close together, as the cap makes them.
    basis : array (..., k, m)
        Orthonormal up to rounding, for the next call; the one that was given, where the operator annihilates it, since
        no later step would get away from zero.
    """
    xp, given = operator.backend.xp, basis
    if basis.shape[-2] == basis.shape[-1]:  # of the whole space: any other one will do, for the exact answer
        basis, steps = xp.eye(basis.shape[-1], dtype=basis.dtype, device=device_of(basis)), 1
    rights: list[Array] = []
    images: list[Array] = []
    for step in range(steps):
        if step:
            basis = images[-1] / _size(xp, images[-1])
        rights.append(_pulled_back(operator, basis))
        images.append(_images(operator, rights[-1]))
    right, image = (rows[0] if steps == 1 else xp.concat(rows, axis=-2) for rows in (rights, images))
    rotation, lengths = _rotation(xp, right)
    right, image = (xp.matmul(rotation / lengths, rows) for rows in (right, image))
    rotation, lengths = _rotation(xp, image)
    count = given.shape[-2]
    rotation, lengths = rotation[..., -count:, :], lengths[..., -count:, :]
    basis = xp.matmul(rotation / lengths, image)
    top = xp.matmul(rotation[..., -1:, :], right)[..., 0, :]
    length = xp.linalg.vector_norm(top, axis=-1, keepdims=True)
    top = top / xp.where(length > 0, length, xp.ones_like(length))
    alive = xp.any(basis[..., -1:, :] != 0, axis=-1, keepdims=True)  # that of the longest
    return basis[..., -1, :], top, xp.where(alive, basis, given)


def _size(xp: Any, rows: Array) -> Array:
    """Root of the mean square of the entries (..., 1, 1), 1 where they are zero: keeps the powers of one size."""
    squares = xp.mean(rows * rows, axis=(-2, -1), keepdims=True)
    return xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares)))


def _images(operator: LinearOperator, rows: Array) -> Array:
    """A v for every row v (..., k, n)."""
    if isinstance(operator, Matrices):
        return operator.backend.xp.matmul(rows, operator.backend.xp.matrix_transpose(operator.array))
    return operator.matvec(rows)


def _pulled_back(operator: LinearOperator, rows: Array) -> Array:
    """A^T u for every row u (..., k, m)."""
    if isinstance(operator, Matrices):
        return operator.backend.xp.matmul(rows, operator.array)
    return operator.rmatvec(rows)


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
