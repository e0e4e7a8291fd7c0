"""Derivative of the inverse by the implicit function theorem: memory of one evaluation, whatever the solver did."""

import math
from collections.abc import Callable
from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import Chain, evaluate, linearize
from iresnet_core.common import flatten, per_sample, sample_norms, unit_roundoff, working_dtype
from iresnet_core.errors import DerivativeError, NotConvergedError
from iresnet_core.inverse.fixed_point import FixedPoint
from iresnet_core.inverse.solvers import accelerated

__all__ = ["with_implicit_gradient"]

# Jacobian products that a compiled backward pass may hold one by one.
MOST_TERMS = 512


def with_implicit_gradient(
    backend: Backend, g: Any, y: Array, solution: Array, constant: float, rtol: float, max_iter: int
) -> Array:
    """Return `solution` of x + g(x) = y as a differentiable function of y and of what g closes over.

    The value is `solution` itself. The step y - g(x) carries the derivative for a fixed x; the cotangent ct of the
    solution is first replaced by w = (I + J)^-T ct, which Anderson's method solves sample by sample from w = ct - J^T w
    to ``||error|| <= rtol ||w||``. Cost: one evaluation of g, and in the backward pass one more and some ten to forty
    Jacobian products. A second derivative is refused.
    """
    if isinstance(g, Chain) and not g.has_own_layers and not backend.may_differentiate(y, *g.arrays):
        return solution
    xp, dtype = backend.xp, y.dtype
    working = working_dtype(backend, dtype)
    if working != dtype and hasattr(g, "astype"):
        g, y = g.astype(working), xp.astype(y, working)
    point = xp.astype(backend.stop_gradient(solution), y.dtype)
    step = y - evaluate(backend, g, point)
    if not backend.may_differentiate(step):  # a function does not tell what it closes over, but its values do
        return solution

    def adjoint_solution(cotangent: Array) -> Array:
        at = linearize(backend, g, point)

        def product(w: Array) -> Array:
            return backend.stop_gradient(xp.astype(at.vjp(xp.astype(w, point.dtype, copy=False)), w.dtype, copy=False))

        with backend.no_grad():
            # A callable that knows half precision only is solved around in float32.
            cotangent = xp.astype(cotangent, working, copy=False)
            # In units of its largest entry: a cotangent may be of any size, down to zero.
            largest = xp.max(xp.abs(flatten(xp, cotangent)), axis=-1)
            scale = per_sample(xp, xp.where(largest > 0, largest, xp.ones_like(largest)), cotangent)
            right = cotangent / scale
            if not (hasattr(g, "linearize") or backend.loops_over_products()):
                return xp.astype(_neumann_sum(product, right, _neumann_terms(constant, rtol)) * scale, point.dtype)
            problem = FixedPoint(backend, product, right, sample_norms(xp, right), constant, rtol, 0.0)
            progress = accelerated(problem, right, max_iter)
            _require_solution(backend, problem, progress.residual, unit_roundoff(backend, point.dtype))
            return xp.astype(progress.x * scale, point.dtype)

    solution = backend.stop_gradient(solution)
    return solution + xp.astype(backend.map_cotangent(step, adjoint_solution) - backend.stop_gradient(step), dtype)


def _neumann_terms(constant: float, rtol: float) -> int:
    """Terms of the Neumann series that are enough for any c-contraction; too many of them are refused."""
    terms = 1 if constant == 0 else math.ceil(math.log(max(rtol, 1e-16) * (1 - constant)) / math.log(constant))
    if terms > MOST_TERMS:
        raise DerivativeError(
            f"the gradient of this inverse would take {terms} Jacobian products in a row, as compiled loops of this "
            f"backend take no derivative of a plain callable (c = {constant:.4g}, rtol = {rtol:g}). Make g a Chain, "
            "raise rtol, or leave the call uncompiled."
        )
    return terms


def _neumann_sum(product: Callable[[Array], Array], right: Array, terms: int) -> Array:
    """Return w = right - J^T (right - J^T (...)), without a loop of the backend's; error at most c^terms ||w||."""
    w = right
    for _ in range(terms):
        w = right - product(w)
    return w


def _require_solution(backend: Backend, problem: FixedPoint, residual: Array, u: float) -> None:
    """Refuse a gradient that is wrong by more than a thousandth; the residual bounds it by 1 / (1 - c).

    In half precision, of unit roundoff `u`, the products themselves are not better than a few u.
    """
    if backend.is_tracing(residual) or not residual.shape[0]:
        return
    worst = float(backend.xp.max(residual)) / (1 - problem.constant)
    if not (math.isfinite(worst) and worst <= max(1e-3, 1e3 * problem.rtol, 8 * u / (1 - problem.constant))):
        raise NotConvergedError(
            f"the gradient of the inverse did not converge: its relative error may be {worst:.3g} (c = "
            f"{problem.constant:.4g}). The constant may be wrong; otherwise raise max_iter."
        )
