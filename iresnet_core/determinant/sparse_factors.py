"""log det(I + A) of a sparse matrix by sparse LU factors: no noise, and a bound on the rounding from the factors."""

from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import splu

__all__ = ["sparse_log_determinant"]

UNIT = float(np.finfo(np.float64).eps) / 2


def sparse_log_determinant(rows: Any, least: float) -> tuple[float, float]:
    """Return log det(I + A) for sparse rows A (d, d), and a bound on its rounding error.

    `least` > 0 is below the singular values of I + A, whose determinant is known to be positive. The factors are
    those of I + A + E with |E| <= d u / (1 - d u) |L| |U| (Higham 2002, Theorem 9.3), so that to first order the
    logarithm is off by tr((I + A)^-1 E) at most, which the sum of all |E| over `least` bounds.
    """
    d = rows.shape[0]
    whole = (scipy.sparse.eye_array(d) + rows.astype(np.float64)).tocsc()
    factors = splu(whole)
    pivots = np.abs(factors.U.diagonal())
    logarithms = np.log(pivots)
    ones = np.ones(d)
    size = float((abs(factors.L).T @ ones) @ (abs(factors.U) @ ones))
    bound = d * UNIT / (1 - d * UNIT) * size / least
    return float(np.sum(logarithms)), bound + d * UNIT * float(np.sum(np.abs(logarithms)))
