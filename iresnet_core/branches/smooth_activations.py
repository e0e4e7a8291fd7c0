"""Activation functions whose slope is continuous everywhere."""

import math
from collections.abc import Mapping
from typing import ClassVar

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.activation_base import Entrywise

__all__ = [
    "SWISH_SLOPE",
    "Gelu",
    "Identity",
    "Lipswish",
    "Mish",
    "Sigmoid",
    "Silu",
    "Sin",
    "Softplus",
    "Softsign",
    "Tanh",
]

# Supremum of the slope of swish, 1.09983932..., rounded up, so that lipswish is 1-Lipschitz (Chen et al. 2019, Sec. 4).
SWISH_SLOPE = 1.0998394
# 1 / sqrt(2) and the density of the normal distribution at zero.
_ROOT_HALF, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
# Where the density of the normal distribution is zero in every dtype.
_FAR = 40.0


class _Swish(Entrywise):
    """``factor x / (1 + exp(-beta x))``."""

    defaults: ClassVar[Mapping[str, float]] = {"beta": 1.0}
    factor: ClassVar[str]  # text, for the reason that `Activation.function_for` gives
    keeps_transcendental = False

    @property
    def lipschitz(self) -> float:
        """Supremum of the slope, the same for every beta."""
        return SWISH_SLOPE * float(self.factor)

    @property
    def slope_lipschitz(self) -> float:
        """Second derivative at zero, rounded up."""
        return (0.5 + 1e-15) * float(self.factor) * float(self.parameters["beta"])

    def quick_value(self, x: Array) -> Array:
        """Return the value at every entry of x, by the backend's swish."""
        value = get_backend(x).swish(self._times_beta(x))
        value *= float(self.factor) / self.parameters["beta"]
        return value

    def pulled_back(self, x: Array, u: Array, value: Array, t: Array = None) -> Array:
        """Return u times the slope at x, by the backend's swish."""
        pulled = get_backend(x).swish_pullback(self._times_beta(x), u)
        pulled *= float(self.factor)
        return pulled

    def transcendental(self, x: Array) -> Array:
        """Return t = 1 / (1 + exp(-beta x))."""
        return get_backend(x).logistic(self._times_beta(x))

    def value(self, x: Array, t: Array) -> Array:
        """Return factor x t."""
        return x * (t * float(self.factor))

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return factor t + beta value (1 - t)."""
        return self.value_and_slope(x, t)[1]

    def value_and_slope(self, x: Array, t: Array = None) -> tuple[Array, ...]:
        """Return value, slope and 1 - t; what they share is computed once, for the sake of training steps."""
        t = self.transcendental(x) if t is None else t
        scaled, rest = t * float(self.factor), 1 - t
        return (value := x * scaled), get_backend(x).multiply_add(scaled, self._times_beta(value), rest), rest

    def second_derivative(self, x: Array, value: Array, slope: Array, rest: Array = None) -> Array:
        """Return beta (1 - t) (2 slope - beta value), where `rest` is 1 - t."""
        return self._times_beta(rest * (2 * slope - self._times_beta(value)))

    def _times_beta(self, x: Array) -> Array:
        beta = self.parameters["beta"]
        return x if beta == 1 else beta * x


class Lipswish(_Swish):
    """Swish, ``x / (1 + exp(-beta x))``, divided by the supremum of its slope."""

    factor = repr(1 / SWISH_SLOPE)

    @property
    def lipschitz(self) -> float:
        """1, for which it is divided."""
        return 1.0


class Silu(_Swish):
    """Swish itself, ``x / (1 + exp(-beta x))``."""

    factor = "1.0"


class Gelu(Entrywise):
    """``x P(x)`` with the distribution function P of the normal distribution (Hendrycks and Gimpel 2016)."""

    @property
    def lipschitz(self) -> float:
        """P(sqrt 2) + sqrt 2 p(sqrt 2), where the second derivative p(x) (2 - x^2) is zero, rounded up."""
        return 1.1289042

    @property
    def slope_lipschitz(self) -> float:
        """Second derivative at zero, 2 / sqrt(2 pi), rounded up."""
        return 0.79788457

    def transcendental(self, x: Array) -> Array:
        """Return t = P(x)."""
        return 0.5 * (1 + get_backend(x).erf(_ROOT_HALF * x))

    def value(self, x: Array, t: Array) -> Array:
        """Return x t."""
        return x * t

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return t + x p(x)."""
        return t + x * self._density(x)[1]

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return p(x) (2 - x^2)."""
        near, density = self._density(x)
        return density * (2 - near * near)

    def _density(self, x: Array) -> tuple[Array, Array]:
        """Return |x|, no larger than where the density is zero, and the density there."""
        xp = get_backend(x).xp
        near = xp.minimum(xp.abs(x), xp.full_like(x, _FAR))
        return near, _DENSITY * xp.exp(-0.5 * (near * near))


class Mish(Entrywise):
    """``x tanh(log(1 + exp(x)))`` (Misra 2019)."""

    @property
    def lipschitz(self) -> float:
        """Slope at 1.490571..., the zero of the second derivative, rounded up."""
        return 1.0884982

    @property
    def slope_lipschitz(self) -> float:
        """Second derivative at -0.087934..., the zero of the third, rounded up."""
        return 0.64420464

    def transcendental(self, x: Array) -> Array:
        """Return t = tanh(log(1 + exp(x))), without overflow."""
        xp = get_backend(x).xp
        return xp.tanh(xp.logaddexp(x, xp.zeros_like(x)))

    def value(self, x: Array, t: Array) -> Array:
        """Return x t."""
        return x * t

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return t + x s (1 - t^2) with s = 1 / (1 + exp(-x))."""
        return self.value_and_slope(x, t)[1]

    def value_and_slope(self, x: Array, t: Array = None) -> tuple[Array, ...]:
        """Return value, slope, and what the second derivative is made of: t and s."""
        t = self.transcendental(x) if t is None else t
        s = get_backend(x).logistic(x)
        return x * t, t + x * (s * (1 - t * t)), t, s

    def second_derivative(  # type: ignore[override]
        self, x: Array, value: Array, slope: Array, t: Array, s: Array
    ) -> Array:
        """Return s (1 - t^2) (2 + x (1 - s - 2 s t))."""
        return (s * (1 - t * t)) * (2 + x * (1 - s - 2 * (s * t)))


class Softplus(Entrywise):
    """The smooth ``log(1 + exp(beta x)) / beta``."""

    defaults: ClassVar[Mapping[str, float]] = {"beta": 1.0}

    @property
    def slope_lipschitz(self) -> float:
        """Second derivative at zero."""
        return 0.25 * float(self.parameters["beta"])

    def value(self, x: Array, t: Array) -> Array:
        """Return log(exp(beta x) + exp(0)) / beta, without overflow."""
        xp, beta = get_backend(x).xp, self.parameters["beta"]
        return xp.logaddexp(beta * x, xp.zeros_like(x)) / beta

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1 / (1 + exp(-beta x))."""
        return get_backend(x).logistic(self.parameters["beta"] * x)

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return beta slope (1 - slope)."""
        return self.parameters["beta"] * slope * (1 - slope)


class Softsign(Entrywise):
    """``x / (1 + |x|)``."""

    @property
    def slope_lipschitz(self) -> float:
        """Second derivative on either side of zero."""
        return 2.0

    def transcendental(self, x: Array) -> Array:
        """Return t = 1 / (1 + |x|)."""
        return 1 / (1 + get_backend(x).xp.abs(x))

    def value(self, x: Array, t: Array) -> Array:
        """Return x t."""
        return x * t

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return t^2."""
        return t * t

    def value_and_slope(self, x: Array, t: Array = None) -> tuple[Array, ...]:
        """Return value, slope and t."""
        t = self.transcendental(x) if t is None else t
        return self.value(x, t), self.slope(x, None, t), t

    def second_derivative(self, x: Array, value: Array, slope: Array, t: Array = None) -> Array:
        """Return -2 t^3 above zero and 2 t^3 below."""
        return -2 * (slope * t) * get_backend(x).xp.sign(x)


class Tanh(Entrywise):
    """The hyperbolic tangent."""

    @property
    def slope_lipschitz(self) -> float:
        """4 / (3 sqrt(3)), the second derivative where tanh is -1 / sqrt(3), rounded up."""
        return 0.76980036

    def transcendental(self, x: Array) -> Array:
        """Return tanh(x), the value itself."""
        return get_backend(x).xp.tanh(x)

    def transcendental_of(self, value: Array) -> Array:
        """Return the value."""
        return value

    def value(self, x: Array, t: Array) -> Array:
        """Return t."""
        return t

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1 - value^2."""
        return 1 - value * value

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return -2 value slope."""
        return -2 * value * slope


class Sigmoid(Entrywise):
    """The logistic function ``1 / (1 + exp(-x))``."""

    @property
    def lipschitz(self) -> float:
        """Slope at zero."""
        return 0.25

    @property
    def slope_lipschitz(self) -> float:
        """1 / (6 sqrt(3)), an eighth of that of tanh, rounded up."""
        return 0.096225045

    def value(self, x: Array, t: Array) -> Array:
        """Return 1 / (1 + exp(-x)), without overflow."""
        return get_backend(x).logistic(x)

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return (1 - tanh(x / 2)^2) / 4."""
        return 0.25 * (1 - get_backend(x).xp.tanh(0.5 * x) ** 2)

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return slope (1 - 2 value)."""
        return slope * (1 - 2 * value)


class Sin(Entrywise):
    """The sine."""

    @property
    def slope_lipschitz(self) -> float:
        """Second derivative at a quarter of the period."""
        return 1.0

    def value(self, x: Array, t: Array) -> Array:
        """Return sin(x)."""
        return get_backend(x).xp.sin(x)

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return cos(x)."""
        return get_backend(x).xp.cos(x)

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return -sin(x)."""
        return -value


class Identity(Entrywise):
    """The value x itself."""

    has_unit_slope = True

    @property
    def slope_lipschitz(self) -> float:
        """The slope is constant."""
        return 0.0

    def value(self, x: Array, t: Array) -> Array:
        """Return x."""
        return x

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1."""
        return get_backend(x).xp.ones_like(x)

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return 0."""
        return get_backend(x).xp.zeros_like(x)
