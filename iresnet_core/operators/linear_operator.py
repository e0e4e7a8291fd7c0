"""What every linear operator offers: a shape, and products with vectors."""

from abc import ABC, abstractmethod

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import Copyable

__all__ = ["LinearOperator"]


class LinearOperator(Copyable, ABC):
    """A linear map, or a stack of them, known by its products with vectors.

    Attributes
    ----------
    backend : Backend
        The backend whose arrays the products take and return.
    like : array
        Gives the dtype and device of those arrays.
    shape : (int, int)
        Rows m and columns n.
    batch_shape : tuple of int
        Shape of the stack; () for a single operator.
    """

    backend: Backend
    like: Array
    shape: tuple[int, int]
    batch_shape: tuple[int, ...] = ()

    @property
    def entries(self) -> Array | None:
        """The array that the operator is made of, if there is one."""
        return None

    @abstractmethod
    def matvec(self, v: Array) -> Array:
        """Multiply vectors v (..., n); returns (..., m)."""

    @abstractmethod
    def rmatvec(self, u: Array) -> Array:
        """Multiply vectors u (..., m) by the transpose; returns (..., n)."""

    def matrix(self) -> Array:
        """Return the explicit matrix (m, n), from min(m, n) products unless it is at hand."""
        m, n = self.shape
        xp = self.backend.xp
        if n <= m:
            return xp.matrix_transpose(self.matvec(_identity(self, n)))
        return self.rmatvec(_identity(self, m))


def _identity(operator: LinearOperator, n: int) -> Array:
    return operator.backend.xp.eye(n, dtype=operator.like.dtype, device=device_of(operator.like))
