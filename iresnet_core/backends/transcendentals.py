"""Functions with an exponential that many frameworks have ready; activations are made of them."""

from typing import Any

__all__ = ["Transcendentals"]

Array = Any


class Transcendentals:
    """Methods of a `Backend`, with their definitions in the array API where that has what they need."""

    xp: Any

    def logistic(self, x: Array) -> Array:
        """Return 1 / (1 + exp(-x)), without overflow."""
        return 0.5 * (1 + self.xp.tanh(0.5 * x))

    def erf(self, x: Array) -> Array:
        """Return the error function of every entry."""
        raise NotImplementedError

    def swish(self, x: Array) -> Array:
        """Return x / (1 + exp(-x))."""
        return x * self.logistic(x)

    def swish_pullback(self, x: Array, u: Array) -> Array:
        """Return u times the derivative of `swish` at x, without a derivative of its own."""
        t = self.logistic(x)
        return u * (t + x * t * (1 - t))

    def elu(self, x: Array, alpha: float, scale: float, width: float) -> Array:
        """Return scale x above zero, and scale alpha (exp(x / width) - 1) below."""
        xp, zero = self.xp, self.xp.zeros_like(x)
        below = xp.minimum(x, zero)
        below = xp.expm1(below if width == 1 else below / width)
        value = xp.maximum(x, zero) + (below if alpha == 1 else alpha * below)
        return value if scale == 1 else scale * value
