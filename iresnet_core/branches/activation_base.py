"""What an activation function is: its value, its slope and their constants."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.slopes import Diagonal, PairSwap
from iresnet_core.errors import InvalidArgumentError

__all__ = ["ActivationFunction", "Entrywise"]


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

    def transcendental_of(self, value: Array) -> Array:
        """Return t, made from the value in place of x; None where a function cannot do that."""
        return None

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

    def pulled_back(self, x: Array, u: Array, value: Array, t: Array = None) -> Array:
        """Return u times the slope at x, where the value is known; `t` may be given if it is."""
        t = self.transcendental_of(value) if t is None else t
        return u * self.slope(x, value, self.transcendental(x) if t is None else t)

    def linearize(self, x: Array) -> tuple[Array, Diagonal]:
        """Return the value at x and the slopes, both differentiable."""
        value, slope = get_backend(x).entrywise(x, self.value_and_slope, self.second_derivative)
        return value, Diagonal(slope)
