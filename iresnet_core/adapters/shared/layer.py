"""The layers of a flow: what both frameworks' layers mean and check."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import iresnet_core as core
from iresnet_core.adapters.shared.condition import taken
from iresnet_core.adapters.shared.placing import bound_shapes, placed
from iresnet_core.adapters.shared.weight import CappedLayer, CertifiedWeight
from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Layer, Shape
from iresnet_core.operators import LinearLayer

__all__ = [
    "FactorOutMethods",
    "FixedLayer",
    "InjectivePadMethods",
    "LayerMethods",
    "LogitMethods",
    "NestedMethods",
    "SqueezeMethods",
    "Weights",
    "WrapMethods",
    "refer_along",
    "require_layers",
]

# Linear layers with the weights in use in training.
Weights = Mapping[CertifiedWeight, LinearLayer]
L = TypeVar("L")


class LayerMethods:
    """What every layer of a flow can do, in both frameworks.

    Attributes
    ----------
    takes_context : bool
        Whether a conditioning changes the layer.
    """

    takes_context: bool = True
    _is_conditioned_by_core: bool = False
    """Whether the core's layer takes the context itself, so that `_layer_at` needs none."""
    channel_axis: int
    """The channel axis of a batch: 1 in PyTorch, -1 in Keras."""

    # --- what an adapter says ---

    def _is_training(self, training: bool | None) -> bool:
        """Return the mode of a pass: as asked, and by default the mode that the layer is in."""
        raise NotImplementedError

    def _received(self, x: Any) -> Array:
        """Return an argument as an array of the framework, in the dtype of the parameters."""
        raise NotImplementedError

    def _received_context(self, context: Any) -> Any:
        """Return conditions in the same way; whole numbers, which may be labels, as they are. None for None."""
        raise NotImplementedError

    def _taken_condition(self, condition: Any) -> Any:
        """Return a map of the caller's own as a Condition of the framework."""
        raise NotImplementedError

    # --- what follows from it ---

    def core_layer(
        self, context: Array | None = None, *, training: bool | None = None, weights: Weights | None = None
    ) -> Layer:
        """Return the core's layer with the present parameters; a layer of one's own says here what it computes.

        Parameters
        ----------
        context : array (batch, features), optional
            Conditioning, for layers that take it: the layer under it. Without, a conditional layer of this package is
            the conditional layer of the core.
        training : bool, optional
            Weights of training, with norms estimated in part. Default: the mode of a PyTorch module; False in Keras.
        weights : mapping, optional
            Weights in use in training that have been computed already, for all blocks of a flow at once.
        """
        raise NotImplementedError

    def _layer_at(
        self,
        event_shape: Shape,
        context: Array | None = None,
        *,
        training: bool | None = None,
        weights: Weights | None = None,
    ) -> Layer:
        """Return the core's layer for samples of one shape, on which the norms of convolutions depend.

        A layer that the core conditions itself leaves the context to it.
        """
        return self.core_layer(context, training=training, weights=weights)

    def _capped_at(self, event_shape: Shape) -> list[CappedLayer]:
        """Return the capped linear layers inside, as they are for samples of one shape."""
        return self.capped_layers()

    def _shape_layer(self) -> Layer:
        """Return a layer of the core that knows shapes, whether or not the parameters have values."""
        return self.core_layer(training=False)

    def _own_shape(self) -> Shape | None:
        """Return the shape of the samples that the layer takes, where its weights say it."""
        return None

    def _shape_before(self, shape: Shape) -> Shape:
        """Return the shape in front of the layer that belongs to one behind it."""
        return tuple(self._shape_layer().input_shape(shape))

    def _mapped(self, x: Any, context: Array | None = None, training: bool | None = None) -> Array:
        """Map samples x (batch, ...), without the log-determinant."""
        x, context = self._received(x), self._received_context(context)
        layer = self._layer_at(tuple(x.shape[1:]), context, training=training)
        with get_backend(x).own_dtype(x):
            return layer(x, taken(layer, context))

    def inverse(
        self,
        z: Array,
        context: Array | None = None,
        *,
        training: bool | None = None,
        errors: bool = False,
        **options: Any,
    ) -> Any:
        """Return the preimages of z (batch, ...).

        Parameters
        ----------
        z : array (batch, ...)
            As the layer returns them.
        context : array (batch, features), optional
            The conditioning that belongs to z.
        training : bool, optional
            Weights of training, with norms estimated in part. Default: the mode of a PyTorch module; False in Keras.
        errors : bool
            Return the core's `Inverse` with its certified `error_bound` instead of the samples alone.
        **options
            As in `iresnet_core.invert`.

        Raises
        ------
        NotConvergedError
            If a sample has not converged, outside of compiled programs.
        """
        z, context = self._received(z), self._received_context(context)
        layer = self._layer_at(tuple(z.shape[1:]), context, training=training)
        with get_backend(z).own_dtype(z):
            result = layer.inverse(z, taken(layer, context), errors=errors, **options)
        return result if errors else result.value

    @property
    def initialized(self) -> bool:
        """Whether there is nothing left for `initialize` to do."""
        return True

    def initialize(self, x: Array, context: Array | None = None) -> Self:
        """Set the parameters that depend on data and are not set yet, from samples (batch, ...); returns the layer."""
        return self

    def _refer(self, x: Array) -> None:
        """Let branches take inputs x (batch, ...) as their reference in evaluation, see `core.Chain`."""

    def capped_layers(self) -> list[CappedLayer]:
        """Return the capped linear layers inside, with their free parameters."""
        return []

    def certify(self) -> Self:
        """Certify the weights that changed since they were certified last; returns the layer."""
        for layer in self.capped_layers():
            layer.certify()
        return self


class FixedLayer(LayerMethods):
    """A layer without parameters: it keeps the core's."""

    takes_context = False
    _core: Layer

    def core_layer(
        self, context: Array | None = None, *, training: bool | None = None, weights: Weights | None = None
    ) -> Layer:
        """Return the core's layer."""
        return self._core


class SqueezeMethods(FixedLayer):
    """Blocks of pixels to channels."""

    basis: str = "pixels"  # of layers that were pickled before they had one

    def __init__(self, factor: int = 2, *, basis: str = "pixels", **options: Any) -> None:
        """Make the layer.

        Parameters
        ----------
        factor : int
            Extent of a block of pixels along each of the 1, 2 or 3 spatial axes, which it has to divide.
        basis : {"pixels", "haar"}
            What the channels hold: the pixels of a block, or with the factor 2 their Haar wavelets, a multiple of their
            mean and differences, which an ActNorm brings to scales of their own.
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If the factor is no positive whole number, or is not 2 with wavelets, or there is no such basis.
        """
        super().__init__(**options)
        last = self.channel_axis == -1
        self.factor, self.basis = factor, basis
        self._core = core.Squeeze(factor, "channels_last" if last else "channels_first", basis)


class InjectivePadMethods(FixedLayer):
    """Zero channels that are appended."""

    def __init__(self, padding: int, *, axis: int | None = None, **options: Any) -> None:
        """Make the layer.

        Parameters
        ----------
        padding : int
            Number of zero channels that are appended.
        axis : int, optional
            Channel axis of a batch; by default 1 in PyTorch, -1 in Keras.
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If the padding is no positive whole number.
        """
        super().__init__(**options)
        self.padding = padding
        self.axis = self.channel_axis if axis is None else axis
        self._core = core.InjectivePad(padding, axis=self.axis)


class LogitMethods(FixedLayer):
    """From pixels in [0, 1] to the line."""

    def __init__(self, alpha: float = 0.05, **options: Any) -> None:
        """Make the layer.

        Parameters
        ----------
        alpha : float
            Distance that is kept from 0 and 1, where the logit is infinite; in (0, 0.5).
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If alpha is outside of that interval.
        """
        super().__init__(**options)
        self.alpha = alpha
        self._core = core.Logit(alpha)


class WrapMethods(FixedLayer):
    """Angles brought back to one turn."""

    def __init__(
        self, low: float = 0.0, period: float = 2 * math.pi, entries: Sequence[int] | None = None, **options: Any
    ) -> None:
        """Make the layer.

        Parameters
        ----------
        low, period : float
            Angles end in [low, low + period).
        entries : sequence of int, optional
            The entries of a vector that are angles; default all.
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            As `iresnet_core.Wrap`.
        """
        super().__init__(**options)
        self.low, self.period = float(low), float(period)
        self.entries = None if entries is None else tuple(entries)
        self._core = core.Wrap(low, period, entries=entries)


class NestedMethods(LayerMethods):
    """What layers have in common that hold other layers of a flow."""

    _is_conditioned_by_core = True
    _inner_shapes: tuple[Shape, ...] = ()
    """The shapes of the samples before the inner layers, and behind the last one; empty before they are known."""

    def _take_layers(self, layers: Sequence[Any]) -> None:
        """Check the inner layers and keep them where the framework finds them."""
        raise NotImplementedError

    def _inner(self) -> list[Any]:
        """Return the inner layers."""
        raise NotImplementedError

    @property
    def takes_context(self) -> bool:  # type: ignore[override]
        """Whether an inner layer does."""
        return any(layer.takes_context for layer in self._inner())

    @property
    def initialized(self) -> bool:
        """Whether all inner layers are."""
        return all(layer.initialized for layer in self._inner())

    def capped_layers(self) -> list[CappedLayer]:
        """Return those of the inner layers."""
        return [capped for layer in self._inner() for capped in layer.capped_layers()]


class FactorOutMethods(NestedMethods):
    """Further layers for the first channels alone."""

    takes_context = False

    def __init__(self, keep: int, layers: Sequence[Any], **options: Any) -> None:
        """Make the layer.

        Parameters
        ----------
        keep : int
            Channels that go on.
        layers : sequence of FlowLayer
            What they go through.
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If an entry is no layer of a flow, or there is none.
        ShapeError
            If the layers do not fit; when the flow around is made.
        """
        super().__init__(**options)
        self.keep = keep
        self._take_layers(layers)

    def _first(self, x: Any) -> Any:
        """Return the channels that go on."""
        return x[..., : self.keep] if self.channel_axis == -1 else x[:, : self.keep]

    def _bind_inner(self, event_shape: Shape) -> None:
        """Tell the inner layers the shapes of their samples."""
        shape = (*event_shape[:-1], self.keep) if self.channel_axis == -1 else (self.keep, *event_shape[1:])
        self._inner_shapes = bound_shapes(self._inner(), shape)
        self._shape_layer().output_shape(event_shape)

    def initialize(self, x: Array, context: Array | None = None) -> Self:
        """Initialise the inner layers with what they will be given; returns the layer."""
        kept = self._first(self._received(x))
        for layer in self._inner():
            kept = layer.initialize(kept, context)._mapped(kept, context)
        return self

    def _refer(self, x: Array) -> None:
        refer_along(self._inner(), self._first(x))

    def _capped_at(self, event_shape: Shape) -> list[CappedLayer]:
        return [capped for layer, shape in self._placed() for capped in layer._capped_at(shape)]

    def core_layer(
        self, context: Array | None = None, *, training: bool | None = None, weights: Weights | None = None
    ) -> Layer:
        """Return the core's layer."""
        layer = self._layer_at((), context, training=training, weights=weights)
        context = taken(layer, self._received_context(context))
        return layer if context is None else layer.given(context)

    def _layer_at(
        self,
        event_shape: Shape,
        context: Array | None = None,
        *,
        training: bool | None = None,
        weights: Weights | None = None,
    ) -> Layer:
        inner = [layer._layer_at(shape, context, training=training, weights=weights) for layer, shape in self._placed()]
        return self._factor_out(inner)

    def _shape_layer(self) -> Layer:
        return self._factor_out([layer._shape_layer() for layer in self._inner()])

    def _placed(self) -> list[tuple[Any, Shape]]:
        """Return the inner layers, each with the shape of its samples."""
        return placed(self._inner(), self._inner_shapes) if self._inner_shapes else []

    def _factor_out(self, layers: list[Layer]) -> Layer:
        if not self._inner_shapes:
            raise InvalidArgumentError(
                "FactorOut learns the shape of its samples from the Flow that it is part of: put it into one."
            )
        return core.FactorOut(self.keep, core.Flow(layers, self._inner_shapes[0]), axis=self.channel_axis)


def refer_along(layers: Sequence[Any], x: Array) -> None:
    """Let the branches of layers in a row take what they see of samples x (batch, ...) in evaluation, see `_refer`."""
    for layer in layers:
        layer._refer(x)
        x = layer._mapped(x, training=False)


def require_layers(layers: Sequence[Any], kind: type[L]) -> list[L]:
    """Return the layers of a flow as a list, and refuse what is no layer of the framework's `kind`."""
    out = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, kind):
            raise InvalidArgumentError(
                f"entry {index} is a {type(layer).__name__}, no layer of a flow. Wrap a network as "
                "InvertibleResidual(network), or use ActNorm, Squeeze, InjectivePad, Logit or FactorOut."
            )
        out.append(layer)
    if not out:
        raise InvalidArgumentError("there are no layers; a flow needs at least one.")
    return out
