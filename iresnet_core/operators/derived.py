"""Operators made of another one: shifted and divided, made symmetric, and one whose products are counted."""

import math

from iresnet_core.backends import Array
from iresnet_core.operators.base import LinearOperator

__all__ = ["Counted", "Normal", "Shifted"]


class Shifted(LinearOperator):
    """(A - s I) / t for a square operator A and numbers s and t.

    With s above -1 and t = 1 + s is I + A = t (I + (A - s I) / t).
    """

    def __init__(self, operator: LinearOperator, shift: float, divisor: float) -> None:
        self.operator, self.shift, self.divisor = operator, shift, divisor
        self.backend, self.like, self.batch_shape = operator.backend, operator.like, operator.batch_shape
        self.shape = operator.shape

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n)."""
        return self._moved(self.operator.matvec(v), v)

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., n) by the transpose."""
        return self._moved(self.operator.rmatvec(u), u)

    def _moved(self, product: Array, v: Array) -> Array:
        if self.shift:
            product = product - self.shift * v
        return product if self.divisor == 1 else product / self.divisor


class Normal(LinearOperator):
    """(I + A)^T (I + A) - I for a square operator A: symmetric, at two products with A each.

    The determinant of I and this is the square of that of I + A.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.backend, self.like, self.batch_shape = operator.backend, operator.like, operator.batch_shape
        self.shape = operator.shape

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n)."""
        image = self.operator.matvec(v)
        return image + self.operator.rmatvec(v + image)

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., n)."""
        return self.matvec(u)


class Counted(LinearOperator):
    """The same operator, counting its products with single vectors, and those with the transpose.

    `symmetric` says that a product with the transpose is one with the operator itself.
    """

    def __init__(self, operator: LinearOperator, symmetric: bool = False) -> None:
        self.operator, self.symmetric, self.products = operator, symmetric, 0
        self.backend, self.like, self.batch_shape = operator.backend, operator.like, operator.batch_shape
        self.shape = operator.shape

    def __repr__(self) -> str:
        return repr(self.operator)

    @property
    def entries(self) -> Array | None:
        """Those of the operator."""
        return self.operator.entries

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n)."""
        product = self.operator.matvec(v)
        self._count(v)
        return product

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) by the transpose."""
        product = self.operator.matvec(u) if self.symmetric else self.operator.rmatvec(u)
        self._count(u)
        return product

    def matrix(self) -> Array:
        """Return the explicit matrix."""
        return super().matrix() if self.entries is None else self.operator.matrix()

    def _count(self, v: Array) -> None:
        backend, axes = self.backend, len(self.batch_shape) + 1
        if all(backend.knows_size(n) for n in v.shape):
            self.products += math.prod(v.shape[: v.ndim - axes])
