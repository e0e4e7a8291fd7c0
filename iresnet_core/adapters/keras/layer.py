"""The layers of a flow as Keras layers: each holds variables and hands them to the core's layer."""

from collections.abc import Sequence
from typing import Any, Self

import keras

import iresnet_core as core
from iresnet_core.adapters.keras.tensors import constant, is_known, tensor_of
from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Layer, Shape

__all__ = ["ActNorm", "FactorOut", "FlowLayer", "InjectivePad", "Logit", "Squeeze", "require_layers"]

_serializable = keras.saving.register_keras_serializable(package="iresnet_core")


class FlowLayer(keras.layers.Layer):
    """Base class of the layers: ``layer(x)`` maps samples, `inverse` maps them back, both through the core.

    A subclass says in `core_layer` which layer of the core its variables make now. Whatever the policy, the computation
    is in the dtype of the variables, since the bounds would not hold in half precision.

    Attributes
    ----------
    takes_context : bool
        Whether a conditioning changes the layer.
    """

    takes_context: bool = True

    def __init__(self, *, dtype: Any = None, **kwargs: Any) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(dtype=policy.variable_dtype, **kwargs)

    def core_layer(self, *, training: bool = False, context: Any = None) -> Layer:
        """Return the core's layer with the present variables; with certified weights unless `training`.

        `context` (batch, features) is the conditioning, for layers that take it.
        """
        raise NotImplementedError

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

    def _shape_layer(self) -> Layer:
        """Return a layer of the core that knows shapes."""
        return self.core_layer()

    def initialize(self, x: Any, context: Any = None) -> Any:
        """Set data-dependent variables that are not set yet, and return the output for `x`."""
        return self.core_layer(context=context)(x)

    @property
    def initialized(self) -> bool:
        """Whether there is nothing left for `initialize` to do."""
        return True

    def certify(self) -> None:
        """Certify the weights that changed since they were certified last; only compiled programs need the call."""

    def call(self, x: Any, context: Any = None, training: bool = False) -> Any:
        """Map samples x (batch, ...), without the log-determinant."""
        return self.core_layer(training=training, context=context)(keras.ops.convert_to_tensor(x))

    def inverse(self, z: Any, context: Any = None, *, errors: bool = False, **options: Any) -> Any:
        """Return the preimages of z (batch, ...), with certified weights.

        Parameters
        ----------
        z : tensor or array (batch, ...)
            As the layer returns them.
        context : tensor or array (batch, features), optional
            The conditioning that belongs to z.
        errors : bool
            Return the core's `Inverse` with its certified `error_bound` instead of the samples alone.
        **options
            As in `iresnet_core.invert`.
        """
        result = self.core_layer(context=context).inverse(
            keras.ops.convert_to_tensor(z, dtype=self.compute_dtype), **options
        )
        return result if errors else result.value


@_serializable
class ActNorm(FlowLayer):
    """``z = (x + bias) exp(log_scale)`` per channel (the last axis), initialised from data.

    `FlowModel.fit` initialises it before training begins, `initialize` does so from a batch of the caller's. Whether it
    is initialised is part of what is saved, so that a model that was loaded is never initialised again.
    """

    takes_context = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._initialized = False  # for Python; `is_initialized` is the same for files

    def _build_for(self, event_shape: Shape) -> None:
        channels = event_shape[-1]
        self.log_scale = self.add_weight(name="log_scale", shape=(channels,), initializer="zeros")
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")
        self.is_initialized = self.add_weight(
            name="is_initialized", shape=(), initializer="zeros", dtype="bool", trainable=False, autocast=False
        )

    @property
    def initialized(self) -> bool:
        """Whether the variables have been set from data or loaded."""
        return self._initialized

    def initialize(self, x: Any, context: Any = None) -> Any:
        """Set the variables from a batch, unless they are set already; return the output."""
        if not self._initialized:
            found = core.ActNorm.initialize(keras.ops.stop_gradient(x), axis=-1)
            self.log_scale.assign(found.log_scale)
            self.bias.assign(found.bias)
            self.mark_initialized()
        return super().initialize(x, context)

    def mark_initialized(self) -> None:
        """Keep the variables as they are from now on but for training."""
        self.is_initialized.assign(True)
        self._initialized = True

    def _shape_layer(self) -> Layer:
        return core.ActNorm(constant(self.log_scale), constant(self.bias), axis=-1)

    def core_layer(self, *, training: bool = False, context: Any = None) -> Layer:
        """Return the core's layer."""
        if not self._initialized:
            raise InvalidArgumentError(
                f"the ActNorm {self.name!r} has not been initialised: call initialize(x) with a batch of data, or "
                "fit(x), which does it."
            )
        return core.ActNorm(tensor_of(self.log_scale), tensor_of(self.bias), axis=-1)

    def call(self, x: Any, context: Any = None, training: bool = False) -> Any:
        """Map samples x (batch, ..., channels); the first batch in training sets the variables, unless compiled."""
        backend = get_backend(x)
        if training and not self._initialized and is_known(x) and is_known(tensor_of(self.bias)):
            with backend.no_grad():
                self.initialize(x)
        return super().call(x, context, training=training)

    def load_own_variables(self, store: Any) -> None:
        """Take over whether it is initialised."""
        super().load_own_variables(store)
        self._initialized = bool(self.is_initialized.numpy())


@_serializable
class Squeeze(FlowLayer):
    """Blocks of pixels to channels, (H, W, C) to (H / factor, W / factor, C factor^2); also for 1 and 3 axes."""

    takes_context = False

    def __init__(self, factor: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor, self._core = factor, core.Squeeze(factor, data_format="channels_last")

    def core_layer(self, *, training: bool = False, context: Any = None) -> Layer:
        """Return the core's layer."""
        return self._core

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "factor": self.factor}


@_serializable
class InjectivePad(FlowLayer):
    """Append zero channels: an injective map, for more features than data have."""

    takes_context = False

    def __init__(self, padding: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.padding, self._core = padding, core.InjectivePad(padding, axis=-1)

    def core_layer(self, *, training: bool = False, context: Any = None) -> Layer:
        """Return the core's layer."""
        return self._core

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "padding": self.padding}


@_serializable
class Logit(FlowLayer):
    """``logit(alpha + (1 - 2 alpha) x)`` for images in [0, 1]."""

    takes_context = False

    def __init__(self, alpha: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha, self._core = alpha, core.Logit(alpha)

    def core_layer(self, *, training: bool = False, context: Any = None) -> Layer:
        """Return the core's layer."""
        return self._core

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "alpha": self.alpha}


@_serializable
class FactorOut(FlowLayer):
    """Let the first `keep` channels pass through further layers, and leave the others as they are.

    Parameters
    ----------
    keep : int
        Channels that go on.
    layers : sequence of FlowLayer
        What they go through.
    """

    takes_context = False

    def __init__(self, keep: int, layers: Sequence[FlowLayer], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep = keep
        self.inner = require_layers(layers)
        self._event_shape: Shape | None = None

    @property
    def initialized(self) -> bool:
        """Whether all inner layers are."""
        return all(layer.initialized for layer in self.inner)

    def _build_for(self, event_shape: Shape) -> None:
        shape: Any = (None, *event_shape[:-1], self.keep)
        self._event_shape = shape[1:]
        for layer in self.inner:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self._shape_layer().output_shape(event_shape)

    def initialize(self, x: Any, context: Any = None) -> Any:
        """Initialise the inner layers with what they will be given."""
        kept = x[..., : self.keep]
        for layer in self.inner:
            kept = layer.initialize(kept, context)
        return super().initialize(x, context)

    def certify(self) -> None:
        """Certify the inner layers."""
        for layer in self.inner:
            layer.certify()

    def _shape_layer(self) -> Layer:
        return self._factor_out([layer._shape_layer() for layer in self.inner])

    def core_layer(self, *, training: bool = False, context: Any = None) -> Layer:
        """Return the core's layer."""
        return self._factor_out([layer.core_layer(training=training, context=context) for layer in self.inner])

    def _factor_out(self, layers: list[Layer]) -> Layer:
        assert self._event_shape is not None, "not built"
        return core.FactorOut(self.keep, core.Flow(layers, self._event_shape), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.inner]
        return {**super().get_config(), "keep": self.keep, "layers": layers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer and its inner ones."""
        return cls(**{**config, "layers": [keras.saving.deserialize_keras_object(c) for c in config["layers"]]})


def require_layers(layers: Sequence[Any]) -> list[FlowLayer]:
    """Refuse what is no layer of a flow, and layers that come twice."""
    out: list[FlowLayer] = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, FlowLayer):
            raise InvalidArgumentError(
                f"entry {index} is a {type(layer).__name__}, no layer of a flow. Wrap a network as "
                "InvertibleResidual(network), or use ActNorm, Squeeze, InjectivePad, Logit or FactorOut."
            )
        if any(layer is other for other in out):
            raise InvalidArgumentError(f"entry {index}, {layer.name!r}, comes twice; make another layer.")
        out.append(layer)
    if not out:
        raise InvalidArgumentError("there are no layers; a flow needs at least one.")
    return out
