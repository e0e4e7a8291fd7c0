"""Sparse matrices of SciPy as operators: products with many vectors at a time, and what their entries tell for free."""

import sys
from typing import Any

from iresnet_core.backends import Array, get_backend
from iresnet_core.common import require_finite
from iresnet_core.errors import ShapeError
from iresnet_core.operators.base import LinearOperator

__all__ = ["SparseMatrix", "is_sparse"]


def is_sparse(A: Any) -> bool:
    """Whether `A` is a sparse matrix or array of SciPy."""
    return "scipy.sparse" in sys.modules and bool(sys.modules["scipy.sparse"].issparse(A))


class SparseMatrix(LinearOperator):
    """A SciPy sparse matrix (m, n), in the dtype of `like`.

    Attributes
    ----------
    rows : csr_array (m, n)
        The matrix.
    """

    has_transpose = True

    def __init__(self, matrix: Any, like: Array) -> None:
        if len(matrix.shape) != 2 or 0 in matrix.shape:
            raise ShapeError(f"a sparse matrix must have shape (m, n), both positive, got {tuple(matrix.shape)}.")
        self.backend, self.like = get_backend(like), like
        self.rows = matrix.tocsr().astype(like.dtype)
        self._columns = self.rows.T.tocsr()
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        require_finite(self.backend, self.rows.data, "the sparse matrix")

    def __repr__(self) -> str:
        return f"sparse matrix of shape {self.shape}"

    @property
    def pattern(self) -> Any:
        """Where entries may differ from zero."""
        return self.rows

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n)."""
        return self._product(self.rows, v)

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) by the transpose."""
        return self._product(self._columns, u)

    def _product(self, matrix: Any, v: Array) -> Array:
        xp = self.backend.xp
        if v.ndim == 1:
            return matrix @ v
        block = matrix @ xp.matrix_transpose(xp.reshape(v, (-1, v.shape[-1])))
        return xp.reshape(xp.matrix_transpose(block), (*v.shape[:-1], matrix.shape[0]))

    def matrix(self) -> Array:
        """Return the dense matrix."""
        return self.rows.toarray()

    def is_symmetric(self) -> bool:
        """Whether the matrix is equal to its transpose, to the last bit."""
        return self.shape[0] == self.shape[1] and (self.rows != self._columns).nnz == 0

    def diagonal(self) -> Array:
        """The diagonal, as a vector."""
        return self.rows.diagonal()

    def row_sums(self, transposed: bool = False) -> Array:
        """Sums of the magnitudes of the entries of every row, in float64; or of every column."""
        xp = self.backend.xp
        ones = xp.ones((self.shape[not transposed],), dtype=xp.float64)
        return abs(self._columns if transposed else self.rows) @ ones
