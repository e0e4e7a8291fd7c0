"""Layers turned round: sampling by evaluation, and scoring by a solution."""

from typing import Any, Self

import iresnet_core as core
from iresnet_core.adapters.shared.actnorm import ActNormMethods
from iresnet_core.adapters.shared.condition import taken
from iresnet_core.adapters.shared.layer import FactorOutMethods, NestedMethods, Weights, refer_along
from iresnet_core.adapters.shared.placing import bound_shapes
from iresnet_core.adapters.shared.pointwise import PointwiseMethods
from iresnet_core.adapters.shared.residual import ResidualMethods
from iresnet_core.adapters.shared.weight import CappedLayer
from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Layer, Shape

__all__ = ["InvertedMethods"]


class InvertedMethods(NestedMethods):
    """``z = f^-1(x)`` for layers f: what was their inverse is the forward direction."""

    def __init__(
        self,
        layer: Any,
        *,
        solver: str = "anderson",
        rtol: float | None = None,
        atol: float | None = None,
        max_iter: int | None = None,
        **options: Any,
    ) -> None:
        """Make the layer.

        Parameters
        ----------
        layer : FlowLayer, sequence of FlowLayer or Flow
            What is turned round: one layer, or several in the order in which they make samples of latents. The layers
            of a Flow are taken, and not its options. No `FactorOut`; a turned layer may be inside of one.
        solver, rtol, atol, max_iter
            How the forward direction is solved, as in `iresnet_core.invert`.
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If an entry is no layer of a flow, or an option is none of `invert`.
        ShapeError
            When the shape is known, if the layers are no bijection.
        """
        super().__init__(**options)
        self.solver, self.rtol, self.atol, self.max_iter = solver, rtol, atol, max_iter
        self._turned(core.Squeeze())  # checks the options
        if hasattr(layer, "_flow_layers"):
            layer = layer._flow_layers()
        layers = list(layer) if isinstance(layer, list | tuple) else [layer]
        self._take_layers(layers)
        for inner in layers:
            if isinstance(inner, FactorOutMethods):
                raise InvalidArgumentError(
                    "a FactorOut cannot be turned round here, since its output does not tell its shapes. Turn the "
                    "layers inside of it round: FactorOut(keep, [Inverted(...)])."
                )

    def _bind_inner(self, event_shape: Shape) -> Shape:
        """Tell the inner layers the shapes of their samples; return that of the output."""
        start = tuple(event_shape)
        for layer in reversed(self._inner()):
            start = _shape_before(layer, start)
        self._inner_shapes = bound_shapes(self._inner(), start)
        return self._shape_layer().output_shape(event_shape)

    def _placed(self, event_shape: Shape | None = None) -> list[tuple[Any, Shape]]:
        """Return the inner layers, each with the shape of its samples."""
        known = self._inner_shapes
        if event_shape is not None and (not known or known[-1] != tuple(event_shape)):
            self._bind_inner(event_shape)
        if not self._inner_shapes:
            raise InvalidArgumentError(
                "Inverted learns the shape of its samples from the Flow that it is part of, or from a call with data."
            )
        return list(zip(self._inner(), self._inner_shapes[:-1], strict=True))

    def _turned(self, layer: Layer) -> core.Inverted:
        return core.Inverted(layer, solver=self.solver, rtol=self.rtol, atol=self.atol, max_iter=self.max_iter)

    def _around(self, layers: list[Layer]) -> core.Inverted:
        return self._turned(layers[0] if len(layers) == 1 else core.Flow(layers, self._inner_shapes[0]))

    def core_layer(
        self, context: Array | None = None, *, training: bool | None = None, weights: Weights | None = None
    ) -> Layer:
        """Return the core's layer, for samples of the size that was seen last."""
        layer = self._made(context, training=training, weights=weights)
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
        self._placed(event_shape)
        return self._made(context, training=training, weights=weights)

    def _made(self, context: Array | None, **options: Any) -> core.Inverted:
        return self._around([layer._layer_at(shape, context, **options) for layer, shape in self._placed()])

    def _shape_layer(self) -> Layer:
        self._placed()
        return self._around([layer._shape_layer() for layer in self._inner()])

    def inverse(self, z: Array, context: Array | None = None, **options: Any) -> Any:
        """Return the samples that the layer maps to z (batch, ...), by an evaluation; options as in other layers."""
        z, context = self._received(z), self._received_context(context)
        shape = tuple(z.shape[1:])
        if not self._inner_shapes or self._inner_shapes[0] != shape:
            self._inner_shapes = bound_shapes(self._inner(), shape)
        training, errors = options.pop("training", None), options.pop("errors", False)
        layer = self._made(context, training=training)
        with get_backend(z).own_dtype(z):
            result = layer.inverse(z, taken(layer, context), errors=errors, **options)
        return result if errors else result.value

    def initialize(self, x: Array, context: Array | None = None) -> Self:
        """Set the inner ActNorms so that what the layer makes of samples (batch, ...) has mean zero and its spread."""
        x = self._received(x)
        self._placed(tuple(x.shape[1:]))
        with get_backend(x).no_grad():
            for layer in reversed(self._inner()):
                if isinstance(layer, InvertedMethods):
                    for inner in layer._inner():
                        x = inner.initialize(x, context)._mapped(x, context)
                    continue
                if isinstance(layer, ActNormMethods) and not layer.initialized:
                    _set_for_inverse(layer, x)
                x = layer.inverse(x, context)
        return self

    def _refer(self, x: Array) -> None:
        refer_along(self._inner(), self._mapped(x, training=False))  # what the inner layers make x of

    def _capped_at(self, event_shape: Shape) -> list[CappedLayer]:
        return [capped for layer, shape in self._placed(event_shape) for capped in layer._capped_at(shape)]


def _shape_before(layer: Any, shape: Shape) -> Shape:
    """Return the shape of the samples of which a layer makes samples of `shape`, before it has parameters."""
    if isinstance(layer, ActNormMethods | ResidualMethods | PointwiseMethods):
        return shape
    if isinstance(layer, InvertedMethods):
        return bound_shapes(layer._inner(), shape)[-1]
    return layer._shape_layer().input_shape(shape)  # type: ignore[no-any-return]


def _set_for_inverse(layer: ActNormMethods, x: Array) -> None:
    """Set an ActNorm so that its inverse gives every channel of x (batch, ...) mean 0 and its spread."""
    backend = get_backend(x)
    with backend.no_grad(), backend.own_dtype(x):
        found = core.ActNorm.initialize(layer._statistics(x), axis=layer.axis, spread=layer.spread)
        log_scale, bias = found.arrays
        # The inverse is z exp(-log_scale) - bias, whose bias is in units of what comes out.
        layer._assign(-log_scale, -bias * backend.xp.exp(log_scale), backend.xp.ones_like(bias))
    layer.mark_initialized()
