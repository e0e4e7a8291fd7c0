"""A linear operator as a residual branch x -> A x, whose Jacobian is A wherever one looks."""

import math
from dataclasses import replace
from typing import Any

from iresnet_core.backends import Array
from iresnet_core.branches.linearization import Linearization
from iresnet_core.errors import ShapeError
from iresnet_core.operators import LinearOperator

__all__ = ["OperatorBranch"]


class OperatorBranch:
    """x -> A x for a square operator, or a stack of them with one sample each; x is (batch, d).

    Parameters
    ----------
    operator : LinearOperator
        A, of shape (d, d).
    lipschitz : float
        A bound on its norm.
    transpose : bool
        Whether products with A^T are there.
    """

    def __init__(self, operator: LinearOperator, lipschitz: float, *, transpose: bool = True) -> None:
        if operator.shape[0] != operator.shape[1]:
            raise ShapeError(f"I + A needs a square operator, got one of shape {operator.shape}.")
        self.operator, self.lipschitz, self.transpose = operator, lipschitz, transpose

    def __repr__(self) -> str:
        return f"x -> A x with {self.operator!r}"

    def __call__(self, x: Array) -> Array:
        """Return A x for every row of x (..., batch, d)."""
        return self._by_rows(self.operator.matvec, x)

    def linearize(self, x: Array) -> Linearization:
        """Return value and products; they take stacks (probes, batch, d) too."""
        return self._linearization(self(x))

    def jacobian_of_determinant(self, origin: Array) -> Linearization:
        """Return a linearisation at zeros (batch, d) that has the determinant of I + A: that of A or of A^T.

        No product is taken for the value, unless it may be differentiated.
        """
        linearization = self._linearization(self(origin) if self.operator.backend.differentiates else origin)
        return linearization if self.transpose else replace(linearization, vjp=self, jvp=None)

    def _linearization(self, value: Array) -> Linearization:
        return Linearization(
            value=value, vjp=lambda u: self._by_rows(self.operator.rmatvec, u), jvp=self, leading_axes=True
        )

    def _by_rows(self, product: Any, v: Array) -> Array:
        """Products of a stack of operators, whose vectors have one axis for all of them here."""
        operator = self.operator
        if len(operator.batch_shape) in (0, 1):
            return product(v)
        xp, n = operator.backend.xp, operator.shape[0]
        leading = tuple(v.shape[:-2])
        result = product(xp.reshape(v, (*leading, *operator.batch_shape, n)))
        return xp.reshape(result, (*leading, math.prod(operator.batch_shape), n))
