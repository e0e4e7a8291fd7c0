"""Lanczos' method with full reorthogonalisation: for operators (Golub and Kahan 1965) and Gram matrices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import fixed_start
from iresnet_core.operators import LinearOperator

__all__ = ["Bidiagonalization", "bidiagonalize", "filled_stack", "norms_from_gram", "unit"]

# A basis grows by one vector per step. Filled up with zeros to a multiple of this number its products have few shapes,
# for each of which some backends compile.
FILL = 8


def unit(xp: Any, v: Array) -> tuple[Array, Array]:
    """Return v / ||v|| and ||v|| along the last axis; the zero vector stays zero."""
    length = xp.linalg.vector_norm(v, axis=-1)
    divisor = xp.where(length > 0, length, xp.ones_like(length))
    return v / divisor[..., None], length


def filled_stack(xp: Any, vectors: list[Array], axis: int) -> Array:
    """Stack vectors along `axis`, and zeros after them up to a multiple of `FILL`."""
    lacking = -len(vectors) % FILL
    return xp.stack([*vectors, *[xp.zeros_like(vectors[0])] * lacking] if lacking else vectors, axis=axis)


def _orthogonalize(xp: Any, v: Array, basis: list[Array]) -> Array:
    """Remove the components along the basis, twice, since once leaves rounding behind (Giraud et al. 2005)."""
    if not basis:
        return v
    B = filled_stack(xp, basis, axis=-1)  # (..., n, k), and zeros
    for _ in range(2):
        coefficients = xp.matmul(xp.matrix_transpose(B), v[..., None])
        v = v - xp.matmul(B, coefficients)[..., 0]
    return v


@dataclass
class Bidiagonalization:
    """A V = U B and A^T U = V B^T + beta v e^T, with B upper bidiagonal (k, k): alpha on, beta above the diagonal.

    `right` holds v_1 .. v_(k+1), `left` u_1 .. u_k; entries of alpha and beta have the shape of the stack.
    """

    alpha: list[Array] = field(default_factory=list)
    beta: list[Array] = field(default_factory=list)
    left: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)

    def matrix(self, xp: Any) -> Array:
        """Return B (..., k, k), and rows and columns of zeros up to a multiple of `FILL`."""
        like = self.alpha[0]
        alpha = filled_stack(xp, self.alpha, axis=-1)[..., :, None]
        beta = filled_stack(xp, [*self.beta[:-1], xp.zeros_like(like)], axis=-1)[..., :, None]
        order = alpha.shape[-2]
        on = xp.eye(order, dtype=like.dtype, device=device_of(like))
        above = xp.eye(order, k=1, dtype=like.dtype, device=device_of(like))
        return on * alpha + above * beta


def bidiagonalize(operator: LinearOperator, start: Array, steps: int) -> Iterator[Bidiagonalization]:
    """Yield the bidiagonalisation after each step; two operator products per step.

    Parameters
    ----------
    operator : LinearOperator (m, n)
        Or a stack of them.
    start : array (..., n)
        First right vector, not zero.
    steps : int
        At most this many.
    """
    xp = operator.backend.xp
    state = Bidiagonalization()
    eps = float(xp.finfo(start.dtype).eps)
    v, _ = unit(xp, start)
    state.right.append(v)
    for _ in range(steps):
        u = operator.matvec(v)
        image_length = xp.linalg.vector_norm(u, axis=-1)
        if state.left:
            u = u - state.beta[-1][..., None] * state.left[-1]
        u, alpha = _normalized(xp, _orthogonalize(xp, u, state.left), image_length, eps)
        state.left.append(u)
        state.alpha.append(alpha)
        w = operator.rmatvec(u)
        image_length = xp.linalg.vector_norm(w, axis=-1)
        v, beta = _normalized(xp, _orthogonalize(xp, w - alpha[..., None] * v, state.right), image_length, eps)
        state.right.append(v)
        state.beta.append(beta)
        yield state


def norms_from_gram(backend: Backend, gram: Array, looks: Sequence[int], dtype: Any) -> Iterator[Array]:
    """Yield lower bounds (k,) on the norms of k matrices from their Gram matrices (k, n, n), better from look to look.

    One Lanczos process runs for the whole stack. The Gram matrices are at hand, so that a step takes one product with
    them and not two with the matrices; squaring costs the largest singular value no digits. The process ends with the
    Krylov space, after n steps.

    Parameters
    ----------
    gram : array (k, n, n)
        In float64.
    looks : sequence of int
        Numbers of steps, growing, after which the estimates are yielded.
    dtype : dtype
        Of the process. float32 is accurate enough and the fastest for large stacks; in float64 all backends agree.
    """
    xp = backend.xp
    n = gram.shape[-1]
    G = xp.astype(gram, dtype, copy=False)
    eps = float(xp.finfo(dtype).eps)
    v, _ = unit(xp, xp.matmul(fixed_start(backend, (1, n), G), G)[:, 0, :])
    basis: list[Array] = []
    diagonal: list[Array] = []
    beside: list[Array] = []
    last = min(looks[-1], n)
    for step in range(1, last + 1):
        basis.append(v)
        w = xp.matmul(v[:, None, :], G)[:, 0, :]  # as a row: some backends are slow with stacks of columns
        diagonal.append(xp.linalg.vecdot(v, w))
        if step in looks or step == last:
            T = xp.astype(_tridiagonal(xp, diagonal, beside), xp.float64)
            largest = xp.linalg.eigvalsh(T)[..., -1]
            yield xp.sqrt(xp.maximum(largest, xp.zeros_like(largest)))
        image_length = xp.linalg.vector_norm(w, axis=-1)
        V = filled_stack(xp, basis, axis=1)
        for _ in range(2):  # once leaves a rest where a small matrix is exhausted before the others
            coefficients = xp.matmul(w[:, None, :], xp.matrix_transpose(V))
            w = w - xp.matmul(coefficients, V)[:, 0, :]
        v, length = _normalized(xp, w, image_length, eps)
        beside.append(length)


def _normalized(xp: Any, v: Array, image_length: Array, eps: float) -> tuple[Array, Array]:
    """Normalise; what is only rounding of the product becomes zero, which ends that recurrence."""
    length = xp.linalg.vector_norm(v, axis=-1)
    v = xp.where((length > 10 * eps * image_length)[..., None], v, xp.zeros_like(v))
    return unit(xp, v)


def _tridiagonal(xp: Any, diagonal: list[Array], beside: list[Array]) -> Array:
    """Return the symmetric tridiagonal matrices (..., k, k) with `diagonal` and the k - 1 entries `beside` it."""
    k, like = len(diagonal), diagonal[0]

    def placed(entries: list[Array], offset: int) -> Array:
        column = xp.stack([*entries, *[xp.zeros_like(like)] * (k - len(entries))], axis=-1)[..., :, None]
        return column * xp.eye(k, k=offset, dtype=like.dtype, device=device_of(like))

    above = placed(beside[: k - 1], 1)
    return placed(diagonal, 0) + above + xp.matrix_transpose(above)
