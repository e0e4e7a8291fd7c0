"""The affine map per channel: what both frameworks' layers mean and check."""

import math
from typing import Any, Self

import iresnet_core as core
from iresnet_core.adapters.shared.layer import LayerMethods, Weights
from iresnet_core.backends import Array, get_backend
from iresnet_core.common import require_positive_int
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Layer, Shape

__all__ = ["ActNormMethods"]


class ActNormMethods(LayerMethods):
    """One shift and one scale a channel, which are 0 until data have set them: until then the layer is the identity.

    The bias is a multiple of `unit`, about the width of the data that becomes 1, so that a step of an optimiser moves
    it as far at every scale. The unit is a power of two, so that the product does not round.

    Whether data have set them is part of the saved state, so that a checkpoint is never initialised again.
    """

    _is_conditioned_by_core = True
    log_scale: Any
    bias: Any
    unit: Any
    is_initialized: Any
    spread: float = 1.0  # of layers that were pickled before they had one

    def __init__(
        self,
        channels: int | None = None,
        *,
        axis: int | None = None,
        context_features: int | None = None,
        spread: float = 1.0,
        **options: Any,
    ) -> None:
        """Make the layer.

        Parameters
        ----------
        channels : int
            Number of channels. In Keras it may be left out; it is then that of the first input.
        axis : int, optional
            Channel axis of a batch; by default 1 in PyTorch, -1 in Keras.
        context_features : int, optional
            Size of a condition. A linear map of it, which is zero at first, is added to log_scale and bias.
        spread : float
            Standard deviation that data give every channel, 1 by default. Blocks of the same Lipschitz constant bend
            wide inputs more: 20 suits points in the plane, 5 images. The last layer of a flow is to give 1, as the
            latents have.
        **options
            Options of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If `channels`, `context_features` or `spread` is not positive, or the axis is that of the samples.
        """
        super().__init__(**options)
        self.axis = self.channel_axis if axis is None else axis
        self.spread = core.ActNorm(axis=self.axis, spread=spread).spread  # checks both
        if channels is not None and channels < 1:
            raise InvalidArgumentError(f"channels must be a positive whole number, got {channels!r}.")
        self.channels = channels
        if context_features is not None:
            require_positive_int(context_features, "context_features")
        self.context_features = context_features
        self._make_parameters()

    def _make_parameters(self) -> None:
        """Make the parameters, where their number is known without data."""

    def _parameter(self, parameter: Any) -> Array:
        """Return a parameter as an array that can be differentiated by."""
        raise NotImplementedError

    def _context_weight(self) -> Array:
        """Return the weight (2 channels, context_features) of the map of the condition."""
        raise NotImplementedError

    def _statistics(self, x: Array) -> Array:
        """Return the samples from which the parameters are set, as constants: in PyTorch, those of all processes."""
        raise NotImplementedError

    def _assign(self, log_scale: Array, bias: Array, unit: Array) -> None:
        """Write values (channels,) into the parameters and the unit."""
        raise NotImplementedError

    def _mark(self) -> None:
        """Write into the saved state that the layer is initialised."""
        raise NotImplementedError

    @property
    def initialized(self) -> bool:
        """Whether the parameters have been set from data or loaded."""
        raise NotImplementedError

    def mark_initialized(self) -> None:
        """Keep the parameters as they are from now on but for training."""
        self._mark()

    def initialize(self, x: Array, context: Array | None = None) -> Self:
        """Set the parameters from a batch so that each channel has mean 0 and its spread, unless they are set already.

        Returns the layer.
        """
        if not self.initialized:
            x = self._received(x)
            backend = get_backend(x)
            with backend.no_grad(), backend.own_dtype(x):
                found = core.ActNorm.initialize(self._statistics(x), axis=self.axis, spread=self.spread)
                log_scale, bias = found.arrays
                unit = 2.0 ** -backend.xp.round(log_scale / math.log(2))
                self._assign(log_scale, bias / unit, unit)
            self.mark_initialized()
        return self

    def _shape_before(self, shape: Shape) -> Shape:
        return shape  # also before a Keras layer knows its channels

    @property
    def takes_context(self) -> bool:  # type: ignore[override]
        """Whether the layer is conditional."""
        return self.context_features is not None

    def core_layer(
        self, context: Array | None = None, *, training: bool | None = None, weights: Weights | None = None
    ) -> Layer:
        """Return the core's layer: the identity, as long as nothing has set the parameters."""
        unit = self._parameter(self.unit)
        log_scale, bias = self._parameter(self.log_scale), self._parameter(self.bias) * unit
        if self.context_features is None:
            return core.ActNorm(log_scale, bias, axis=self.axis)
        xp = get_backend(unit).xp
        weight = self._context_weight() * xp.concat([xp.ones_like(unit), unit])[:, None]
        condition = core.Condition(core.Dense(weight, checked=True))
        layer = core.ActNorm(log_scale, bias, axis=self.axis, condition=condition)
        return layer if context is None else layer.given(self._received_context(context))

    def _layer_at(
        self,
        event_shape: Shape,
        context: Array | None = None,
        *,
        training: bool | None = None,
        weights: Weights | None = None,
    ) -> Layer:
        return self.core_layer(training=training, weights=weights)
