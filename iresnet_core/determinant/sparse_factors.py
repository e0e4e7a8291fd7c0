"""log det(I + A) of a sparse matrix by sparse LU factors: no noise, and a bound on the rounding from the factors."""

from typing import Any

import numpy as np

from iresnet_core.errors import NotContractiveError

__all__ = ["is_above", "sparse_log_determinant"]

UNIT = float(np.finfo(np.float64).eps) / 2
# What a bound that is stated may be off by, in units of 1 + |low|.
ALLOWANCE = 1e-6


def sparse_log_determinant(rows: Any, least: float) -> tuple[float, float]:
    """Return log det(I + A) for sparse rows A (d, d), and a bound on its rounding error.

    `least` > 0 is below the singular values of I + A, whose determinant is known to be positive. The factors are
    those of I + A + E with |E| <= d u / (1 - d u) |L| |U| (Higham 2002, Theorem 9.3), so that to first order the
    logarithm is off by tr((I + A)^-1 E) at most, which the sum of all |E| over `least` bounds.
    """
    from scipy.sparse import eye_array  # takes as long to import as all of this package

    d = rows.shape[0]
    whole = (eye_array(d) + rows.astype(np.float64)).tocsc()
    factors = _factors(whole)
    pivots = np.abs(factors.U.diagonal())
    logarithms = np.log(pivots)
    ones = np.ones(d)
    size = float((abs(factors.L).T @ ones) @ (abs(factors.U) @ ones))
    bound = d * UNIT / (1 - d * UNIT) * size / least
    return float(np.sum(logarithms)), bound + d * UNIT * float(np.sum(np.abs(logarithms)))


def is_above(rows: Any, low: float) -> bool:
    """Whether v^T A v >= low ||v||^2 for sparse rows A (d, d), but for what rounding may have taken.

    That is where the symmetric part of A, less a little less than low I, is positive definite, so that elimination with
    pivots on the diagonal meets positive ones alone (Sylvester's law of inertia).
    """
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import splu

    d = rows.shape[0]
    symmetric = 0.5 * (rows + rows.T).astype(np.float64)
    norm = abs(low) + float(np.max(abs(symmetric) @ np.ones(d)))
    rounding = 8 * d * UNIT + 4 * float(np.finfo(rows.dtype).eps)
    shift = low - ALLOWANCE * (1 + abs(low)) - rounding * norm
    try:
        factors = splu(
            (symmetric - shift * eye_array(d)).tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
    except RuntimeError:  # a pivot of zero
        return False
    return bool(np.array_equal(factors.perm_r, factors.perm_c) and np.all(factors.U.diagonal() > 0))


def _factors(matrix: Any) -> Any:
    from scipy.sparse.linalg import splu

    try:
        return splu(matrix)
    except RuntimeError as error:
        raise NotContractiveError(
            "I + A is singular: A has the eigenvalue -1, and log det(I + A) does not exist. A bound that was stated "
            "is wrong."
        ) from error
