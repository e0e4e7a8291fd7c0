"""Activations: value, slope and Lipschitz constant of each.

All are applied entry by entry but maxmin, which sorts pairs of channels (Anil, Lucas and Grosse 2019).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.common import Copyable
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["ACTIVATIONS", "SWISH_SLOPE", "Activation", "Diagonal", "PairSwap"]

# Supremum of the slope of swish, 1.09983932..., rounded up, so that lipswish is 1-Lipschitz (Chen et al. 2019, Sec. 4).
SWISH_SLOPE = 1.0998394
_FACTOR = repr(1 / SWISH_SLOPE)  # as text, see `Activation._constants`


@dataclass(frozen=True)
class Diagonal:
    """Jacobian of an entrywise activation at one batch: multiplication by its slopes (batch, ...)."""

    entries: Array
    factor: float = 1.0

    @property
    def slope(self) -> Array:
        """The slopes, `factor` times `entries`."""
        return self.entries if self.factor == 1 else self.factor * self.entries

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch, *event)."""
        return self.slope * v

    adjoint = apply


@dataclass(frozen=True)
class PairSwap:
    """Jacobian of maxmin: pairs of channels stay, or change places where `swap` (batch, ...) says so."""

    xp: Any
    swap: Array
    axis_from_end: int

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch, *event); the matrix is its own transpose."""
        return self.xp.where(self.swap, _partner(self.xp, v, self.axis_from_end), v)

    adjoint = apply


def _partner(xp: Any, v: Array, axis: int) -> Array:
    """Exchange the members of neighbouring pairs along an axis counted from the end."""
    position = v.ndim + axis
    n = v.shape[position]
    pairs = xp.reshape(v, (*v.shape[:position], n // 2, 2, *v.shape[position + 1 :]))
    return xp.reshape(xp.flip(pairs, axis=position + 1), v.shape)


@dataclass(frozen=True)
class _Definition:
    """value(xp, x, parameters), slope(xp, x, parameters), the constant, the parameters with their defaults.

    `both` (xp, x, hard, parameters) gives value and slope, and what `bend` (xp, x, what `both` gave, parameters), the
    second derivative, can use. `hard` (xp, x, parameters), where there is one, is the part of `both` that takes time,
    and worth keeping for another call.

    Where there is `plain` (xp, x, hard, parameters), it gives the same but for the factor `factor` of value and slope,
    and `again` (xp, value, hard, parameters) what `plain` gave, from its value. `bend` does not look at x then, and its
    result has the factor that value and slope have.
    """

    value: Callable[..., Array]
    slope: Callable[..., Array]
    lipschitz: Callable[[dict[str, float]], float]
    both: Callable[..., tuple[Array, ...]]
    bend: Callable[..., Array]
    defaults: tuple[tuple[str, float], ...] = ()
    hard: Callable[..., Array] | None = None
    factor: float = 1.0
    plain: Callable[..., tuple[Array, ...]] | None = None
    again: Callable[..., tuple[Array, ...]] | None = None


def _one(_: dict[str, float]) -> float:
    return 1.0


def _logistic(xp: Any, x: Array) -> Array:
    return get_backend(x).logistic(x)


def _lipswish(xp: Any, x: Array, beta: float) -> Array:
    return x * (_logistic(xp, x if beta == 1 else beta * x) * float(_FACTOR))


def _lipswish_hard(xp: Any, x: Array, beta: float) -> Array:
    return _logistic(xp, x if beta == 1 else beta * x)


def _lipswish_both(xp: Any, x: Array, s: Array, beta: float) -> tuple[Array, ...]:
    scaled = s * float(_FACTOR)
    value = x * scaled
    rest = 1 - s
    return value, get_backend(x).multiply_add(scaled, value if beta == 1 else beta * value, rest), rest


def _swish_both(xp: Any, x: Array, s: Array, beta: float) -> tuple[Array, ...]:
    return _swish_again(xp, x * s, s, beta)


def _swish_again(xp: Any, value: Array, s: Array, beta: float) -> tuple[Array, ...]:
    rest = 1 - s
    return value, get_backend(value).multiply_add(s, value if beta == 1 else beta * value, rest), rest


def _lipswish_bend(xp: Any, x: Array, value: Array, slope: Array, rest: Array, beta: float) -> Array:
    # beta (1 - s) (F s + slope - beta value s), where F s = slope - beta value (1 - s).
    bend = rest * (2 * slope - (value if beta == 1 else beta * value))
    return bend if beta == 1 else beta * bend


def _tanh(xp: Any, x: Array) -> Array:
    return xp.tanh(x)


def _tanh_both(xp: Any, x: Array, value: Array) -> tuple[Array, ...]:
    return value, 1 - value * value


def _elu_like(xp: Any, x: Array, scale: float, width: float) -> Array:
    return xp.where(x > 0, x, scale * xp.expm1(xp.where(x > 0, xp.zeros_like(x), x) / width))


def _elu_like_slope(xp: Any, x: Array, scale: float, width: float) -> Array:
    return xp.where(x > 0, xp.ones_like(x), scale / width * xp.exp(xp.where(x > 0, xp.zeros_like(x), x) / width))


def _elu_like_hard(xp: Any, x: Array, width: float) -> Array:
    fallen = xp.minimum(x, xp.zeros_like(x))
    return xp.expm1(fallen if width == 1 else fallen / width)


def _elu_like_both(xp: Any, x: Array, fallen: Array, scale: float, width: float) -> tuple[Array, ...]:
    slope = fallen + 1 if scale == width else (scale / width) * (fallen + 1)  # where x > 0: its limit at zero
    slope = slope if scale == width else xp.where(x > 0, xp.ones_like(x), slope)
    return xp.maximum(x, xp.zeros_like(x)) + (fallen if scale == 1 else scale * fallen), slope


def _elu_like_bend(xp: Any, x: Array, slope: Array, width: float) -> Array:
    below = xp.astype(x <= 0, x.dtype) * slope
    return below if width == 1 else below / width


def _softplus(xp: Any, x: Array, beta: float) -> Array:
    return xp.logaddexp(beta * x, xp.zeros_like(x)) / beta


def _sigmoid_slope(xp: Any, x: Array) -> Array:
    return 0.25 * (1 - xp.tanh(0.5 * x) ** 2)


ACTIVATIONS: dict[str, _Definition] = {
    "lipswish": _Definition(
        _lipswish,
        lambda xp, x, beta: _lipswish_both(xp, x, _lipswish_hard(xp, x, beta), beta)[1],
        _one,
        _lipswish_both,
        _lipswish_bend,
        (("beta", 1.0),),
        _lipswish_hard,
        float(_FACTOR),
        _swish_both,
        _swish_again,
    ),
    "elu": _Definition(
        lambda xp, x, alpha: _elu_like(xp, x, alpha, 1.0),
        lambda xp, x, alpha: _elu_like_slope(xp, x, alpha, 1.0),
        lambda parameters: max(1.0, parameters["alpha"]),
        lambda xp, x, fallen, alpha: _elu_like_both(xp, x, fallen, alpha, 1.0),
        lambda xp, x, _, slope, alpha: _elu_like_bend(xp, x, slope, 1.0),
        (("alpha", 1.0),),
        lambda xp, x, alpha: _elu_like_hard(xp, x, 1.0),
    ),
    "celu": _Definition(
        lambda xp, x, alpha: _elu_like(xp, x, alpha, alpha),
        lambda xp, x, alpha: _elu_like_slope(xp, x, alpha, alpha),
        _one,
        lambda xp, x, fallen, alpha: _elu_like_both(xp, x, fallen, alpha, alpha),
        lambda xp, x, _, slope, alpha: _elu_like_bend(xp, x, slope, alpha),
        (("alpha", 1.0),),
        lambda xp, x, alpha: _elu_like_hard(xp, x, alpha),
    ),
    "relu": _Definition(
        lambda xp, x: xp.where(x > 0, x, xp.zeros_like(x)),
        lambda xp, x: xp.astype(x > 0, x.dtype),
        _one,
        lambda xp, x, _: (xp.where(x > 0, x, xp.zeros_like(x)), xp.astype(x > 0, x.dtype)),
        lambda xp, x, *_: xp.zeros_like(x),
    ),
    "softplus": _Definition(
        _softplus,
        lambda xp, x, beta: _logistic(xp, beta * x),
        _one,
        lambda xp, x, _, beta: (_softplus(xp, x, beta), _logistic(xp, beta * x)),
        lambda xp, _, value, slope, beta: beta * slope * (1 - slope),
        (("beta", 1.0),),
    ),
    "tanh": _Definition(
        _tanh,
        lambda xp, x: _tanh_both(xp, x, xp.tanh(x))[1],
        _one,
        _tanh_both,
        lambda xp, _, value, slope: -2 * value * slope,
        hard=_tanh,
    ),
    "sigmoid": _Definition(
        _logistic,
        _sigmoid_slope,
        lambda _: 0.25,
        lambda xp, x, _: (_logistic(xp, x), _sigmoid_slope(xp, x)),
        lambda xp, _, value, slope: slope * (1 - 2 * value),
    ),
    "sin": _Definition(
        lambda xp, x: xp.sin(x),
        lambda xp, x: xp.cos(x),
        _one,
        lambda xp, x, _: (xp.sin(x), xp.cos(x)),
        lambda xp, _, value, slope: -value,
    ),
    "identity": _Definition(
        lambda xp, x: x,
        lambda xp, x: xp.ones_like(x),
        _one,
        lambda xp, x, _: (x, xp.ones_like(x)),
        lambda xp, x, *_: xp.zeros_like(x),
    ),
}


class Activation(Copyable):
    """One activation with its slope and its Lipschitz constant.

    Parameters
    ----------
    name : str
        "lipswish" (``beta=1``; swish divided by the supremum of its slope), "elu" (``alpha=1``), "celu" (``alpha=1``),
        "relu", "softplus" (``beta=1``), "tanh", "sigmoid", "sin", "identity" or "maxmin" (``axis=1``: the channel axis
        of (batch, ...), whose neighbours 2k and 2k + 1 become their maximum and minimum).
    **parameters : float
        See there; alpha and beta are positive.

    Attributes
    ----------
    lipschitz : float
        Supremum of the slope (for maxmin: norm of the Jacobian).

    Raises
    ------
    InvalidArgumentError
        For an unknown name or parameter, or one that is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> Activation("elu")(np.array([[0.0, 2.0]]))
    array([[0., 2.]])
    >>> Activation("sigmoid").lipschitz
    0.25
    """

    def __init__(self, name: str, **parameters: float) -> None:
        self.name = name
        if name == "maxmin":
            self.parameters: dict[str, float] = {"axis": 1, **parameters}
            if set(self.parameters) != {"axis"} or not isinstance(self.parameters["axis"], int):
                raise InvalidArgumentError(f"maxmin takes the whole number axis, got {parameters}.")
            if self.parameters["axis"] == 0:
                raise InvalidArgumentError("maxmin along axis 0 would mix the samples of a batch.")
            self.lipschitz = 1.0
            return
        if name not in ACTIVATIONS:
            raise InvalidArgumentError(
                f"there is no activation {name!r}; there are {', '.join([*ACTIVATIONS, 'maxmin'])}."
            )
        definition = ACTIVATIONS[name]
        defaults = dict(definition.defaults)
        unknown = set(parameters) - set(defaults)
        if unknown:
            raise InvalidArgumentError(f"{name} has the parameters {list(defaults)}, not {sorted(unknown)}.")
        self.parameters = {key: float(value) for key, value in {**defaults, **parameters}.items()}
        for key, value in self.parameters.items():
            if not (math.isfinite(value) and value > 0):
                raise InvalidArgumentError(f"{name}: {key} must be a positive finite number, got {value}.")
        self._texts = tuple((key, repr(value)) for key, value in self.parameters.items())
        self.lipschitz = definition.lipschitz(self.parameters)

    def __repr__(self) -> str:
        arguments = "".join(f", {key}={value:g}" for key, value in self.parameters.items())
        return f"Activation({self.name!r}{arguments})"

    @property
    def entrywise(self) -> bool:
        """Whether the Jacobian is diagonal."""
        return self.name != "maxmin"

    def _constants(self) -> dict[str, float]:
        """The parameters, read from text: numbers a compiler may take for variables, which its loops do not capture."""
        return {key: float(text) for key, text in self._texts}

    def _channel_axis(self, x: Array) -> int:
        """The axis of maxmin counted from the end, where leading axes of products do not move it."""
        axis = int(self.parameters["axis"])
        if not -x.ndim < axis < x.ndim or axis % x.ndim == 0:
            raise ShapeError(f"{self!r} has no such axis in an array of shape {tuple(x.shape)}.")
        axis = axis - x.ndim if axis > 0 else axis
        if x.shape[axis] % 2:
            raise ShapeError(f"{self!r} sorts pairs, got {x.shape[axis]} channels in shape {tuple(x.shape)}.")
        return axis

    def __call__(self, x: Array) -> Array:
        """Return the activation of x (batch, ...), of the same shape."""
        xp = get_backend(x).xp
        if self.name == "maxmin":
            return self.linearize(x)[0]
        return ACTIVATIONS[self.name].value(xp, x, **self._constants())

    def slope(self, x: Array) -> Array:
        """Return the derivative at every entry of x; at a kink of relu that of the left.

        Raises
        ------
        InvalidArgumentError
            For maxmin, whose Jacobian is not diagonal; use `linearize`.
        """
        if not self.entrywise:
            raise InvalidArgumentError("maxmin has no slope, its Jacobian is a permutation; use linearize(x).")
        xp = get_backend(x).xp
        return ACTIVATIONS[self.name].slope(xp, x, **self._constants())

    def hard_part(self, x: Array) -> Array | None:
        """Return what takes the time of `with_slope`, such as the exponential function; None if nothing does."""
        hard = ACTIVATIONS[self.name].hard
        return None if hard is None else hard(get_backend(x).xp, x, **self._constants())

    def with_slope(self, x: Array, known: Array | None = None) -> tuple[Array, ...]:
        """Return value and slope at x of an activation that acts entry by entry, and what `bend` can use besides.

        `known` is the `hard_part` at x, if it has been kept.
        """
        known = self.hard_part(x) if known is None else known
        return ACTIVATIONS[self.name].both(get_backend(x).xp, x, known, **self._constants())

    @property
    def factor(self) -> float:
        """What `without_factor` leaves out of value and slope; 1 for most."""
        return ACTIVATIONS[self.name].factor

    @property
    def can_repeat(self) -> bool:
        """Whether there is `repeated`."""
        return ACTIVATIONS[self.name].again is not None

    def without_factor(self, x: Array, known: Array | None) -> tuple[Array, ...]:
        """Return value and slope at x, divided by `factor`, and what `bend`, divided likewise, can use besides."""
        plain = ACTIVATIONS[self.name].plain
        return self.with_slope(x, known) if plain is None else plain(get_backend(x).xp, x, known, **self._constants())

    def repeated(self, value: Array, known: Array | None) -> tuple[Array, ...]:
        """Return what `without_factor` gave, from its value and the `hard_part`: x need not be kept."""
        again = ACTIVATIONS[self.name].again
        assert again is not None
        return again(get_backend(value).xp, value, known, **self._constants())

    def bend(self, x: Array, *known: Array) -> Array:
        """Return the second derivative at x, where ``with_slope(x)`` gave `known`; zero at kinks."""
        return ACTIVATIONS[self.name].bend(get_backend(x).xp, x, *known, **self._constants())

    def linearize(self, x: Array) -> tuple[Array, Diagonal | PairSwap]:
        """Return the value at x (batch, ...) and the Jacobian there."""
        xp = get_backend(x).xp
        if self.entrywise and type(self) is not Activation:
            return self(x), Diagonal(self.slope(x))
        if self.entrywise:
            value, slope = get_backend(x).entrywise(x, self.with_slope, self.bend)
            return value, Diagonal(slope)
        axis = self._channel_axis(x)
        partner = _partner(xp, x, axis)
        second = xp.reshape(
            xp.astype(xp.arange(x.shape[axis], device=device_of(x)) % 2, xp.bool), (-1,) + (1,) * (-axis - 1)
        )
        out_of_order = xp.where(second, x > partner, x < partner)
        jacobian = PairSwap(xp, out_of_order, axis)
        return jacobian.apply(x), jacobian
