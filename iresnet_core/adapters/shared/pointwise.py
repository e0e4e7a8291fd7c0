"""Point sets: the layers of one point, taken by all."""

from typing import Any, Self

import iresnet_core as core
from iresnet_core.adapters.shared.condition import taken
from iresnet_core.adapters.shared.layer import NestedMethods, Weights, refer_along
from iresnet_core.adapters.shared.placing import bound_shapes, placed
from iresnet_core.adapters.shared.weight import CappedLayer
from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Layer, Shape

__all__ = ["PointwiseMethods"]


class PointwiseMethods(NestedMethods):
    """``z_p = layers(x_p)`` for every point x_p of a set (batch, points, d)."""

    def __init__(self, layers: Any, **options: Any) -> None:
        """Make the layer.

        Parameters
        ----------
        layers : FlowLayer, sequence of FlowLayer or Flow
            What each point goes through, one layer or several. The layers of a Flow are taken, and not its options.
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If an entry is no layer of a flow.
        ShapeError
            When the shape is known, if the layers change the size of a point.
        """
        super().__init__(**options)
        if hasattr(layers, "_flow_layers"):
            layers = layers._flow_layers()
        self._take_layers(list(layers) if isinstance(layers, list | tuple) else [layers])

    def _bind_inner(self, event_shape: Shape) -> Shape:
        """Tell the inner layers the size of a point; return the shape of the output."""
        self._inner_shapes = bound_shapes(self._inner(), tuple(event_shape[1:]))
        return self._shape_layer().output_shape(event_shape)

    def _placed(self, event_shape: Shape | None = None) -> list[tuple[Any, Shape]]:
        """Return the inner layers, each with the shape of its samples."""
        if event_shape is not None and self._inner_shapes[:1] != (tuple(event_shape[1:]),):
            self._bind_inner(event_shape)
        if not self._inner_shapes:
            raise InvalidArgumentError(
                "Pointwise learns the size of its points from the Flow that it is part of, or from a call with data."
            )
        return placed(self._inner(), self._inner_shapes)

    def _around(self, layers: list[Layer]) -> core.Pointwise:
        return core.Pointwise(layers[0] if len(layers) == 1 else core.Flow(layers, self._inner_shapes[0]))

    def core_layer(
        self, context: Array | None = None, *, training: bool | None = None, weights: Weights | None = None
    ) -> Layer:
        """Return the core's layer, for points of the size that was seen last."""
        layer = self._made(None, training=training, weights=weights)
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
        return self._made(event_shape, training=training, weights=weights)

    def _made(self, event_shape: Shape | None, **options: Any) -> core.Pointwise:
        return self._around([layer._layer_at(shape, **options) for layer, shape in self._placed(event_shape)])

    def _shape_layer(self) -> Layer:
        return self._around([layer._shape_layer() for layer, _ in self._placed()])

    def initialize(self, x: Array, context: Array | None = None) -> Self:
        """Initialise the inner layers with the points of all sets (batch, points, d); returns the layer."""
        x = self._received(x)
        backend, points = get_backend(x), int(x.shape[1])
        context = self._received_context(context)
        if context is not None and len(context.shape) == 2 and int(context.shape[0]) > 1:
            context = backend.xp.repeat(context, points, axis=0)
        self._placed(tuple(x.shape[1:]))
        x = backend.xp.reshape(x, (-1, x.shape[-1]))
        for layer in self._inner():
            own = context if layer.takes_context else None
            x = layer.initialize(x, own)._mapped(x, own)
        return self

    def _refer(self, x: Array) -> None:
        refer_along(self._inner(), get_backend(x).xp.reshape(x, (-1, x.shape[-1])))

    def _capped_at(self, event_shape: Shape) -> list[CappedLayer]:
        return [capped for layer, shape in self._placed(event_shape) for capped in layer._capped_at(shape)]
