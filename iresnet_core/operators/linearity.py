"""Whether what a user calls the products of a linear operator are that: seen from four of them."""

from collections.abc import Callable
from typing import Any

from iresnet_core.backends import Array
from iresnet_core.common import fixed_start
from iresnet_core.errors import InvalidArgumentError, MissingProductError
from iresnet_core.operators.base import LinearOperator

__all__ = ["require_linear"]

# What rounding, or differences in place of derivatives, may leave of A (u - 2 v) = A u - 2 A v: this, or some square
# roots of the roundoff.
LEAST_TOLERANCE, ROOTS = 1e-7, 3
# What rounding may leave of v^T (A u) = (A^T v)^T u: this, or some hundred roundoffs. It is less, since inner products
# of unrelated vectors are small themselves.
UNITS = 256


def require_linear(
    operator: LinearOperator, *, symmetric: bool = False, see: Callable[[Array, Array], None] | None = None
) -> bool:
    """Refuse products that are not linear, or whose transpose is none; return whether there is one.

    Cost: three products, and one with A^T unless A is said to be symmetric.

    Fixed pseudo-random vectors are multiplied, so that the answer is the same on every run; what differs on a few
    vectors only is not seen. `see` is called with the first of them and its product, which may tell it more. Nothing is
    looked at while a program is compiled.

    Raises
    ------
    InvalidArgumentError
        If A (u - 2 v) is not A u - 2 A v, or v^T (A u) is neither (A^T v)^T u nor, if A is said to be symmetric,
        (A v)^T u.
    """
    backend = operator.backend
    xp = backend.xp
    if backend.is_tracing(operator.like):
        return True
    with backend.no_grad():
        both = fixed_start(backend, (2 * operator.shape[1],), operator.like)
        u, v = both[: operator.shape[1]], both[operator.shape[1] :]
        images = [backend.stop_gradient(operator.matvec(one)) for one in (u, v, u - 2 * v)]
        if any(backend.is_tracing(image) for image in images):
            return True
        eps = float(xp.finfo(operator.like.dtype).eps)
        size = _norm(xp, images[0]) + 2 * _norm(xp, images[1])
        off = _norm(xp, images[2] - (images[0] - 2 * images[1]))
        if not off <= max(LEAST_TOLERANCE, ROOTS * eps**0.5) * size:
            raise InvalidArgumentError(
                f"matvec of {operator!r} is not linear: A (u - 2 v) differs from A u - 2 A v by {off / size:.2g} of "
                "its length. Is there a constant term in it, or a function that is not linear? A branch "
                "that is none goes to logdet(g, x)."
            )
        try:
            other = images[1] if symmetric else backend.stop_gradient(operator.rmatvec(v))
        except MissingProductError:
            other = None
        if other is not None:
            first, second = float(xp.sum(v * images[0])), float(xp.sum(other * u))
            allowed = max(LEAST_TOLERANCE, UNITS * eps)
            allowed *= _norm(xp, images[0]) * _norm(xp, v) + _norm(xp, other) * _norm(xp, u)
            if not abs(first - second) <= allowed:
                what = "is not symmetric, as spectrum= says:" if symmetric else "has an rmatvec that is no transpose:"
                how = "Use disc= for one that is not." if symmetric else "Leave rmatvec out if it is not known."
                raise InvalidArgumentError(
                    f"{operator!r} {what} v^T (A u) = {first:.6g}, (A^T v)^T u = {second:.6g}. {how}"
                )
        if see is not None:
            see(u, images[0])
    return other is not None


def _norm(xp: Any, v: Array) -> float:
    return float(xp.linalg.vector_norm(v))
