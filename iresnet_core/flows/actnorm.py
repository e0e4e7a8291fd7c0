"""Affine map per channel with data-dependent initialisation (Kingma and Dhariwal 2018, Sec. 3.1)."""

import math
from collections.abc import Sequence
from typing import Any, Self

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import (
    require_batch,
    require_finite,
    require_floating,
    require_positive,
    require_same_dtype,
    unit_roundoff,
    widest,
)
from iresnet_core.determinant import LogDetOptions
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.condition import Condition, as_condition, require_rows
from iresnet_core.flows.layer import (
    InverseOptions,
    Layer,
    Shape,
    Transformed,
    channel_axis,
    closed_form_inverse,
    closed_form_logdet,
    wide_norms,
)
from iresnet_core.flows.outliers import require_visible_bulk
from iresnet_core.results import Inverse

__all__ = ["ActNorm"]


class ActNorm(Layer):
    """``z = (x + bias) exp(log_scale)``, one pair of parameters per channel; log|det| is ``pixels * sum(log_scale)``.

    It brings the input of a residual block to mean zero and the standard deviation `spread`. Leave the parameters out
    and let `Flow.initialize` set them from data (Kingma and Dhariwal 2018, Sec. 3.1).

    Parameters
    ----------
    log_scale, bias : array (channels,), optional
        Give both or neither. Without them `forward` and `inverse` raise until `initialized` or `Flow.initialize` has
        returned a layer that has them.
    axis : int
        The channel axis of a batch; 1 for vectors and images with the channels first, -1 for channels last.
    spread : float
        Standard deviation that data give every channel, where they set the parameters: 1 by default. Activations bend
        at a scale of their own, so that they bend more of an input that is wider, at the same Lipschitz constant. A
        layer with parameters has it in its log_scale.
    condition : Condition, Dense or Chain, optional
        Map of a condition to (2 channels,) numbers, of which the first half is added to log_scale and the second to
        bias, for every sample apart. Weights of zero to begin with leave the layer as it is without a condition.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, MixedBackendsError
        If the parameters do not fit each other or are not finite.
    InvalidArgumentError
        If only one of them is given, `spread` is not positive or stands beside parameters, or a scale or its reciprocal
        is not a normal number of the dtype; under a condition from `forward` and `inverse`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> layer = ActNorm.initialize(x)
    >>> layer.forward(x).value
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> layer.forward(x).logdet.value.round(6)
    array([-2.302585, -2.302585])
    """

    log_scale: Array | None
    bias: Array | None
    axis: int
    spread: float = 1.0

    def __init__(
        self,
        log_scale: Array | None = None,
        bias: Array | None = None,
        *,
        axis: int = 1,
        condition: Any = None,
        spread: float = 1.0,
    ) -> None:
        if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
            raise InvalidArgumentError(f"axis must be a whole number other than 0, the batch axis, got {axis!r}.")
        if (log_scale is None) != (bias is None):
            raise InvalidArgumentError("give both log_scale and bias, or neither for a layer to be initialised.")
        spread = require_positive(spread, "spread")
        if log_scale is not None and spread != 1:
            raise InvalidArgumentError(
                f"spread={spread:g} is for a layer that data will set; one with parameters has it in log_scale."
            )
        if log_scale is not None and bias is not None:
            backend = get_backend(log_scale, bias)
            for parameter, name in ((log_scale, "log_scale"), (bias, "bias")):
                require_floating(backend, parameter, name)
                require_finite(backend, parameter, name)
            require_same_dtype(bias, "bias", log_scale, "log_scale")
            if log_scale.ndim != 1 or tuple(bias.shape) != tuple(log_scale.shape) or not log_scale.shape[0]:
                raise ShapeError(
                    "log_scale and bias must have one shape (channels,), "
                    f"got {tuple(log_scale.shape)} and {tuple(bias.shape)}."
                )
            _require_normal_scales(backend, log_scale)
            log_scale, bias = backend.frozen(log_scale), backend.frozen(bias)
        condition = as_condition(condition)
        if condition is not None:
            _require_pairs(condition, log_scale)
        self._keep(log_scale=log_scale, bias=bias, axis=axis, condition=condition, spread=spread)

    def __repr__(self) -> str:
        channels = "not initialised" if self.log_scale is None else f"{self.log_scale.shape[-1]} channels"
        condition = "" if self.condition is None else f", condition={self.condition!r}"
        spread = "" if self.spread == 1 else f", spread={self.spread:g}"
        return f"ActNorm({channels}, axis={self.axis}{condition}{spread})"

    @classmethod
    def initialize(cls, x: Array, axis: int = 1, spread: float = 1.0) -> "ActNorm":
        """Return the layer that gives every channel of `x` mean zero and standard deviation `spread`.

        Parameters
        ----------
        x : array (batch, ...)
            At least one sample. Mean and (biased) variance run over the batch and the pixels.
        axis : int
            The channel axis.
        spread : float
            The standard deviation, 1 by default.

        Raises
        ------
        ShapeError, DtypeError, NonFiniteError
            If `x` is empty, of the wrong shape or dtype, or holds NaN or infinity.
        InvalidArgumentError
            If `spread` is not positive or beyond the dtype, or a few entries are so large that normalisation would make
            all others one point.

        Notes
        -----
        A channel that is constant up to the rounding of its entries does not tell its scale: it is centred, and its
        scale is 1, since `spread` at each layer would make a power of it. With a batch of one vector this is so for
        every channel.
        """
        backend = get_backend(x)
        require_floating(backend, x, "the data of the initialisation")
        require_batch(x, "the data of the initialisation")
        require_finite(backend, x, "the data of the initialisation")
        if not x.shape[0]:
            raise ShapeError(f"ActNorm cannot be initialised from an empty batch, got shape {tuple(x.shape)}.")
        with backend.full_precision():
            position = channel_axis(axis, x.ndim, "ActNorm")
            require_visible_bulk(backend, x, position)
            wished = require_positive(spread, "spread")
            if abs(math.log(wished)) >= _scale_limit(backend, x.dtype):
                raise InvalidArgumentError(f"a spread of {wished:g} is beyond the range of {x.dtype}.")
            return cls(*_statistics(backend, x, position, wished), axis=axis)

    def initialized(self, x: Array, context: Array | None = None) -> "ActNorm":
        """Return what `ActNorm.initialize` makes of x, or the layer itself if it has its parameters already."""
        if self.log_scale is not None:
            return self
        found = ActNorm.initialize(x, axis=self.axis, spread=self.spread)
        if self.condition is None:
            return found
        return ActNorm(found.log_scale, found.bias, axis=self.axis, condition=self.condition)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The two parameters, or nothing, and those of the map of the condition."""
        own = () if self.log_scale is None else (self.log_scale, self.bias)
        return own if self.condition is None else own + self.condition.arrays

    @property
    def inverse_lipschitz(self) -> Any:
        """Largest reciprocal scale, as an array (); (batch,) for the layer under one condition per sample."""
        backend, log_scale, _ = self._parameters()
        xp = backend.xp
        with backend.full_precision():
            return xp.max(xp.exp(-xp.astype(log_scale, widest(backend))), axis=-1) * (
                1 + 4 * unit_roundoff(backend, widest(backend))
            )

    @property
    def forward_lipschitz(self) -> Any:
        """Largest scale, as an array ()."""
        backend, log_scale, _ = self._parameters()
        xp, wide = backend.xp, widest(backend)
        with backend.full_precision():
            return xp.max(xp.exp(xp.astype(log_scale, wide))) * (1 + 4 * unit_roundoff(backend, wide))

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        position = channel_axis(self.axis, len(input_shape) + 1, repr(self)) - 1
        if self.log_scale is not None and input_shape[position] != self.log_scale.shape[-1]:
            raise ShapeError(
                f"{self!r} does not fit samples of shape {tuple(input_shape)}: {input_shape[position]} channels."
            )
        return tuple(input_shape)

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        return self.output_shape(output_shape)

    def astype(self, dtype: Any) -> Self:
        """Return the layer with parameters of another dtype."""
        condition = None if self.condition is None else self.condition.astype(dtype)
        if self.log_scale is None:
            return self if condition is None else type(self)(axis=self.axis, condition=condition, spread=self.spread)
        if self.log_scale.dtype == dtype and condition is None:
            return self
        backend, log_scale, bias = self._parameters()
        cast = backend.xp.astype(log_scale, dtype), backend.xp.astype(bias, dtype)
        return type(self)(*cast, axis=self.axis, condition=condition)

    def _given(self, backend: Backend, rows: Array, single: bool) -> "ActNorm":
        if self.condition is None:
            return self
        _, log_scale, bias = self._parameters()
        channels = log_scale.shape[0]
        log_scale, bias = log_scale + rows[:, :channels], bias + rows[:, channels:]
        if single:
            return ActNorm(log_scale[0, ...], bias[0, ...], axis=self.axis)
        return ActNormPerSample(log_scale, bias, axis=self.axis)

    def _parameters(self) -> tuple[Backend, Array, Array]:
        if self.log_scale is None:
            raise InvalidArgumentError(
                "this ActNorm has no parameters yet. Set them from data: flow = flow.initialize(x), "
                "or layer = ActNorm.initialize(x)."
            )
        return get_backend(self.log_scale), self.log_scale, self.bias

    def _per_channel(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        """Return the parameters in a shape that broadcasts against x."""
        _, log_scale, bias = self._parameters()
        shape = [1] * x.ndim
        shape[channel_axis(self.axis, x.ndim, repr(self))] = -1
        return backend.xp.reshape(log_scale, tuple(shape)), backend.xp.reshape(bias, tuple(shape))

    def _map(self, backend: Backend, x: Array) -> Array:
        log_scale, bias = self._per_channel(backend, x)
        return (x + bias) * backend.xp.exp(log_scale)

    def _forward(self, backend: Backend, x: Array, options: LogDetOptions) -> Transformed:
        value = self._map(backend, x)
        xp = backend.xp
        log_scale = xp.astype(self.log_scale, widest(backend))
        channels = log_scale.shape[-1]
        pixels = math.prod(x.shape[1:]) // channels
        u = unit_roundoff(backend, widest(backend))
        logdet = xp.broadcast_to(pixels * xp.sum(log_scale, axis=-1), (x.shape[0],))
        magnitude = pixels * xp.sum(xp.abs(log_scale), axis=-1)
        rounding = xp.broadcast_to((channels + 2) * u * magnitude, (x.shape[0],))
        return Transformed(value, closed_form_logdet(backend, logdet, rounding, x.dtype))

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        log_scale, bias = self._per_channel(backend, z)
        scaled = z * backend.xp.exp(-log_scale)
        x = scaled - bias
        info = backend.xp.finfo(z.dtype)
        # Four roundings of eps at most for exp, one for each operation; the last term is for results that underflow.
        rounding = 8 * float(info.eps) * (wide_norms(backend, scaled) + wide_norms(backend, x)) + math.sqrt(
            math.prod(z.shape[1:])
        ) * float(info.smallest_normal)
        return closed_form_inverse(backend, x, rounding)

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        value = self._map(backend, x)
        info = backend.xp.finfo(x.dtype)
        # Four roundings of eps at most for exp, one for each operation; the last term is for results that underflow.
        smallest = math.sqrt(math.prod(x.shape[1:])) * float(info.smallest_normal)
        return value, 8 * float(info.eps) * wide_norms(backend, value) + smallest

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        return error * backend.stop_gradient(self.forward_lipschitz), backend.xp.zeros_like(error)


class ActNormPerSample(ActNorm):
    """The layer under one condition for each sample: log_scale and bias have shape (batch, channels)."""

    def __init__(self, log_scale: Array, bias: Array, *, axis: int = 1, condition: None = None) -> None:
        backend = get_backend(log_scale, bias)
        for parameter, name in ((log_scale, "log_scale"), (bias, "bias")):
            require_finite(backend, parameter, f"{name} under the conditions", samples=True)
        _require_normal_scales(backend, log_scale)
        self._keep(log_scale=log_scale, bias=bias, axis=axis)

    def _per_channel(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        _, log_scale, bias = self._parameters()
        require_rows(backend, log_scale, x)
        shape = [1] * x.ndim
        shape[0], shape[channel_axis(self.axis, x.ndim, repr(self))] = log_scale.shape
        return backend.xp.reshape(log_scale, tuple(shape)), backend.xp.reshape(bias, tuple(shape))


def _require_pairs(condition: Condition, log_scale: Array | None) -> None:
    """Refuse a map that does not return a pair of numbers per channel."""
    channels = condition.width / 2 if log_scale is None else log_scale.shape[0]
    if condition.width != 2 * channels or condition.width % 2:
        seen = "two numbers per channel" if log_scale is None else f"{2 * log_scale.shape[0]}, two per channel"
        raise ShapeError(f"the map of the condition of an ActNorm returns {seen}; this one returns {condition.width}.")


def _statistics(backend: Backend, x: Array, position: int, wished: float) -> tuple[Array, Array]:
    """Return the log-scale and bias (channels,) that give every channel of `x` mean zero and that deviation."""
    xp = backend.xp
    others = tuple(a for a in range(x.ndim) if a != position)
    info = xp.finfo(x.dtype)
    # Entries of at most 1 keep the squares of huge and tiny data within range.
    wide = xp.astype(x, widest(backend))
    largest = xp.max(xp.abs(wide), axis=others, keepdims=True)
    largest = xp.where(largest > 0, largest, xp.ones_like(largest))
    unit = wide / largest
    mean = xp.mean(unit, axis=others, keepdims=True)
    std = xp.sqrt(xp.mean((unit - mean) ** 2, axis=others))
    constant = std <= 4 * float(info.eps)
    largest = xp.reshape(largest, std.shape)
    spread = xp.where(constant, xp.ones_like(std), std)
    log_std = xp.where(constant, xp.zeros_like(std), xp.log(spread) + xp.log(largest) - math.log(wished))
    limit = 0.999 * _scale_limit(backend, x.dtype)
    log_std = xp.where(log_std < -limit, xp.full_like(std, -limit), log_std)
    log_std = xp.where(log_std > limit, xp.full_like(std, limit), log_std)
    centre = xp.reshape(mean, std.shape) * largest
    return xp.astype(-log_std, x.dtype), xp.astype(-centre, x.dtype)


def _scale_limit(backend: Backend, dtype: Any) -> float:
    """Largest |log_scale| for which the scale and its reciprocal are normal numbers."""
    return -math.log(float(backend.xp.finfo(dtype).smallest_normal))


def _require_normal_scales(backend: Backend, log_scale: Array) -> None:
    if backend.is_tracing(log_scale) or 0 in log_scale.shape:
        return
    limit = _scale_limit(backend, log_scale.dtype)
    largest = float(backend.xp.max(backend.xp.abs(backend.stop_gradient(log_scale))))
    if largest > limit:
        raise InvalidArgumentError(
            f"|log_scale| reaches {largest:.6g}, but exp of it and its reciprocal are normal numbers of "
            f"{log_scale.dtype} only up to {limit:.4g}."
        )
