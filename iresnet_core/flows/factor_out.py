"""Multi-scale flows: part of the channels passes through further layers, the rest is done."""

import math
from collections.abc import Sequence
from typing import Any, Self, cast

from iresnet_core.backends import Array, Backend
from iresnet_core.common import flatten, require_positive_int
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.condition import Labels, agreed
from iresnet_core.flows.flow import Flow, require_no_base
from iresnet_core.flows.layer import ForwardOptions, InverseOptions, Layer, Shape, Transformed, channel_axis
from iresnet_core.flows.preimage import Preimage, begun, finished, uncertified
from iresnet_core.results import Inverse, LogDet

__all__ = ["FactorOut"]


class FactorOut(Layer):
    """``z = (flow(x[:keep]), x[keep:])``, both flattened into one vector of shape (batch, d).

    The first `keep` channels pass through further layers and the others are done: a flow on several scales, after a
    `Squeeze`, costs less where half of the channels are factored out (Dinh, Sohl-Dickstein and Bengio 2017, Sec. 3.6).
    It is usually the last layer of its flow; `flow` may hold another FactorOut.

    Parameters
    ----------
    keep : int
        Channels that pass through `flow`; at least one must be left over.
    flow : Flow or sequence of Layer
        The further layers. They become a Flow as soon as the shape of the samples is known: in a Flow with its
        `event_shape`, or by `at_shape`. Before that, `inverse` raises, since a vector does not tell its former shape.
    axis : int
        The channel axis of a batch; -1 for channels last.

    Raises
    ------
    ShapeError
        If the channels of `flow` are not `keep`; from `forward`, if the samples do not fit.
    InvalidArgumentError
        If a flow inside has a base; from `inverse`, if the shape is not known.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core.flows.reshaping import Squeeze
    >>> flow = Flow([Squeeze(), FactorOut(2, [Squeeze()])], event_shape=(1, 4, 4))
    >>> flow.latent_shape
    (16,)
    """

    keep: int
    axis: int
    flow: Flow | None
    layers: tuple[Layer, ...]
    _takes: tuple[int | None, Labels | None]

    def __init__(self, keep: int, flow: Flow | Sequence[Layer], *, axis: int = 1) -> None:
        keep = require_positive_int(keep, "keep")
        if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
            raise InvalidArgumentError(f"axis must be a whole number other than 0, the batch axis, got {axis!r}.")
        layers = flow.layers if isinstance(flow, Flow) else tuple(flow)
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise InvalidArgumentError(f"entry {index} of the layers is no layer but {type(layer).__name__}.")
        for part in (flow, *layers):
            require_no_base(part)
        known = flow if isinstance(flow, Flow) else None
        if known is not None:
            channels = known.event_shape[channel_axis(axis, len(known.event_shape) + 1, "FactorOut") - 1]
            if channels != keep:
                raise ShapeError(f"FactorOut keeps {keep} channels, but its flow takes samples of {known.event_shape}.")
        self._keep(
            keep=keep,
            axis=axis,
            flow=known,
            layers=layers,
            residual_blocks=sum(layer.residual_blocks for layer in layers),
            _takes=agreed([known] if known is not None else layers),
        )

    def __repr__(self) -> str:
        inner = self.flow if self.flow is not None else list(self.layers)
        return f"FactorOut({self.keep}, {inner!r}, axis={self.axis})"

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The parameters of the inner layers."""
        return tuple(array for layer in self.layers for array in layer.arrays)

    @property
    def context_features(self) -> int | None:
        """Entries of a condition, of the inner layers."""
        return self._takes[0]

    @property
    def context_labels(self) -> Labels | None:
        """Labels that it may hold."""
        return self._takes[1]

    def _under(self, backend: Backend, rows: Array) -> "FactorOut":
        if self.flow is not None:
            return FactorOut(self.keep, cast(Flow, self.flow._under(backend, rows)), axis=self.axis)
        return FactorOut(self.keep, [layer._under(backend, rows) for layer in self.layers], axis=self.axis)

    @property
    def inverse_lipschitz(self) -> Any:
        """The larger of the inner flow's constant and 1, the constant for the channels that stay."""
        inner = math.prod(layer.inverse_lipschitz for layer in self.layers)
        return (inner + 1 + abs(inner - 1)) / 2 * (1 + 1e-15)

    @property
    def forward_lipschitz(self) -> Any:
        """The larger of the inner flow's constant and 1."""
        inner = math.prod(layer.forward_lipschitz for layer in self.layers)
        if isinstance(inner, float) and math.isinf(inner):
            return inner
        return (inner + 1 + abs(inner - 1)) / 2 * (1 + 1e-15)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return (d,), all entries in one vector."""
        inner = self.at_shape(tuple(input_shape))._known()
        left = math.prod(input_shape) - math.prod(inner.event_shape)
        return (math.prod(inner.latent_shape) + left,)

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the shape before the layer, which the inner flow knows but for the number of channels."""
        inner = self._known()
        position = channel_axis(self.axis, len(inner.event_shape) + 1, "FactorOut") - 1
        pixels = math.prod(inner.event_shape) // self.keep
        left = math.prod(output_shape) - math.prod(inner.latent_shape)
        if len(output_shape) != 1 or left < pixels or left % pixels:
            raise ShapeError(
                f"the inverse of FactorOut takes vectors of {math.prod(inner.latent_shape)} entries and a positive "
                f"multiple of {pixels} more, got samples of shape {tuple(output_shape)}."
            )
        channels = self.keep + left // pixels
        return tuple(channels if a == position else n for a, n in enumerate(inner.event_shape))

    def at_shape(self, event_shape: Shape) -> "FactorOut":
        """Return the layer for samples of this shape, with a Flow inside.

        Raises
        ------
        ShapeError
            If the shape does not fit the layers, or no channel is left over.
        """
        position = channel_axis(self.axis, len(event_shape) + 1, "FactorOut") - 1
        if event_shape[position] <= self.keep:
            raise ShapeError(
                f"FactorOut keeps {self.keep} channels and needs at least one more, got samples of shape "
                f"{tuple(event_shape)}."
            )
        kept = tuple(self.keep if a == position else n for a, n in enumerate(event_shape))
        if self.flow is None:
            return FactorOut(self.keep, Flow(self.layers, kept), axis=self.axis)
        self.flow.output_shape(kept)
        return self

    def initialized(self, x: Array, context: Array | None = None) -> "FactorOut":
        """Return the layer with every inner ActNorm initialised from the channels that it will see."""
        placed = self.at_shape(tuple(x.shape[1:]))
        return FactorOut(self.keep, placed._known().initialize(placed._split(x)[0], context), axis=self.axis)

    def with_reference(self, x: Array, context: Array | None = None) -> "FactorOut":
        """Return the layer with these samples as the reference of its inner flow, see `Flow.with_reference`."""
        placed = self.at_shape(tuple(x.shape[1:]))
        return FactorOut(self.keep, placed._known().with_reference(placed._split(x)[0], context), axis=self.axis)

    def astype(self, dtype: Any) -> Self:
        """Return the layer with parameters of another dtype."""
        if self.flow is not None:
            return type(self)(self.keep, self.flow.astype(dtype), axis=self.axis)
        return type(self)(self.keep, [layer.astype(dtype) for layer in self.layers], axis=self.axis)

    def _known(self) -> Flow:
        if self.flow is None:
            raise InvalidArgumentError(
                "the inverse of this FactorOut needs the shape of its samples: put it in a Flow with event_shape, give "
                "it a Flow instead of layers, or call at_shape(event_shape)."
            )
        return self.flow

    def _split(self, x: Array) -> tuple[Array, Array]:
        before = (slice(None),) * channel_axis(self.axis, x.ndim, "FactorOut")
        return x[(*before, slice(None, self.keep), ...)], x[(*before, slice(self.keep, None), ...)]

    def _together(self, backend: Backend, inner: Array, rest: Array) -> Array:
        xp = backend.xp
        return xp.concat([flatten(xp, inner), flatten(xp, rest)], axis=1)

    def _map(self, backend: Backend, x: Array) -> Array:
        kept, rest = self._split(x)
        return self._together(backend, self.at_shape(tuple(x.shape[1:]))._known()._map(backend, kept), rest)

    def _forward(self, backend: Backend, x: Array, options: ForwardOptions) -> Transformed:
        kept, rest = self._split(x)
        inner = self.at_shape(tuple(x.shape[1:]))._known()._forward(backend, kept, options)
        return Transformed(self._together(backend, inner.value, rest), inner.logdet)

    def _parts(self, backend: Backend, z: Array) -> tuple[Array, Array, int]:
        """Return the latents of the inner flow, the channels that stay, and the channel axis."""
        inner, batch = self._known(), z.shape[0]
        shape = self.input_shape(z.shape[1:])
        position = channel_axis(self.axis, len(shape) + 1, "FactorOut")
        size = math.prod(inner.latent_shape)
        left = tuple(n - self.keep if a == position - 1 else n for a, n in enumerate(shape))
        xp = backend.xp
        return xp.reshape(z[:, :size], (batch, *inner.latent_shape)), xp.reshape(z[:, size:], (batch, *left)), position

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        state = self._back(backend, begun(backend, z), options)
        return finished(backend, state) if options.get("errors", True) else uncertified(backend, state)

    def _back(self, backend: Backend, state: Preimage, options: InverseOptions) -> Preimage:
        return self._joined(backend, state, self._known()._back(backend, self._inner_state(backend, state), options))

    def _back_with_logdet(
        self, backend: Backend, state: Preimage, options: InverseOptions, of_logdet: ForwardOptions
    ) -> tuple[Preimage, LogDet]:
        begun_inside = self._inner_state(backend, state)
        inner, logdet = self._known()._back_with_logdet(backend, begun_inside, options, of_logdet)
        return self._joined(backend, state, inner), logdet

    def _inner_state(self, backend: Backend, state: Preimage) -> Preimage:
        """Return what the inner flow has to take back of a state behind this layer."""
        value, refined = (self._parts(backend, part)[0] for part in (state.value, state.refined))
        return state._replace(value=value, refined=refined)

    def _joined(self, backend: Backend, state: Preimage, inner: Preimage) -> Preimage:
        """Return the state before this layer from that before the inner flow."""
        xp = backend.xp
        _, rest, position = self._parts(backend, state.value)
        refined_rest = self._parts(backend, state.refined)[1]
        return inner._replace(
            value=xp.concat([inner.value, rest], axis=position),
            refined=xp.concat([inner.refined, refined_rest], axis=position),
            # The error of both parts together was bounded, so that each may have all of it.
            error=xp.sqrt(inner.error**2 + state.error**2) * (1 + 1e-15),
            estimate=xp.sqrt(inner.estimate**2 + state.estimate**2),
        )

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        kept, rest = self._split(x)
        inner, rounding = self.at_shape(tuple(x.shape[1:]))._known()._with_rounding(backend, kept)
        return self._together(backend, inner, rest), rounding

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        inner, change = self.at_shape(tuple(x.shape[1:]))._known()._spread(backend, self._split(x)[0], error)
        return backend.xp.sqrt(inner**2 + error**2) * (1 + 1e-15), change
