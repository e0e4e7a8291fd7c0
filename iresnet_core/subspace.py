"""Block power iteration for the largest singular value: a few steps on a basis that is kept from call to call."""

from typing import Any

import numpy as np

from iresnet_core.backends import Array, device_of
from iresnet_core.operators import LinearOperator, Matrices

__all__ = ["first_basis", "refine_basis"]


def _random_rows(size: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, n))


def first_basis(operator: LinearOperator, size: int) -> Array:
    """Return images (k, m) of fixed pseudo-random vectors, k the least of `size`, m and n; of zero, such vectors."""
    engine, xp, dtype = operator.engine, operator.engine.xp, operator.like.dtype
    size = min(size, *operator.shape)
    before, after = (
        xp.astype(engine.constant_array(_random_rows, size, extent, like=operator.like), dtype)
        for extent in (operator.shape[1], operator.shape[0])
    )
    images = operator.matvec(before)
    return xp.where(xp.any(images != 0), images, after)


def refine_basis(operator: LinearOperator, basis: Array, steps: int) -> tuple[Array, Array, Array]:
    """Take steps of the block power iteration and a Rayleigh-Ritz step; 2 `steps` products of the block.

    Parameters
    ----------
    operator : LinearOperator (m, n)
        In at least float32; or a stack of matrices, treated side by side.
    basis : array (..., k, m)
        Rows that span an approximation of the leading left singular space; any that are independent.
    steps : int
        At least 1.

    Returns
    -------
    left, right : array (..., m), (..., n)
        Unit vectors; ``left^T A right`` approaches the largest singular value from below, with an error that falls by
        ``(sigma_(k+1) / sigma_1)^4`` a step: a block does not mind that the leading values lie close together, as the
        cap makes them.
    basis : array (..., k, m)
        Orthonormal up to rounding, for the next call (Rutishauser 1970); the one that was given, where the operator
        annihilates it, since no later step would get away from zero.
    """
    xp, given = operator.engine.xp, basis
    for _ in range(steps - 1):  # orthonormal is what they were; one step does not take that away
        basis = _images(operator, _pulled_back(operator, basis))
    right, _ = _orthonormal(xp, _pulled_back(operator, basis))
    basis, rotation = _orthonormal(xp, _images(operator, right))
    top = xp.matmul(rotation, right)[..., -1, :]
    length = xp.linalg.vector_norm(top, axis=-1, keepdims=True)
    top = top / xp.where(length > 0, length, xp.ones_like(length))
    alive = xp.any(basis != 0, axis=(-2, -1), keepdims=True)
    return basis[..., -1, :], top, xp.where(alive, basis, given)


def _images(operator: LinearOperator, rows: Array) -> Array:
    """A v for every row v (..., k, n)."""
    if isinstance(operator, Matrices):
        return operator.engine.xp.matmul(rows, operator.engine.xp.matrix_transpose(operator.array))
    return operator.matvec(rows)


def _pulled_back(operator: LinearOperator, rows: Array) -> Array:
    """A^T u for every row u (..., k, m)."""
    if isinstance(operator, Matrices):
        return operator.engine.xp.matmul(rows, operator.array)
    return operator.rmatvec(rows)


def _orthonormal(xp: Any, rows: Array) -> tuple[Array, Array]:
    """Return rows with the same span, orthonormal, in the order of growing length, and the rotation to them.

    Directions that are lost in rounding are left as they are, shorter than 1: noise, from which they may grow again.
    """
    gram = xp.matmul(rows, xp.matrix_transpose(rows))
    scale = xp.linalg.trace(gram)[..., None, None]
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    squares, vectors = xp.linalg.eigh(gram / scale)
    least = xp.full((), 4 * float(xp.finfo(rows.dtype).eps), dtype=rows.dtype, device=device_of(rows))
    rotation = xp.matrix_transpose(vectors)
    return xp.matmul(rotation, rows) / xp.sqrt(xp.maximum(squares, least)[..., None] * scale), rotation
