"""GMRES for (I + J) s = right-hand side, sample by sample."""

from collections.abc import Callable
from typing import Any

from iresnet_core.backends import Array, Backend, device_of

__all__ = ["COMPILED_PRODUCTS", "MOST_PRODUCTS", "gmres"]

# Products of one linear solve: at most, and in a compiled program always.
MOST_PRODUCTS = 100
COMPILED_PRODUCTS = 12
# Products after which the solve looks at its residual.
RESIDUAL_AFTER = (2, 4, 6, 9, 12, 16, 20, 26, 32, 40, 50, 64, 80)


def gmres(
    backend: Backend, product: Callable[[Array], Array], right: Array, tolerance: Array, idle: Array, most: int
) -> tuple[Array, Array]:
    """Return s (batch, d) with ||(I + J) s - right|| <= tolerance ||right||, and the products taken (batch,).

    `product` is v -> J v for rows of norm one. Samples that are `idle` are not waited for. At most `most` products, at
    most d, and `MOST_PRODUCTS`; in a compiled program always so many or `COMPILED_PRODUCTS`, whichever is less. Memory:
    a row of d numbers per product. Where a solve breaks down, the right-hand side itself is returned.
    """
    xp, tracing = backend.xp, backend.is_tracing(right)
    length = xp.linalg.vector_norm(right, axis=-1)
    eps = float(xp.finfo(right.dtype).eps)
    usable = (length > 0) & xp.isfinite(length)
    basis = [
        xp.where(usable, 1 / xp.where(usable, length, xp.ones_like(length)), xp.zeros_like(length))[:, None] * right
    ]
    columns: list[list[Array]] = []
    done = idle | ~usable
    count = xp.zeros(length.shape, dtype=xp.int32, device=device_of(right))
    most = max(1, min(most, right.shape[1], COMPILED_PRODUCTS if tracing else MOST_PRODUCTS))
    coefficients: Array = None
    for k in range(1, most + 1):
        w = product(basis[-1]) + basis[-1]
        V = xp.stack(basis, axis=1)  # (batch, k, d)
        image_length = xp.linalg.vector_norm(w, axis=-1)
        # Once is enough: I + J is well conditioned, and the next Newton step sees the residual as it is.
        h = xp.matmul(w[:, None, :], xp.matrix_transpose(V))
        w = w - xp.matmul(h, V)[:, 0, :]
        column = h[:, 0, :]
        left = xp.linalg.vector_norm(w, axis=-1)
        ended = ~(left > 8 * eps * image_length)
        left = xp.where(ended, xp.zeros_like(left), left)
        basis.append(w * xp.where(ended, xp.zeros_like(left), 1 / xp.where(ended, xp.ones_like(left), left))[:, None])
        columns.append([column[:, i] for i in range(k)] + [left])
        count = count + xp.astype(~done, count.dtype)
        if k == most or (not tracing and k in RESIDUAL_AFTER):
            coefficients, residual = _least_squares(xp, columns, length)
            done = done | (residual <= tolerance)
            if not tracing and bool(xp.all(done)):
                break
    solution = xp.matmul(coefficients[:, None, :], xp.stack(basis[: len(columns)], axis=1))[:, 0, :]
    return xp.where(xp.isfinite(solution), solution, right), count


def _least_squares(xp: Any, columns: list[list[Array]], length: Array) -> tuple[Array, Array]:
    """Coefficients (batch, k) of the least residual, and that relative to the right-hand side.

    By the normal equations in float64, which bears the square of the condition, ((1 + c) / (1 - c))^2.
    """
    k = len(columns)
    zero = xp.zeros_like(length)
    stacked = xp.stack(
        [xp.stack([*column, *[zero] * (k + 1 - len(column))], axis=-1) for column in columns], axis=-1
    )  # (batch, k + 1, k)
    H = xp.astype(stacked, xp.float64)
    H = xp.where(xp.isfinite(H), H, xp.zeros_like(H))
    # In units of its length, since I + J may be as small as 1 - c and the ridge is not.
    size = xp.linalg.vector_norm(xp.reshape(H, (H.shape[0], (k + 1) * k)), axis=-1)
    size = xp.where(size > 0, size, xp.ones_like(size))
    H = H / size[:, None, None]
    Ht = xp.matrix_transpose(H)
    identity = xp.eye(k, dtype=H.dtype, device=device_of(H))
    # Past the end of a Krylov space the columns are zero; the ridge gives them no weight.
    solution = xp.linalg.solve(xp.matmul(Ht, H) + 1e-15 * identity, Ht[..., :, :1])
    first = xp.reshape(xp.astype(xp.arange(k + 1, device=device_of(H)) == 0, H.dtype), (k + 1, 1))
    residual = xp.linalg.vector_norm((first - xp.matmul(H, solution))[..., 0], axis=-1)
    scaled = xp.astype(solution[..., 0] * (xp.astype(length, H.dtype) / size)[:, None], length.dtype)
    return scaled, xp.astype(residual, length.dtype)
