"""A branch in units of length in which no square of an argument over- or underflows."""

import math
from collections.abc import Callable
from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import evaluate

__all__ = ["RescaledBranch", "length_unit"]


def length_unit(backend: Backend, y: Array, g: Any = None) -> float:
    """The power of two below the largest entry of y, or 1 where no square is in danger anyway.

    Where y is tiny, and a branch g has biases, the solution is as large as these: g(y) then counts as well.
    """
    if backend.is_tracing(y) or not y.shape[0]:
        return 1.0
    safe = float(backend.xp.finfo(y.dtype).max) ** 0.35
    largest = _largest(backend, y)
    if g is not None and largest <= 1 / safe:
        largest = max(largest, _largest(backend, evaluate(backend, g, y)))
    return 1.0 if largest == 0 or 1 / safe < largest < safe else 2.0 ** math.floor(math.log2(largest))


def _largest(backend: Backend, x: Array) -> float:
    """Largest magnitude of an entry; 0 where it is not finite, which is for others to refuse."""
    largest = float(backend.xp.max(backend.xp.abs(backend.stop_gradient(x))))
    return largest if math.isfinite(largest) else 0.0


class RescaledBranch:
    """The branch x -> g(unit x) / unit, which has the Lipschitz constant of g; exact, unit being a power of two.

    Its values are constants for differentiation: a solver's iterations are not differentiated.
    """

    def __init__(self, backend: Backend, g: Any, unit: float) -> None:
        self.backend, self.g, self.unit = backend, g, unit

    def __call__(self, x: Array) -> Array:
        """Evaluate."""
        if self.unit == 1:
            return self.backend.stop_gradient(evaluate(self.backend, self.g, x))
        return self.backend.stop_gradient(evaluate(self.backend, self.g, x * self.unit)) / self.unit

    def jacobian_product(self, x: Array) -> Callable[[Array], Array] | None:
        """Return v -> J v at x where the branch offers it; costs one evaluation."""
        if not hasattr(self.g, "linearize"):
            return None
        jvp = self.g.linearize(self.backend.stop_gradient(x * self.unit)).jvp
        return None if jvp is None else lambda v: self.backend.stop_gradient(jvp(v))

    def with_mean_jacobian(self, x: Array) -> tuple[Array, Array] | None:
        """Return g(x) and the Jacobian (d, d) that stands for all samples; None where the branch has no cheap one."""
        if not hasattr(self.g, "linearize"):
            return None
        at = self.g.linearize(self.backend.stop_gradient(x * self.unit))
        known = getattr(at, "mean_matrix", None) is not None and at.cheap_mean
        if not known or tuple(at.value.shape) != tuple(x.shape):
            return None
        image, mean = (self.backend.stop_gradient(a) for a in (at.value, at.mean_matrix()))
        return image if self.unit == 1 else image / self.unit, mean

    def astype(self, dtype: Any) -> "RescaledBranch":
        """Cast the branch."""
        return RescaledBranch(self.backend, self.g.astype(dtype), self.unit)

    @property
    def knows_rounding(self) -> bool:
        """Whether the branch bounds its own rounding."""
        return hasattr(self.g, "with_rounding") and hasattr(self.g, "astype")

    def with_rounding(self, x: Array) -> tuple[Array, Array]:
        """Evaluate, and bound the rounding error of that (batch,)."""
        image, error = (self.backend.stop_gradient(a) for a in self.g.with_rounding(x * self.unit))
        return image / self.unit, error / self.unit
