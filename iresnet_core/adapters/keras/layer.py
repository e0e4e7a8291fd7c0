"""The layers of a flow as Keras layers: each holds variables and hands them to the core's layer."""

from collections.abc import Sequence
from typing import Any, Self

import keras

import iresnet_core as core
from iresnet_core.adapters.keras.condition import Condition, context_tensor
from iresnet_core.adapters.keras.tensors import checkpointed, tensor_of
from iresnet_core.adapters.shared.actnorm import ActNormMethods
from iresnet_core.adapters.shared.layer import (
    FactorOutMethods,
    InjectivePadMethods,
    LayerMethods,
    LogitMethods,
    SqueezeMethods,
    Weights,
    WrapMethods,
    require_layers,
)
from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows import Layer, Shape

__all__ = [
    "ActNorm",
    "FactorOut",
    "FlowLayer",
    "InjectivePad",
    "KerasHooks",
    "Logit",
    "Squeeze",
    "Wrap",
    "require_different_layers",
]

_serializable = keras.saving.register_keras_serializable(package="iresnet_core")


class KerasHooks:
    """What the shared methods ask of a Keras layer or model."""

    channel_axis = -1

    def _is_training(self, training: bool | None) -> bool:
        """Return the mode of a pass: evaluation unless training is asked for, since a Keras layer has no mode."""
        return bool(training)

    def _received(self: Any, x: Any) -> Any:
        """Return a tensor in the dtype of the variables."""
        return keras.ops.convert_to_tensor(x, dtype=self.compute_dtype)

    def _received_context(self: Any, context: Any) -> Any:
        """Return conditions likewise; whole numbers, which may be labels, as they are."""
        return context_tensor(context, self.compute_dtype)

    def _taken_condition(self: Any, condition: Any) -> Condition:
        """Return a map of the caller's own as a Condition."""
        return condition if isinstance(condition, Condition) else Condition(condition, dtype=self.dtype)


class FlowLayer(KerasHooks, LayerMethods, keras.layers.Layer):
    """Base class of the layers: ``layer(x)`` maps samples, `inverse` maps them back, both through the core.

    A subclass says in `core_layer` which layer of the core its variables make now. Whatever the policy, the computation
    is in the dtype of the variables, since the bounds would not hold in half precision.

    Attributes
    ----------
    takes_context : bool
        Whether a conditioning changes the layer.
    channel_axis : int
        -1: the channels come last in a sample.
    """

    def __init__(self, *, dtype: Any = None, **kwargs: Any) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(dtype=policy.variable_dtype, **kwargs)

    def bind(self, event_shape: Shape) -> Shape:
        """Make the variables for samples of this shape, if there are none yet, and return the shape of the output."""
        batch: Any = (None, *event_shape)
        if not self.built:
            self.build(batch)
        return tuple(self.compute_output_shape(batch)[1:])

    def build(self, input_shape: Any) -> None:
        """Make the variables for batches of this shape."""
        self._build_for(tuple(input_shape[1:]))
        self.built = True

    def _build_for(self, event_shape: Shape) -> None:
        """Make the variables for samples of this shape, which has to fit."""
        self.core_layer().output_shape(event_shape)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the shape of a batch after the layer."""
        if not self.built:
            self.build(input_shape)
        return (input_shape[0], *self._shape_layer().output_shape(tuple(input_shape[1:])))

    def call(self, x: Any, context: Any = None, training: bool = False) -> Any:
        """Map samples x (batch, ...), without the log-determinant."""
        return self._mapped(x, context, training)


@_serializable
class ActNorm(ActNormMethods, FlowLayer):
    """``z = (x + bias unit) exp(log_scale)`` per channel, initialised from data.

    Notes
    -----
    `Flow.fit` initialises it before training begins, `initialize` does so from a batch of the caller's. Until then it
    is the identity. Whether it is initialised is one of its variables, so that a model that was loaded, cloned or given
    weights is never initialised again.

    Examples
    --------
    >>> import numpy as np
    >>> norm = ActNorm()
    >>> norm.build((None, 2))
    >>> norm.initialize(np.array([[1.0, 10.0], [3.0, 30.0]]))(np.array([[1.0, 10.0]])).numpy().round().tolist()
    [[-1.0, -1.0]]
    """

    def _build_for(self, event_shape: Shape) -> None:
        core.ActNorm(axis=self.axis)
        position = self.axis - 1 if self.axis > 0 else self.axis
        if not -len(event_shape) <= position < len(event_shape):
            raise ShapeError(f"ActNorm works along axis {self.axis}, which samples of shape {event_shape} do not have.")
        channels = event_shape[position]
        if self.channels is not None and self.channels != channels:
            raise ShapeError(f"{self.name!r} is made for {self.channels} channels, but samples have {channels}.")
        self.log_scale = self.add_weight(name="log_scale", shape=(channels,), initializer="zeros")
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")
        self.is_initialized = self.add_weight(
            name="is_initialized", shape=(), initializer="zeros", dtype="bool", trainable=False, autocast=False
        )
        self.unit = self.add_weight(name="unit", shape=(channels,), initializer="ones", trainable=False)
        if self.context_features is not None:
            shape = (self.context_features, 2 * channels)
            self.context_kernel = self.add_weight(name="context_kernel", shape=shape, initializer="zeros")

    def _parameter(self, parameter: Any) -> Any:
        return tensor_of(parameter)

    def _context_weight(self) -> Any:
        return keras.ops.transpose(tensor_of(self.context_kernel))

    def _statistics(self, x: Any) -> Any:
        return keras.ops.stop_gradient(x)

    def _assign(self, log_scale: Any, bias: Any, unit: Any) -> None:
        self.log_scale.assign(log_scale)
        self.bias.assign(bias)
        self.unit.assign(unit)

    def _mark(self) -> None:
        self.is_initialized.assign(True)

    @property
    def initialized(self) -> bool:
        """Whether the parameters have been set from data or loaded; also True in a program that cannot know it."""
        return self.built and self._known() is not False

    def _known(self) -> bool | None:
        """Return what the variable says, or None where it has no value, in programs of JAX and PyTorch."""

        def read() -> bool | None:
            value = self.is_initialized.value
            backend = get_backend(value)
            known = backend.has_values(value) and backend.is_constant(value)
            # By NumPy, since a variable with replicas is true whatever its value is.
            return bool(backend.to_numpy(value)) if known else None

        return get_backend(self.is_initialized.value).concretely(read)  # type: ignore[no-any-return]

    def core_layer(self, context: Any = None, *, training: bool | None = None, weights: Weights | None = None) -> Layer:
        """Return the core's layer: the identity, as long as nothing has set the parameters."""
        if training and self._known() is None:
            self._mark()  # what is trained from here on is not to be overwritten by data
        return super().core_layer(context, training=training, weights=weights)

    def _shape_layer(self) -> Layer:
        zeros = keras.ops.zeros(self.log_scale.shape, dtype=self.dtype)
        return core.ActNorm(zeros, zeros, axis=self.axis)

    def call(self, x: Any, context: Any = None, training: bool = False) -> Any:
        """Map samples x (batch, ..., channels); the first batch in training sets the variables, unless compiled.

        Raises
        ------
        InvalidArgumentError
            In training in a compiled program of TensorFlow's, if the layer is not initialised.
        """
        if training and not self.initialized:
            if get_backend(self.bias.value).is_tracing():
                raise InvalidArgumentError(
                    f"{self.name!r} has not been initialised, and a compiled program cannot do that: call "
                    "initialize(x) with a batch of what the layer will be given before training."
                )
            self.initialize(x)
        return super().call(x, context, training=training)

    def load_own_variables(self, store: Any) -> None:
        """Take over what was saved; the unit, the last variable, is 1 in what was saved before there was one."""
        kept = {key: store[key] for key in store.keys()}  # noqa: SIM118  # no mapping, in .h5 files
        if len(kept) == len(self.variables) - 1:
            kept[str(len(kept))] = keras.ops.ones_like(self.unit)
        super().load_own_variables(kept)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "axis": self.axis,
            "context_features": self.context_features,
            "spread": self.spread,
        }


@_serializable
class Squeeze(SqueezeMethods, FlowLayer):
    """Blocks of pixels to channels, (H, W, C) to (H / factor, W / factor, C factor^2); also for 1 and 3 axes.

    Examples
    --------
    >>> import numpy as np
    >>> tuple(Squeeze()(np.zeros((5, 8, 8, 1))).shape)
    (5, 4, 4, 4)
    """

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "factor": self.factor, "basis": self.basis}


@_serializable
class InjectivePad(InjectivePadMethods, FlowLayer):
    """Append zero channels, (..., C) to (..., C + padding): an injective map, for more features than data have.

    Examples
    --------
    >>> import numpy as np
    >>> tuple(InjectivePad(1)(np.ones((5, 2))).shape)
    (5, 3)
    """

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "padding": self.padding, "axis": self.axis}


@_serializable
class Logit(LogitMethods, FlowLayer):
    """``logit(alpha + (1 - 2 alpha) x)`` for images in [0, 1], entry by entry.

    Examples
    --------
    >>> import numpy as np
    >>> float(Logit()(np.array([[0.5]]))[0, 0])
    0.0
    """

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "alpha": self.alpha}


@_serializable
class Wrap(WrapMethods, FlowLayer):
    """``x - p floor((x - low) / p)``: angles brought back to one turn, the first layer of a flow on a torus.

    Examples
    --------
    >>> import numpy as np
    >>> float(Wrap(period=4.0)(np.array([[5.0]]))[0, 0])
    1.0
    """

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "low": self.low, "period": self.period, "entries": self.entries}


@_serializable
class FactorOut(FactorOutMethods, FlowLayer):
    """Let the first `keep` channels pass through further layers, and leave the others as they are.

    Examples
    --------
    >>> import numpy as np
    >>> tuple(FactorOut(1, [Logit()])(np.full((3, 2), 0.5)).shape)
    (3, 2)
    """

    def _take_layers(self, layers: Sequence[FlowLayer]) -> None:
        self.inner = checkpointed(self, "inner", require_different_layers(layers))

    def _inner(self) -> list[Any]:
        return list(self.inner)

    def _build_for(self, event_shape: Shape) -> None:
        self._bind_inner(event_shape)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.inner]
        return {**super().get_config(), "keep": self.keep, "layers": layers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer and its inner ones."""
        return cls(**{**config, "layers": [keras.saving.deserialize_keras_object(c) for c in config["layers"]]})


def require_different_layers(layers: Sequence[Any]) -> list[FlowLayer]:
    """Refuse what is no layer of a flow, and layers that come twice."""
    out = require_layers(layers, FlowLayer)
    for index, layer in enumerate(out):
        if any(layer is other for other in out[:index]):
            raise InvalidArgumentError(f"entry {index}, {layer.name!r}, comes twice; make another layer.")
    return out
