"""The least-squares problem of GMRES for small Hessenberg matrices, many at a time."""

from typing import Any

from iresnet_core.backends import Array, device_of

__all__ = ["resolvent_coefficients", "spectral_measure"]

# Up to this many columns the problem is eliminated entry by entry.
ELIMINATED = 4


def resolvent_coefficients(xp: Any, columns: list[list[Array]]) -> tuple[list[Array], Array]:
    """The y with the least ||e_1 - (I + H) y|| (GMRES), and that residual, for H (m + 1, m) given by its columns.

    The least-squares problem is solved by its normal equations: the condition of I + H is at most (1 + c) / (1 - c),
    and float64 bears its square.
    """
    m = len(columns)
    if m <= ELIMINATED:
        return _eliminated(xp, columns)
    zero = xp.zeros_like(columns[0][0])
    entries = [
        [(columns[j][i] if i < len(columns[j]) else zero) + (1.0 if i == j else 0.0) for j in range(m)]
        for i in range(m + 1)
    ]
    A = xp.stack([xp.stack(row, axis=-1) for row in entries], axis=-2)  # (probes, batch, m + 1, m)
    At = xp.matrix_transpose(A)
    y = xp.linalg.solve(xp.matmul(At, A), At[..., :, :1])
    first = xp.reshape(xp.astype(xp.arange(m + 1, device=device_of(A)) == 0, A.dtype), (m + 1, 1))
    residual = xp.linalg.vector_norm((first - xp.matmul(A, y))[..., 0], axis=-1)
    return [y[..., j, 0] for j in range(m)], residual


def spectral_measure(xp: Any, columns: list[list[Array]]) -> tuple[Array, Array]:
    """Eigenvalues of the symmetric part of H (m, m), ascending, and the squared first entries of its eigenvectors.

    H is the upper part of the columns; both results are (probes, batch, m). The squares add up to one: they are the
    weights of Gauss' quadrature for e_1^T f e_1 (Golub and Meurant 2010, Thm 6.6).
    """
    m = len(columns)
    if m == 1:
        return columns[0][0][..., None], xp.ones_like(columns[0][0])[..., None]
    zero = xp.zeros_like(columns[0][0])
    rows = [[columns[j][i] if i < len(columns[j]) else zero for j in range(m)] for i in range(m)]
    H = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
    values, vectors = xp.linalg.eigh(0.5 * (H + xp.matrix_transpose(H)))
    return values, vectors[..., 0, :] ** 2


def _eliminated(xp: Any, columns: list[list[Array]]) -> tuple[list[Array], Array]:
    """As `resolvent_coefficients`, for a few columns, entry by entry: stacks of tiny systems are slow to solve."""
    m = len(columns)
    A = [[*column, *[None] * (m - 1 - j)] for j, column in enumerate(columns)]
    A = [[entry + 1 if i == j else entry for i, entry in enumerate(column)] for j, column in enumerate(A)]

    def dot(a: list[Any], b: list[Any]) -> Array:
        return sum(p * q for p, q in zip(a, b, strict=True) if p is not None and q is not None)

    M = [[dot(A[i], A[j]) for j in range(i + 1)] for i in range(m)]  # lower part of the normal equations
    y = [A[j][0] for j in range(m)]
    for k in range(m):  # LDL^T and forward substitution
        for i in range(k + 1, m):
            ratio = M[i][k] / M[k][k]
            for j in range(k + 1, i + 1):
                M[i][j] = M[i][j] - ratio * M[j][k]
            y[i] = y[i] - ratio * y[k]
    for k in reversed(range(m)):
        y[k] = (y[k] - sum(M[i][k] * y[i] for i in range(k + 1, m))) / M[k][k]
    rest = [(1.0 if i == 0 else 0.0) - sum(A[j][i] * y[j] for j in range(max(0, i - 1), m)) for i in range(m + 1)]
    return y, xp.sqrt(sum(entry * entry for entry in rest))
