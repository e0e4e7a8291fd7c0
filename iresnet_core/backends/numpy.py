"""NumPy backend."""

from typing import Any

import array_api_compat.numpy as namespace
import numpy as np

from iresnet_core.backends.base import Array
from iresnet_core.backends.numpy_family import NumPyFamily

__all__ = ["NumPyBackend"]


class NumPyBackend(NumPyFamily):
    """NumPy itself."""

    name = "numpy"
    xp = namespace

    def owns(self, kind: type) -> bool:
        """Say whether `kind` is an ndarray or a NumPy scalar; masked arrays and matrices are neither."""
        return kind is np.ndarray or issubclass(kind, np.generic) or kind is np.memmap

    def to_numpy(self, x: Array) -> Any:
        """Copy."""
        return np.array(x)

    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Return `x` itself."""
        return np.asarray(x)

    def is_positive_definite(self, matrix: Array) -> bool:
        """Ask LAPACK itself for one matrix, which leaves the other triangle as it is and saves copies."""
        return super().is_positive_definite(matrix) if matrix.ndim != 2 else _has_factor(matrix.T, overwrite=False)

    def is_above(self, level: Any, matrix: Array) -> bool:
        """Shift the diagonal in place and factorise in place: large matrices cost as much to make as to factorise."""
        if matrix.ndim != 2:
            return super().is_above(level, matrix)
        shifted = np.negative(matrix.T, order="F")
        diagonal = np.einsum("ii->i", shifted)
        diagonal += level
        return _has_factor(shifted, overwrite=True)

    def inverse_and_log_determinant(self, matrix: Array) -> tuple[Array, Array]:
        """Take both from the same LU factors."""
        from scipy.linalg import lapack

        getrf, getri = (lapack.sgetrf, lapack.sgetri) if matrix.dtype == np.float32 else (lapack.dgetrf, lapack.dgetri)
        factors, pivots, refused = getrf(matrix.T)  # LAPACK's order of storage
        if refused:
            return super().inverse_and_log_determinant(matrix)
        log_determinant = np.sum(np.log(np.abs(np.diagonal(factors))))
        return getri(factors, pivots, overwrite_lu=True)[0].T, log_determinant

    def affine(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Add the bias in place: the product is nobody else's."""
        y = self.rows_times(x, weight.T)
        return y if bias is None else np.add(y, bias, out=y)

    def product_scaled(self, u: Array, weight: Array, scale: Array) -> Array:
        """Scale the product in place."""
        y = self.rows_times(u, weight)
        return np.multiply(y, scale, out=y)

    def frozen(self, x: Array) -> Array:
        """Return a private read-only copy, so that a cached certificate cannot be outdated by a write in place."""
        copy = np.array(x)
        copy.flags.writeable = False
        return copy


def _has_factor(matrix: Array, overwrite: bool) -> bool:
    """Whether LAPACK finds a Cholesky factor of a matrix in its own order of storage."""
    from scipy.linalg import get_lapack_funcs

    (potrf,) = get_lapack_funcs(("potrf",), (matrix,))
    factor, refused = potrf(matrix, lower=True, clean=False, overwrite_a=overwrite)
    return not refused and bool(np.all(np.isfinite(np.diagonal(factor))))  # NaN reaches the diagonal, if no further
