"""Certified bounds on the largest singular value of explicit matrices, valid in float64 arithmetic.

Every function takes matrices (..., m, n), real or complex, in float64 precision with entries of order one, and returns
bounds (...,). Rounding is accounted for with Higham's gamma_n = n u / (1 - n u), which holds for every order of
summation; complex arithmetic is covered by a factor of four in n (Higham 2002, Lemma 3.5).
"""

import math
from collections.abc import Iterator
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import gamma, squared_frobenius
from iresnet_core.errors import NotConvergedError
from iresnet_core.lipschitz.lanczos import norms_from_gram

__all__ = [
    "at_largest",
    "carried_back",
    "cholesky_bound",
    "cholesky_certificate",
    "cholesky_certificates",
    "frobenius_bound",
    "gram_bound",
    "gram_bound_and_vectors",
    "holder_bound",
    "largest_singular_value",
    "singular_value_bound",
    "smaller_gram",
    "tight_gram_bound",
]

U = 2.0**-53
# Steps of Lanczos' method after which a factorisation is tried, for one matrix.
TRIED_AFTER = (16, 28, 50, 100, 200)
# How far the Lanczos estimate is raised before it is certified.
MARGIN = 4e-3
# Added to a square before its root is divided by; entries of order one have none so small.
NOTHING = 1e-200
# Squarings after those of a bound that single out a singular vector: a power of 2^19 or more in all.
VECTOR_SQUARINGS = 8


def _terms(xp: Any, A: Array, n: int) -> int:
    """Length of an inner product, as far as rounding is concerned."""
    return 4 * (n + 2) if xp.isdtype(A.dtype, "complex floating") else n + 2


def _trace(xp: Any, gram: Array) -> Array:
    """Trace of Hermitian matrices (..., n, n), a real number each."""
    diagonal = xp.linalg.diagonal(gram)
    return xp.sum(xp.real(diagonal) if xp.isdtype(gram.dtype, "complex floating") else diagonal, axis=-1)


def _adjoint(xp: Any, A: Array) -> Array:
    return xp.matrix_transpose(xp.conj(A) if xp.isdtype(A.dtype, "complex floating") else A)


def largest_singular_value(backend: Backend, A: Array) -> Array:
    """Largest singular value (...,) by SVD, with the relative error of LAPACK's."""
    return backend.xp.linalg.svdvals(A)[..., 0]


def singular_value_bound(backend: Backend, A: Array) -> Array:
    """Largest singular value, raised by the error of the decomposition.

    The computed values are those of A + E, ||E|| <= p(m, n) u ||A|| with p of modest growth (LAPACK Users' Guide,
    Sec. 4.9); p = 4 (m + n) is far above what is seen.
    """
    m, n = A.shape[-2:]
    return largest_singular_value(backend, A) * (1 + 8 * (m + n) * U)


def frobenius_bound(backend: Backend, A: Array) -> Array:
    """Frobenius norm, which is at least the norm and at most sqrt(rank) times it."""
    xp = backend.xp
    squared = squared_frobenius(xp, A) * (1 + gamma(math.prod(A.shape[-2:]) + 4, U))
    return xp.sqrt(squared) * (1 + 2 * U)


def holder_bound(backend: Backend, A: Array) -> Array:
    """sqrt(||A||_1 ||A||_inf), by Hoelder's inequality."""
    xp = backend.xp
    m, n = A.shape[-2:]
    magnitude = xp.abs(A)
    columns = xp.max(xp.sum(magnitude, axis=-2), axis=-1)
    rows = xp.max(xp.sum(magnitude, axis=-1), axis=-1)
    return xp.sqrt(columns) * xp.sqrt(rows) * (1 + gamma(m + n + 8, U))


def smaller_gram(xp: Any, A: Array) -> tuple[Array, Array]:
    """Return the smaller of A^H A and A A^H, and a bound on the norm of its rounding error."""
    m, n = A.shape[-2:]
    adjoint = _adjoint(xp, A)
    gram = xp.matmul(adjoint, A) if n <= m else xp.matmul(A, adjoint)
    # The trace is the squared Frobenius norm, but for rounding.
    g = gamma(_terms(xp, A, m * n), U)
    return gram, gamma(_terms(xp, A, max(m, n)), U) * _trace(xp, gram) * ((1 + g) / (1 - g))


def cholesky_certificate(backend: Backend, gram: Array, gram_error: Array, level: float) -> float | None:
    """Certify sigma for all matrices of a stack with Gram matrices `gram` (..., n, n) at once.

    Returns a number just above `level` that bounds every sigma, or None if the factorisation of level^2 I - gram
    fails. If it succeeds, the exact matrix has no eigenvalue below -gamma_(n+1) / (1 - gamma_(n+1)) times its trace
    (Rump 2006, Thm 2.3), the Gram matrix is wrong by at most `gram_error`, and the diagonal was rounded once.
    """
    xp = backend.xp
    n = gram.shape[-1]
    squared = level * level
    if not backend.is_above(squared, gram):
        return None
    g = gamma(_terms(xp, gram, n), U)
    error = g / (1 - g) * n * squared + 2 * U * squared + float(xp.max(gram_error))
    return math.sqrt(squared + error) * (1 + 4 * U)


def cholesky_certificates(backend: Backend, gram: Array, gram_error: Array, levels: Array) -> Array | None:
    """Certify sigma for every matrix of a stack (k, n, n) at a level of its own (k,), as `cholesky_certificate`.

    Returns bounds (k,) just above the levels, 0 for zero matrices; None if a factorisation fails.
    """
    xp = backend.xp
    n = gram.shape[-1]
    zero = _trace(xp, gram) <= 0  # of a sum of squares
    squared = xp.where(zero, xp.ones_like(levels), levels * levels)
    if not backend.is_above(squared, gram):
        return None
    g = gamma(_terms(xp, gram, n), U)
    error = (g / (1 - g) * n + 2 * U) * squared + gram_error
    bounds = xp.sqrt(squared + error) * (1 + 8 * U)
    return xp.where(zero, xp.zeros_like(bounds), bounds)


def cholesky_bound(backend: Backend, A: Array) -> Array:
    """Cholesky certificate of a Lanczos estimate raised by 0.4 %, matrix by matrix.

    Where the estimate was too low the factorisation fails; a better estimate is taken, then a larger distance.
    """
    xp = backend.xp
    m, n = A.shape[-2:]
    stack = A.shape[:-2]
    flat = xp.reshape(A, (math.prod(stack), m, n))
    bounds = []
    for i in range(flat.shape[0]):
        matrix = flat[i, :, :]
        if not bool(xp.any(matrix != 0)):
            bounds.append(0.0)
            continue
        gram, gram_error = smaller_gram(xp, matrix)
        estimates = (float(norms[0]) for norms in norms_from_gram(backend, gram[None, :, :], TRIED_AFTER, gram.dtype))
        bounds.append(raise_until_certified(backend, gram, gram_error, estimates))
    return xp.reshape(xp.asarray(bounds, dtype=xp.float64, device=device_of(A)), stack)


def raise_until_certified(backend: Backend, gram: Array, gram_error: Array, estimates: Iterator[float]) -> float:
    """Certify the first estimate that passes when raised by MARGIN, or else growing multiples of the last one.

    `estimates` are lower bounds on the norm, each better and more expensive than the one before.
    """
    xp, estimate = backend.xp, 0.0
    for estimate in estimates:
        bound = cholesky_certificate(backend, gram, gram_error, estimate * (1 + MARGIN))
        if bound is not None:
            return bound
    # A start orthogonal to all that matters is not noticed by the iteration, but by the trace: sigma^2 >= tr G / n.
    estimate = max(estimate, math.sqrt(float(xp.max(_trace(xp, gram))) / gram.shape[-1]))
    slack = MARGIN
    for _ in range(40):
        slack *= 3
        bound = cholesky_certificate(backend, gram, gram_error, estimate * (1 + slack))
        if bound is not None:
            return bound
    raise NotConvergedError(
        f"no multiple of the estimate {estimate:.6g} up to {1 + slack:.3g} could be certified; the matrix is too badly "
        "scaled for a Cholesky certificate in float64. Use method='svd'."
    )


def tight_gram_bound(backend: Backend, A: Array) -> Array:
    """Gram iteration to 1e-13 of the norm, and rounding; in a compiled program, 14 steps."""
    return gram_bound(backend, A) if backend.is_tracing(A) else gram_bound(backend, A, rtol=1e-13, max_steps=46)


def gram_bound(backend: Backend, A: Array, *, rtol: float = 1e-3, max_steps: int = 14) -> Array:
    """Gram iteration: G <- G^H G / ||G^H G||_F, sigma <= ||G_t||_F^(1 / 2^t) (Delattre et al. 2023, Thm 1).

    The iteration stops where the bound is within `rtol` of sigma >= (||G_t||_F^2 / tr G_t)^(1 / 2^t); the worst case,
    n equal singular values, is within log(n) / 2^(t + 1). The rounding of every product is carried back through the
    square roots.
    """
    return _gram_iteration(backend, A, rtol, max_steps)[0]


def gram_bound_and_vectors(backend: Backend, A: Array, steps: int) -> tuple[Array, Array]:
    """Gram iteration of real matrices (..., m, n), m >= n, by `steps` norms, and top right singular vectors (..., n).

    The vectors are the longest columns of a far higher power of the Gram matrix, which has lost all others.
    """
    xp = backend.xp
    bound, gram = _gram_iteration(backend, A, 0.0, steps)
    for _ in range(VECTOR_SQUARINGS if gram.shape[-1] > 1 else 0):
        gram = xp.matmul(xp.matrix_transpose(gram), gram)
        gram = gram / xp.sqrt(squared_frobenius(xp, gram) + NOTHING)[..., None, None]
    diagonal = xp.sum(gram * xp.eye(gram.shape[-1], dtype=gram.dtype, device=device_of(A)), axis=-1)
    column = at_largest(xp, diagonal)
    vector = xp.sum(gram * column[..., None, :], axis=-1)
    return bound, vector / xp.sqrt(xp.sum(vector * vector, axis=-1, keepdims=True) + NOTHING)


def at_largest(xp: Any, values: Array) -> Array:
    """Return 1 at the largest of values (..., n), which are not negative, and else 0.

    It serves where a program of JAX without 64-bit types knows no `argmax`. Of values that are nearly equal the first
    is taken, unless chance brings two within 1e-9 of each other beyond their places.
    """
    n = values.shape[-1]
    weights = 1 - xp.arange(n, dtype=values.dtype, device=device_of(values)) / (1e3 * n)
    weighted = values * weights
    return xp.astype(weighted >= xp.max(weighted, axis=-1, keepdims=True) * (1 - 1e-9), values.dtype)


def _gram_iteration(backend: Backend, A: Array, rtol: float, max_steps: int) -> tuple[Array, Array]:
    """Return the bounds (...,) of `gram_bound` and the last, normalised matrices."""
    xp = backend.xp
    gram, first_error = smaller_gram(xp, A)
    n = gram.shape[-1]
    if n == 1:  # The first norm is the answer. torch.compile would take all steps for one expression, without end.
        max_steps = 1
    is_complex = xp.isdtype(A.dtype, "complex floating")
    looks = rtol > 0 and not backend.is_tracing(A)
    g = gamma(_terms(xp, A, n), U) + 8 * U
    norms = []
    for step in range(1, max_steps + 1):
        norm = xp.sqrt(squared_frobenius(xp, gram) + NOTHING)
        norms.append(norm)
        gram = gram / (xp.astype(norm, gram.dtype) if is_complex else norm)[..., None, None]
        if looks and bool(xp.all(_trace(xp, gram) ** (1 / 2**step) <= 1 + rtol)):
            break
        if step < max_steps:
            gram = xp.matmul(_adjoint(xp, gram) if is_complex else xp.matrix_transpose(gram), gram)
    bound = carried_back(xp, norms, g, 1 + 8 * n * n * U, first_error)
    return xp.where(xp.any(A != 0, axis=(-2, -1)), bound, xp.zeros_like(bound)), gram


def carried_back(xp: Any, norms: list[Array], g: float, last: float, first_error: Array) -> Array:
    """Bound sigma (...,) from the Frobenius norms of Gram iteration, each the norm of a product of normalised matrices.

    The norm of the last matrix, a normalised one, is at most `last`; sigma(G_t)^2 <= norm_(t+1) sigma(G_(t+1)) + error,
    back to the first, which is wrong by at most `first_error`; g is the relative error of a product.
    """
    bound: Any = last
    for norm in reversed(norms[1:]):
        bound = (norm * (bound * (1 + g) + g) + g) ** 0.5
    return xp.sqrt(norms[0] * (bound * (1 + g) + g) + first_error) * (1 + g)
