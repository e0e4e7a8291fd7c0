"""The activation functions: a class each, and the table by which `Activation` and the tests find them.

A new one is a class and a row of `ACTIVATIONS`; `iresnet_core.reference` states it a second time, independently.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.branches.slopes import Diagonal, PairSwap, partner_of
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["ACTIVATIONS", "SWISH_SLOPE", "ActivationFunction", "Entrywise"]

# Supremum of the slope of swish, 1.09983932..., rounded up, so that lipswish is 1-Lipschitz (Chen et al. 2019, Sec. 4).
SWISH_SLOPE = 1.0998394
_NORMALIZATION = repr(1 / SWISH_SLOPE)  # text, for the reason that `Activation.function_for` gives


class ActivationFunction(ABC):
    """A function without weights that keeps the shape, with its Jacobian.

    Attributes
    ----------
    name : str
        The name of the class in lower case.
    parameters : dict
        Their values by name.
    entrywise : bool
        Whether it acts on every entry alone, so that its Jacobian is diagonal.
    has_unit_slope : bool
        Whether its Jacobian is the identity everywhere.
    defaults : mapping
        The names of the parameters with their default values.
    """

    entrywise: ClassVar[bool]
    has_unit_slope: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, float]] = {}

    def __init__(self, **parameters: float) -> None:
        self.name = type(self).__name__.lower()
        unknown = set(parameters) - set(self.defaults)
        if unknown:
            raise InvalidArgumentError(f"{self.name} has the parameters {list(self.defaults)}, not {sorted(unknown)}.")
        given = {**self.defaults, **parameters}
        self.parameters = {key: self.require_parameter(key, value) for key, value in given.items()}

    @abstractmethod
    def require_parameter(self, key: str, value: Any) -> float:
        """Return the value of a parameter; refuse one that is out of its range."""

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        """Lipschitz constant: the supremum of the norm of the Jacobian."""

    @property
    @abstractmethod
    def slope_lipschitz(self) -> float:
        """Lipschitz constant of the Jacobian, infinite where it jumps."""

    @abstractmethod
    def __call__(self, x: Array) -> Array:
        """Return the value at x (batch, ...), of the same shape."""

    @abstractmethod
    def linearize(self, x: Array) -> tuple[Array, Diagonal | PairSwap]:
        """Return the value at x (batch, ...) and the Jacobian there."""


class Entrywise(ActivationFunction):
    """A function of one real variable with its first two derivatives, applied to every entry.

    A subclass writes `value`, `slope` and `second_derivative`, each of which gets the results of those before it. If
    they share a part that takes time, such as an exponential, it is `transcendental`, and its result t is the first.
    """

    entrywise = True
    keeps_transcendental: ClassVar[bool] = True  # for a way back: not where a backend makes the function at once

    def require_parameter(self, key: str, value: Any) -> float:
        """Refuse parameters that are not positive."""
        number = float(value)
        if not 0 < number < math.inf:  # a compiler that takes numbers for variables knows no isfinite
            raise InvalidArgumentError(f"{self.name}: {key} must be a positive finite number, got {number}.")
        return number

    @property
    def lipschitz(self) -> float:
        """Supremum of the absolute slope; 1 unless a subclass says otherwise."""
        return 1.0

    def transcendental(self, x: Array) -> Array:
        """Return t, which the other formulas share; None if they share nothing."""
        return None

    @abstractmethod
    def value(self, x: Array, t: Array) -> Array:
        """Return the value at x, where ``transcendental(x)`` is t."""

    @abstractmethod
    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return the derivative at x; at a kink the derivative from the left."""

    @abstractmethod
    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return the second derivative at x; zero at a kink. It gets all that `value_and_slope` returns."""

    def value_and_slope(self, x: Array, t: Array = None) -> tuple[Array, ...]:
        """Return value and slope at x, and what else `second_derivative` is to get; `t` may be given if it is known."""
        t = self.transcendental(x) if t is None else t
        return (value := self.value(x, t)), self.slope(x, value, t)

    def __call__(self, x: Array) -> Array:
        """Return the value at every entry of x."""
        return self.value(x, self.transcendental(x))

    def quick_value(self, x: Array) -> Array:
        """Return the value at every entry of x, to rounding."""
        return self(x)

    def pulled_back(self, x: Array, u: Array, t: Array = None) -> Array:
        """Return u times the slope at x; `t` may be given if it is known."""
        return u * self.value_and_slope(x, t)[1]

    def linearize(self, x: Array) -> tuple[Array, Diagonal]:
        """Return the value at x and the slopes, both differentiable."""
        value, slope = get_backend(x).entrywise(x, self.value_and_slope, self.second_derivative)
        return value, Diagonal(slope)


class Lipswish(Entrywise):
    """Swish, ``x / (1 + exp(-beta x))``, divided by the supremum of its slope."""

    defaults: ClassVar[Mapping[str, float]] = {"beta": 1.0}

    @property
    def slope_lipschitz(self) -> float:
        """Second derivative at zero, rounded up."""
        return (0.5 + 1e-15) / SWISH_SLOPE * float(self.parameters["beta"])

    keeps_transcendental = False

    def quick_value(self, x: Array) -> Array:
        """Return the value at every entry of x, by the backend's swish."""
        value = get_backend(x).swish(self._times_beta(x))
        value *= float(_NORMALIZATION) / self.parameters["beta"]
        return value

    def pulled_back(self, x: Array, u: Array, t: Array = None) -> Array:
        """Return u times the slope at x, by the backend's swish."""
        return get_backend(x).swish_pullback(self._times_beta(x), u * float(_NORMALIZATION))

    def transcendental(self, x: Array) -> Array:
        """Return t = 1 / (1 + exp(-beta x))."""
        return get_backend(x).logistic(self._times_beta(x))

    def value(self, x: Array, t: Array) -> Array:
        """Return x t / SWISH_SLOPE."""
        return x * (t * float(_NORMALIZATION))

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return t / SWISH_SLOPE + beta value (1 - t)."""
        return self.value_and_slope(x, t)[1]

    def value_and_slope(self, x: Array, t: Array = None) -> tuple[Array, ...]:
        """Return value, slope and 1 - t; what they share is computed once, for the sake of training steps."""
        t = self.transcendental(x) if t is None else t
        scaled, rest = t * float(_NORMALIZATION), 1 - t
        return (value := x * scaled), get_backend(x).multiply_add(scaled, self._times_beta(value), rest), rest

    def second_derivative(self, x: Array, value: Array, slope: Array, rest: Array = None) -> Array:
        """Return beta (1 - t) (2 slope - beta value), where `rest` is 1 - t."""
        return self._times_beta(rest * (2 * slope - self._times_beta(value)))

    def _times_beta(self, x: Array) -> Array:
        beta = self.parameters["beta"]
        return x if beta == 1 else beta * x


class _ExponentialBelowZero(Entrywise):
    """The identity above zero and ``scale (exp(x / width) - 1)`` below: the common form of the ELU and the CELU."""

    defaults: ClassVar[Mapping[str, float]] = {"alpha": 1.0}

    @abstractmethod
    def scale_and_width(self) -> tuple[float, float]:
        """Return scale and width."""

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


class Relu(Entrywise):
    """The larger one of x and 0."""

    @property
    def slope_lipschitz(self) -> float:
        """Infinity, since the slope jumps at zero."""
        return math.inf

    def value(self, x: Array, t: Array) -> Array:
        """Return max(x, 0)."""
        xp = get_backend(x).xp
        return xp.where(x > 0, x, xp.zeros_like(x))

    def slope(self, x: Array, value: Array, t: Array) -> Array:
        """Return 1 above zero and 0 elsewhere."""
        return get_backend(x).xp.astype(x > 0, x.dtype)

    def second_derivative(self, x: Array, value: Array, slope: Array, more: Array = None) -> Array:
        """Return 0."""
        return get_backend(x).xp.zeros_like(x)


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


class Tanh(Entrywise):
    """The hyperbolic tangent."""

    @property
    def slope_lipschitz(self) -> float:
        """4 / (3 sqrt(3)), the second derivative where tanh is -1 / sqrt(3), rounded up."""
        return 0.76980036

    def transcendental(self, x: Array) -> Array:
        """Return tanh(x), the value itself."""
        return get_backend(x).xp.tanh(x)

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


class Maxmin(ActivationFunction):
    """Neighbouring channels 2k and 2k + 1 along `axis` become their maximum and their minimum (Anil et al. 2019)."""

    entrywise = False
    defaults: ClassVar[Mapping[str, float]] = {"axis": 1}

    def require_parameter(self, key: str, value: Any) -> int:
        """Refuse axes that are no whole number, or that of the samples."""
        if not isinstance(value, int):
            raise InvalidArgumentError(f"maxmin takes the whole number axis, got {value!r}.")
        if value == 0:
            raise InvalidArgumentError("maxmin along axis 0 would mix the samples of a batch.")
        return value

    @property
    def lipschitz(self) -> float:
        """The Jacobian is a permutation."""
        return 1.0

    @property
    def slope_lipschitz(self) -> float:
        """Infinity, since the permutation changes at once."""
        return math.inf

    def __call__(self, x: Array) -> Array:
        """Sort the pairs of channels of x (batch, ...)."""
        return self.linearize(x)[0]

    def linearize(self, x: Array) -> tuple[Array, PairSwap]:
        """Return the sorted pairs and the exchange of channels that sorts them."""
        xp, axis = get_backend(x).xp, self._axis_from_end(x)
        partner = partner_of(xp, x, axis)
        second = xp.reshape(
            xp.astype(xp.arange(x.shape[axis], device=device_of(x)) % 2, xp.bool), (-1,) + (1,) * (-axis - 1)
        )
        jacobian = PairSwap(xp, xp.where(second, x > partner, x < partner), axis)
        return jacobian.apply(x), jacobian

    def _axis_from_end(self, x: Array) -> int:
        """The axis counted from the end, where the leading axes of stacks do not move it."""
        axis = int(self.parameters["axis"])
        if not -x.ndim < axis < x.ndim or axis % x.ndim == 0:
            raise ShapeError(f"Activation('maxmin', axis={axis}) has no such axis in shape {tuple(x.shape)}.")
        from_end = axis - x.ndim if axis > 0 else axis
        if x.shape[from_end] % 2:
            raise ShapeError(f"Activation('maxmin', axis={axis}) sorts pairs, not the channels in {tuple(x.shape)}.")
        return from_end


ACTIVATIONS: dict[str, type[ActivationFunction]] = {
    "lipswish": Lipswish,
    "elu": Elu,
    "celu": Celu,
    "relu": Relu,
    "softplus": Softplus,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "sin": Sin,
    "identity": Identity,
    "maxmin": Maxmin,
}
