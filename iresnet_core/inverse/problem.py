"""The problem of an inverse in the units of its solver, and what rounding does to its residual."""

import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.branches import evaluate, stated_lipschitz
from iresnet_core.common import (
    require_batch,
    require_contraction,
    require_finite,
    require_floating,
    sample_norms,
    unit_roundoff,
    working_dtype,
)
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.inverse.scaling import RescaledBranch, length_unit

__all__ = ["UNSTATED_ROUNDING", "Problem", "checked_problem", "evaluated"]

# A rounding error of g that nobody states is taken to be this many units per entry, relative to its terms.
UNSTATED_ROUNDING = 16


class Problem(NamedTuple):
    """g and y in the dtype and the units of the solver."""

    backend: Backend
    g: Any
    y: Array
    constant: float
    name: str
    output_roundoff: float
    unit: float

    def in_larger_units(self) -> "Problem | None":
        """Return the problem in units of g(y), where squares of that overflow in the present ones."""
        x = self.y * self.unit
        unit = length_unit(self.backend, evaluate(self.backend, self.g.g, x))
        if unit <= self.unit:
            return None
        return self._replace(g=RescaledBranch(self.backend, self.g.g, unit), y=x / unit, unit=unit)


def checked_problem(g: Any, y: Array, lipschitz: float | None) -> tuple[Problem, Any]:
    """Check the arguments; half precision is solved in float32."""
    backend = get_backend(y)
    require_batch(y, "y")
    require_floating(backend, y, "y")
    require_finite(backend, y, "y", samples=True)
    if not callable(g):
        raise InvalidArgumentError(f"a branch must be callable, got {type(g).__name__}.")
    (constant,) = backend.as_program_constants(require_contraction(*stated_lipschitz(g, lipschitz)))
    working, dtype, xp = working_dtype(backend, y.dtype), y.dtype, backend.xp
    y = backend.stop_gradient(y)
    name = getattr(g, "__name__", type(g).__name__)
    if working != dtype:
        y = xp.astype(y, working)
        g = g.astype(working) if hasattr(g, "astype") else _in_half_precision(backend, g, dtype, working)
    unit = length_unit(backend, y, g)
    branch = RescaledBranch(backend, g, unit)
    return Problem(backend, branch, y / unit, constant, name, unit_roundoff(backend, dtype), unit), dtype


def _in_half_precision(backend: Backend, g: Any, dtype: Any, working: Any) -> Any:
    """A callable that knows half precision only, for a solver in float32."""

    def in_half(x: Array) -> Array:
        return backend.xp.astype(evaluate(backend, g, backend.xp.astype(x, dtype)), working)

    return in_half


def evaluated(problem: Problem, x: Array, image: Array | None = None) -> tuple[Array, Array]:
    """Return g(x), and a bound (batch,) on the rounding of x + g(x) - y in the dtype of x.

    A branch that bounds its own rounding is evaluated once more for it; of another one, `image` is taken if given.
    """
    backend, xp, g = problem.backend, problem.backend.xp, problem.g
    u = unit_roundoff(backend, x.dtype)
    if g.knows_rounding:
        image, rounding = g.astype(x.dtype).with_rounding(x)
        share = 4 * u
    else:
        image = evaluate(backend, g, x) if image is None else image
        rounding, share = xp.zeros((x.shape[0],), dtype=x.dtype, device=device_of(x)), 4 * u
        share = share + UNSTATED_ROUNDING * max(u, problem.output_roundoff)
    terms = sample_norms(xp, x) + sample_norms(xp, image) + sample_norms(xp, xp.astype(problem.y, x.dtype))
    # Where squares underflow a norm is lost; the entries are then below this.
    lost = float(xp.finfo(x.dtype).smallest_normal) ** 0.5 * math.prod(x.shape[1:]) ** 0.5
    return image, rounding + share * terms + lost
