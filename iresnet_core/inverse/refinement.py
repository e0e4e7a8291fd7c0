"""A solution refined in float64, with a certificate from the Jacobian where it lies: what deep flows carry along.

A bound that takes 1 / (1 - c) a block says nothing after a few of them. Here every block hands on a point in float64
that is as near to the exact solution as rounding allows, and a bound on that distance. Whatever factors that bound
collects on its way through the blocks, it began at the rounding of float64.
"""

import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches import stated_lipschitz
from iresnet_core.common import (
    flatten,
    per_sample,
    require_contraction,
    sample_norms,
    unit_roundoff,
    widest,
    working_dtype,
)
from iresnet_core.inverse.explicit_jacobian import LARGEST_EXPLICIT, local_jacobian
from iresnet_core.inverse.krylov_solve import gmres
from iresnet_core.inverse.problem import Problem, evaluated
from iresnet_core.inverse.scaling import RescaledBranch, length_unit

__all__ = ["MOST_EVALUATIONS", "Refined", "refined"]

# Dimension up to which the explicit Jacobian costs no more than the products of iterated corrections.
SMALL = 16
# Corrections at most, fewer where they take time to compile; products of an iterated one at most, and the relative
# residual that ends it earlier.
STEPS, COMPILED_STEPS, PRODUCTS, TOLERANCE = 2, 1, 16, 1e-3
# Evaluations of g, or products with its Jacobian, that a refinement takes beside an explicit Jacobian.
MOST_EVALUATIONS = 2 + STEPS * (PRODUCTS + 1)
# The worst case is good enough while it is below this share of the tolerance that the dtype stands for.
GOOD_ENOUGH = 0.01


class Refined(NamedTuple):
    """Solutions x (batch, ...) in float64, a bound `error` on their distances, and ||x + g(x) - y||, both (batch,)."""

    x: Array
    error: Array
    residual: Array


def refined(g: Any, y: Array, start: Array, argument_error: Array, lipschitz: float | None = None) -> Refined | None:
    """Refine a solution of x + g(x) = y* in float64, where y* lies within `argument_error` (batch,) of y.

    ``t = ||x - exact||`` obeys ``(1 - c) t <= s`` and ``sigma t - K t^2 / 2 <= s``, with s = ||x + g(x) - y|| + its
    rounding + `argument_error`, sigma the smallest singular value of I + J(x), and K the Lipschitz constant of the
    Jacobian. The second says that t is at most the smaller root of the quadratic, or at least the larger one. It is the
    smaller: e -> (I + J)^-1 (the residual + terms of second order) takes the ball of that radius into itself, so that
    a solution lies there (Brouwer), and x + g(x) is injective.

    Parameters
    ----------
    g : Branch or callable
        The contraction.
    y : float64 array (batch, ...)
        Right-hand sides.
    start : array (batch, ...)
        A solution in the dtype of g.
    argument_error : float64 array (batch,)
        How far y may be off.
    lipschitz : float, optional
        Constant of g; default its own.

    Returns
    -------
    Refined or None
        None where g cannot be evaluated in float64, and in compiled programs where d is too large for the second bound.

    Notes
    -----
    The second bound is asked where the first is not small, for chains of smooth activations with d up to 128: d more
    products per sample, and the memory of some 10 * 2^22 numbers. Otherwise at most `MOST_EVALUATIONS` evaluations and
    products, of which three in float64, with 20 d numbers per sample.
    """
    backend = get_backend(start)
    xp, wide = backend.xp, widest(backend)
    tracing = backend.is_tracing(start)
    y, start = backend.stop_gradient(y), backend.stop_gradient(start)
    if start.dtype != wide and not hasattr(g, "astype"):
        return None
    (c,) = backend.as_program_constants(require_contraction(*stated_lipschitz(g, lipschitz)))
    unit = max(length_unit(backend, y), length_unit(backend, xp.astype(start, wide, copy=False)))
    branch = RescaledBranch(backend, g.astype(wide) if start.dtype != wide else g, unit)
    problem = Problem(backend, branch, y / unit, c, type(g).__name__, unit_roundoff(backend, wide), unit)
    x = xp.astype(start, wide, copy=False) / unit
    image, rounding = evaluated(problem, x)
    residual = x + image - problem.y
    length = sample_norms(xp, residual)

    d = math.prod(x.shape[1:])
    local = None
    if d <= SMALL or (tracing and d <= LARGEST_EXPLICIT):
        local = local_jacobian(g, start, rounding * unit, keep_inverse=True)
    if local is None and tracing:
        return None
    correction = _Iterated(problem, g, start) if local is None else local
    for _ in range(COMPILED_STEPS if tracing else STEPS):
        if not tracing and bool(xp.all(length <= rounding)):
            break
        step = correction(residual)
        image, new_rounding = evaluated(problem, x - step)
        new_residual = x - step + image - problem.y
        new_length = sample_norms(xp, new_residual)
        better = new_length < length
        keep = ~per_sample(xp, better, x)
        x = xp.where(keep, x, x - step)
        residual = xp.where(keep, residual, new_residual)
        rounding, length = xp.where(better, new_rounding, rounding), xp.where(better, new_length, length)

    s = length + rounding + argument_error / unit
    error = s / (1 - c)
    if local is None and d <= LARGEST_EXPLICIT:
        tolerance = max(unit_roundoff(backend, start.dtype), 1e-10)
        if not bool(xp.all(error <= GOOD_ENOUGH * tolerance * sample_norms(xp, x))):
            local = local_jacobian(g, start, rounding * unit, keep_inverse=False)
    if local is not None:
        away = sample_norms(xp, x - xp.astype(start, wide, copy=False) / unit) * unit
        error = xp.minimum(error, local.distance(s * unit, away) / unit)
    return Refined(x * unit, error * unit * (1 + 1e-14), length * unit)


class _Iterated:
    """Approximate solutions of (I + J) s = residual by GMRES, with the Jacobian at one point in the dtype of g."""

    def __init__(self, problem: Problem, g: Any, start: Array) -> None:
        backend = problem.backend
        self.backend, self.shape, self.dtype = backend, tuple(start.shape), working_dtype(backend, start.dtype)
        x = backend.xp.astype(start, self.dtype, copy=False) / problem.unit
        self.branch = RescaledBranch(backend, g.astype(self.dtype) if start.dtype != self.dtype else g, problem.unit)
        self.known = self.branch.jacobian_product(x)
        self.x = flatten(backend.xp, x)
        self.image = None if self.known is not None else flatten(backend.xp, self.branch(x))

    def __call__(self, residual: Array) -> Array:
        """Return (I + J)^-1 residual, nearly."""
        xp = self.backend.xp
        right = flatten(xp, xp.astype(residual, self.dtype, copy=False))
        none = xp.zeros_like(right[:, 0])
        step, _ = gmres(self.backend, self._product, right, none + TOLERANCE, none > 0, PRODUCTS)
        return xp.reshape(xp.astype(step, residual.dtype, copy=False), residual.shape)

    def _product(self, v: Array) -> Array:
        xp = self.backend.xp
        if self.known is not None:
            return flatten(xp, self.known(xp.reshape(v, self.shape)))
        reach = (1 + xp.linalg.vector_norm(self.x, axis=-1))[:, None] * unit_roundoff(self.backend, self.dtype) ** 0.5
        return (flatten(xp, self.branch(xp.reshape(self.x + reach * v, self.shape))) - self.image) / reach
