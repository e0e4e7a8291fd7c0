"""Activations with parameters that are trained: slopes below zero, and the width of any activation of the table."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.branches.slopes import Diagonal
from iresnet_core.common import require_finite, require_floating, require_same_dtype
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["PReLU", "ScaledActivation"]

# Beyond this the exponential, or its inverse, overflows in half precision.
LARGEST_LOG_SCALE = 10.0


class _PerChannel(BranchLayer):
    """An entrywise function with one parameter for each channel, or one for all."""

    entrywise: ClassVar[bool] = True

    def __init__(self, parameter: Array, name: str, axis: int) -> None:
        if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
            raise InvalidArgumentError(f"axis must be a whole number other than 0, the batch axis, got {axis!r}.")
        backend = get_backend(parameter)
        require_floating(backend, parameter, name)
        require_finite(backend, parameter, name)
        if parameter.ndim != 1 or not parameter.shape[0]:
            raise ShapeError(f"{name} must have shape (channels,) or (1,), got {tuple(parameter.shape)}.")
        self.axis, self._name = axis, name
        self.arrays: tuple[Array, ...] = (backend.frozen(parameter),)

    def _with(self, parameter: Array) -> Any:
        """Return the same layer with another array, which is not looked at."""
        layer = object.__new__(type(self))
        for name, value in self.__dict__.items():
            setattr(layer, name, value)
        layer.arrays = (parameter,)
        return layer

    def with_arrays(self, arrays: Sequence[Array]) -> Any:
        """Return the layer with another array for its parameter."""
        (parameter,) = arrays
        return self._with(parameter)

    def astype(self, dtype: Any) -> Any:
        """Return the layer in another dtype."""
        (parameter,) = self.arrays
        return self if parameter.dtype == dtype else self._with(get_backend(parameter).xp.astype(parameter, dtype))

    def _beside(self, x: Array) -> Array:
        """Return the parameter with axes of extent 1 where x has others than the channels."""
        (parameter,) = self.arrays
        require_same_dtype(x, "the input", parameter, self._name)
        axis, n = self.axis, parameter.shape[0]
        if not -x.ndim < axis < x.ndim or n not in (1, x.shape[axis]):
            raise ShapeError(
                f"{self!r} has {self._name} of shape {tuple(parameter.shape)}, which does not fit axis {axis} of an "
                f"input of shape {tuple(x.shape)}."
            )
        behind = -axis - 1 if axis < 0 else x.ndim - axis - 1
        return get_backend(x, parameter).xp.reshape(parameter, (n,) + (1,) * behind)


class PReLU(_PerChannel):
    """``max(x, 0) + a min(x, 0)`` with trained slopes a, of which no more than 1 and no less than -1 is used.

    Parameters
    ----------
    slope : array (channels,) or (1,)
        The slopes below zero, for every channel or for all. Where one lies outside of [-1, 1], the nearest end is used,
        so that the constant is 1 whatever training does.
    axis : int
        The axis of the channels, where 0 is that of the samples.

    Raises
    ------
    InvalidArgumentError, ShapeError, DtypeError, NonFiniteError
        For another axis or array.

    Notes
    -----
    Source: He et al. (2015), Eq. 1, who leave the slope free.

    Examples
    --------
    >>> import numpy as np
    >>> PReLU(np.array([0.25, -3.0]))(np.array([[-4.0, -4.0], [4.0, 4.0]]))
    array([[-1.,  4.],
           [ 4.,  4.]])
    """

    def __init__(self, slope: Array, *, axis: int = 1) -> None:
        super().__init__(slope, "slope", axis)

    def __repr__(self) -> str:
        return f"PReLU({self.slope.shape[0]} slopes, axis={self.axis})"

    @property
    def slope(self) -> Array:
        """The slopes as they were given."""
        return self.arrays[0]

    @property
    def lipschitz(self) -> float:
        """1, since slopes are used between -1 and 1 only."""
        return 1.0

    def linearize(self, x: Array) -> tuple[Array, Diagonal]:
        """Return the value at x (batch, ...) and the slopes there; at the kink those from the left."""
        xp, below = get_backend(x).xp, self._beside(x)
        below = xp.minimum(xp.maximum(below, -xp.ones_like(below)), xp.ones_like(below))
        slope = xp.where(x > 0, xp.ones_like(x), below)
        return x * slope, Diagonal(slope)


class ScaledActivation(_PerChannel):
    """``f(s x) / s`` with trained scales s = exp(log_scale): an activation f of the table, wider or narrower.

    Its slope at x is that of f at s x, so that the Lipschitz constant is that of f, whatever s is. With lipswish it is
    the ``x sigmoid(beta x) / 1.1`` of Residual Flows with its trained beta = s, with softplus the softplus of beta = s,
    with elu the CELU of alpha = 1 / s.

    Parameters
    ----------
    activation : str or Activation
        An entrywise activation f.
    log_scale : array (channels,) or (1,)
        Logarithms of the scales, for every channel or for all. Where one lies outside of [-10, 10], the nearest end is
        used.
    axis : int
        The axis of the channels, where 0 is that of the samples.

    Raises
    ------
    InvalidArgumentError, ShapeError, DtypeError, NonFiniteError
        For another activation, axis or array.

    Notes
    -----
    Source: Chen et al. (2019), Sec. 4, where the activation is a swish and s a softplus.

    Examples
    --------
    >>> import numpy as np
    >>> layer = ScaledActivation("lipswish", np.zeros(1))
    >>> np.array_equal(layer(np.ones((1, 2))), Activation("lipswish")(np.ones((1, 2))))
    True
    >>> ScaledActivation("hardtanh", np.log(np.array([2.0])))(np.array([[0.25, 3.0]]))  # between -1/2 and 1/2
    array([[0.25, 0.5 ]])
    """

    def __init__(self, activation: str | Activation, log_scale: Array, *, axis: int = 1) -> None:
        super().__init__(log_scale, "log_scale", axis)
        self.activation = Activation(activation) if isinstance(activation, str) else activation
        if not (isinstance(self.activation, Activation) and self.activation.entrywise):
            raise InvalidArgumentError(f"ScaledActivation takes an entrywise activation, got {activation!r}.")

    def __repr__(self) -> str:
        return f"ScaledActivation({self.activation!r}, {self.log_scale.shape[0]} scales, axis={self.axis})"

    @property
    def log_scale(self) -> Array:
        """The logarithms of the scales as they were given."""
        return self.arrays[0]

    @property
    def lipschitz(self) -> float:
        """That of the activation."""
        return self.activation.lipschitz

    @property
    def slope_lipschitz(self) -> float:
        """That of the activation times the largest scale; infinity while a program is compiled for any scales."""
        backend, xp = get_backend(self.log_scale), get_backend(self.log_scale).xp
        bend = self.activation.slope_lipschitz
        if not math.isfinite(bend) or backend.is_tracing(self.log_scale):
            return math.inf
        largest = float(xp.max(backend.stop_gradient(self._limited(self.log_scale))))
        return bend * math.exp(largest) * (1 + 1e-6)  # the exponential of the dtype is a little off

    def linearize(self, x: Array) -> tuple[Array, Diagonal]:
        """Return the value at x (batch, ...) and the slopes there."""
        xp = get_backend(x).xp
        scale = xp.exp(self._limited(self._beside(x)))
        value, jacobian = self.activation.linearize(x * scale)
        assert isinstance(jacobian, Diagonal)
        return value / scale, jacobian

    def _limited(self, log_scale: Array) -> Array:
        xp = get_backend(log_scale).xp
        ends = xp.full_like(log_scale, LARGEST_LOG_SCALE)
        return xp.minimum(xp.maximum(log_scale, -ends), ends)
