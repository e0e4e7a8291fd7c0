"""Activation functions that are put together of pieces."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.activation_base import Entrywise
from iresnet_core.errors import InvalidArgumentError

__all__ = ["Celu", "Elu", "Hardtanh", "LeakyRelu", "Relu", "Selu", "Softshrink"]

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


class _ExponentialBelowZero(Entrywise):
    """``scale x`` above zero and ``scale alpha (exp(x / width) - 1)`` below: the form that ELU, CELU and SELU have.

    The value is its own transcendental part, since it tells the slope.
    """

    defaults: ClassVar[Mapping[str, float]] = {"alpha": 1.0}

    @abstractmethod
    def constants(self) -> tuple[float, float, float]:
        """Return alpha, scale and width."""

    def transcendental(self, x: Array) -> Array:
        """Return the value."""
        return get_backend(x).elu(x, *self.constants())

    def transcendental_of(self, value: Array) -> Array:
        """Return the value."""
        return value

    def value(self, x: Array, t: Array) -> Array:
        """Return t."""
        return t

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return scale above zero and (value + scale alpha) / width below."""
        xp, (alpha, scale, width) = get_backend(x).xp, self.constants()
        if alpha == width and scale == 1:  # both cases in one, since there is no jump
            below = xp.minimum(value, xp.zeros_like(value))
            return 1 + (below if width == 1 else below / width)
        return xp.where(x > 0, xp.full_like(value, scale), (value + scale * alpha) / width)

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return 0 above zero and slope / width below."""
        width = self.constants()[2]
        below = get_backend(x).xp.astype(x <= 0, x.dtype) * slope
        return below if width == 1 else below / width


class Elu(_ExponentialBelowZero):
    """The identity above zero and ``alpha (exp(x) - 1)`` below."""

    def constants(self) -> tuple[float, float, float]:
        """Return alpha, 1 and 1."""
        return self.parameters["alpha"], 1.0, 1.0

    @property
    def lipschitz(self) -> float:
        """Supremum of the slope, which is 1 above zero and rises to alpha below."""
        return max(1.0, self.parameters["alpha"])

    @property
    def slope_lipschitz(self) -> float:
        """1, the limit at zero from below, if the slope does not jump there."""
        return 1.0 if self.parameters["alpha"] == 1 else math.inf


class Celu(_ExponentialBelowZero):
    """The identity above zero and ``alpha (exp(x / alpha) - 1)`` below, whose slope has no jump."""

    def constants(self) -> tuple[float, float, float]:
        """Return alpha, 1 and alpha."""
        return self.parameters["alpha"], 1.0, self.parameters["alpha"]

    @property
    def slope_lipschitz(self) -> float:
        """Limit of the second derivative at zero from below, rounded up."""
        return (1 + 1e-15) / float(self.parameters["alpha"])


class Selu(_ExponentialBelowZero):
    """1.0507 times the ELU of alpha = 1.6733, the constants of Klambauer et al. (2017)."""

    defaults: ClassVar[Mapping[str, float]] = {}

    def constants(self) -> tuple[float, float, float]:
        """Return alpha, the scale and 1."""
        return SELU_ALPHA, SELU_SCALE, 1.0

    @property
    def lipschitz(self) -> float:
        """Limit of the slope at zero from below, rounded up."""
        return SELU_SCALE * SELU_ALPHA * (1 + 1e-15)

    @property
    def slope_lipschitz(self) -> float:
        """Infinity, since the slope jumps at zero."""
        return math.inf


class _PiecewiseLinear(Entrywise):
    """A function whose slope is constant between its kinks."""

    @property
    def slope_lipschitz(self) -> float:
        """Infinity, since the slope jumps at the kinks."""
        return math.inf

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return 0."""
        return get_backend(x).xp.zeros_like(x)


class Relu(_PiecewiseLinear):
    """The larger one of x and 0."""

    def value(self, x: Array, t: Array) -> Array:
        """Return max(x, 0)."""
        xp = get_backend(x).xp
        return xp.where(x > 0, x, xp.zeros_like(x))

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1 above zero and 0 elsewhere."""
        return get_backend(x).xp.astype(x > 0, x.dtype)


class LeakyRelu(_PiecewiseLinear):
    """``x`` above zero and ``slope x`` below."""

    defaults: ClassVar[Mapping[str, float]] = {"slope": 0.01}

    def require_parameter(self, key: str, value: Any) -> float:
        """Refuse slopes beyond 1 and -1."""
        number = float(value)
        if not -1 <= number <= 1:
            raise InvalidArgumentError(
                f"{self.name}: slope must lie between -1 and 1, so that the constant is 1, got {number}. Divide the "
                "function by a larger slope and let the next linear layer multiply."
            )
        return number

    def value(self, x: Array, t: Array) -> Array:
        """Return x or slope x."""
        return get_backend(x).xp.where(x > 0, x, self.parameters["slope"] * x)

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1 above zero and the slope elsewhere."""
        xp = get_backend(x).xp
        return xp.where(x > 0, xp.ones_like(x), xp.full_like(x, self.parameters["slope"]))


class Hardtanh(_PiecewiseLinear):
    """``x``, but no more than the limit and no less than its negative."""

    defaults: ClassVar[Mapping[str, float]] = {"limit": 1.0}

    def value(self, x: Array, t: Array) -> Array:
        """Return min(max(x, -limit), limit)."""
        xp, limit = get_backend(x).xp, self.parameters["limit"]
        return xp.minimum(xp.maximum(x, xp.full_like(x, -limit)), xp.full_like(x, limit))

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1 within the limits and 0 beyond."""
        limit = self.parameters["limit"]
        return get_backend(x).xp.astype((x > -limit) & (x <= limit), x.dtype)


class Softshrink(_PiecewiseLinear):
    """``x``, moved towards zero by the threshold, and 0 where that would change the sign."""

    defaults: ClassVar[Mapping[str, float]] = {"threshold": 0.5}

    def value(self, x: Array, t: Array) -> Array:
        """Return max(x - threshold, 0) + min(x + threshold, 0)."""
        xp, threshold = get_backend(x).xp, self.parameters["threshold"]
        zero = xp.zeros_like(x)
        return xp.maximum(x - threshold, zero) + xp.minimum(x + threshold, zero)

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 0 within the threshold and 1 beyond."""
        threshold = self.parameters["threshold"]
        return get_backend(x).xp.astype((x > threshold) | (x <= -threshold), x.dtype)
