"""(I + A)^-1 y for a linear operator A: the equation of a contraction, x + B x = y / (1 + s)."""

from typing import Any

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches import OperatorBranch
from iresnet_core.common import require_same_dtype
from iresnet_core.errors import ShapeError
from iresnet_core.lipschitz import enclosed, square_operator
from iresnet_core.results import Inverse

__all__ = ["OperatorEquation"]


class OperatorEquation:
    """x + A x = y, as one of a branch with samples (batch, d); see `lipschitz.enclosure`.

    Attributes
    ----------
    branch : OperatorBranch
        B = (A - s I) / (1 + s).
    right : array (batch, d)
        y / (1 + s).
    """

    def __init__(self, A: Any, y: Array, **known: Any) -> None:
        get_backend(y)
        if len(y.shape) < 1:
            raise ShapeError("y must be a vector (d,) or vectors (batch, d), got a number.")
        vector = y
        while vector.ndim > 1:
            if not vector.shape[0]:
                raise ShapeError(f"y of shape {tuple(y.shape)} holds no right-hand side.")
            vector = vector[0, ...]
        operator = square_operator(A, like=vector)
        get_backend(operator.like, y)
        require_same_dtype(y, "y", operator.like, "the operator")
        self.shape = tuple(y.shape)
        stack, d = operator.batch_shape, operator.shape[0]
        if self.shape[-1] != d or (stack and self.shape[:-1] != stack) or len(self.shape) > 2 + max(0, len(stack) - 1):
            asked = f"{(*stack, d)}" if stack else f"({d},) or (batch, {d})"
            raise ShapeError(f"y must have shape {asked} for {operator!r}, got {self.shape}.")
        self.found = enclosed(operator, rng=0, **known)  # the same answer every time
        self.branch = OperatorBranch(self.found.contraction, self.found.constant, transpose=self.found.transpose)
        self.right = self.as_rows(y, "y") / self.found.divisor

    def as_rows(self, y: Array, name: str) -> Array:
        """Return vectors of the shape of y as (batch, d)."""
        if tuple(y.shape) != self.shape:
            raise ShapeError(f"{name} must have the shape of y, {self.shape}, got {tuple(y.shape)}.")
        return get_backend(y).xp.reshape(y, (-1, self.shape[-1]))

    def answer(self, solved: Inverse) -> Inverse:
        """Return the solution in the shape of y, and the residual in its units."""
        xp = get_backend(solved.value).xp
        rest = [xp.reshape(a, self.shape[:-1]) for a in solved[1:]]
        rest[1] = rest[1] * self.found.divisor
        return Inverse(xp.reshape(solved.value, self.shape), *rest)
