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
    """The identity above zero and ``scale (exp(x / width) - 1)`` below: the common form of the ELU and the CELU."""

    defaults: ClassVar[Mapping[str, float]] = {"alpha": 1.0}

    @abstractmethod
    def scale_and_width(self) -> tuple[float, float]:
        """Return scale and width."""

    def __call__(self, x: Array) -> Array:
        """Return the value at every entry of x.

        By itself PyTorch takes 5 times as long for the derivative, most of it for that of the minimum and the maximum:
        117 instead of 61 ms for a training step of a classifier with four blocks.
        """
        return self.linearize(x)[0] if get_backend(x).takes_derivatives_by_hand(x) else super().__call__(x)

    def transcendental(self, x: Array) -> Array:
        """Return t = exp(min(x, 0) / width) - 1, which is 0 above zero."""
        xp, (_, width) = get_backend(x).xp, self.scale_and_width()
        below = xp.minimum(x, xp.zeros_like(x))
        return xp.expm1(below if width == 1 else below / width)

    def value(self, x: Array, t: Array) -> Array:
        """Return max(x, 0) + scale t."""
        xp, (scale, _) = get_backend(x).xp, self.scale_and_width()
        return xp.maximum(x, xp.zeros_like(x)) + (t if scale == 1 else scale * t)

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1 above zero and (scale / width) (t + 1) below."""
        xp, (scale, width) = get_backend(x).xp, self.scale_and_width()
        if scale == width:
            return t + 1  # both cases, since t is 0 above zero
        return xp.where(x > 0, xp.ones_like(x), (scale / width) * (t + 1))

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return 0 above zero and slope / width below."""
        _, width = self.scale_and_width()
        below = get_backend(x).xp.astype(x <= 0, x.dtype) * slope
        return below if width == 1 else below / width


class Elu(_ExponentialBelowZero):
    """The identity above zero and ``alpha (exp(x) - 1)`` below."""

    def scale_and_width(self) -> tuple[float, float]:
        """Return alpha and 1."""
        return self.parameters["alpha"], 1.0

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

    def scale_and_width(self) -> tuple[float, float]:
        """Return alpha twice."""
        return self.parameters["alpha"], self.parameters["alpha"]

    @property
    def slope_lipschitz(self) -> float:
        """Limit of the second derivative at zero from below, rounded up."""
        return (1 + 1e-15) / float(self.parameters["alpha"])


class Selu(_ExponentialBelowZero):
    """1.0507 times the ELU of alpha = 1.6733, the constants of Klambauer et al. (2017)."""

    defaults: ClassVar[Mapping[str, float]] = {}

    def scale_and_width(self) -> tuple[float, float]:
        """Return alpha and 1."""
        return SELU_ALPHA, 1.0

    @property
    def lipschitz(self) -> float:
        """Limit of the slope at zero from below, rounded up."""
        return SELU_SCALE * SELU_ALPHA * (1 + 1e-15)

    @property
    def slope_lipschitz(self) -> float:
        """Infinity, since the slope jumps at zero."""
        return math.inf

    def value(self, x: Array, t: Array) -> Array:
        """Return the scaled value of the ELU."""
        return SELU_SCALE * super().value(x, t)

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return the scaled slope of the ELU."""
        return SELU_SCALE * super().slope(x, value, t)


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
