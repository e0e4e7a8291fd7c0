"""Layers for a branch that Keras lacks: an activation of trained width, and the concatenation of dense blocks."""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras

from iresnet_core.adapters.keras.tensors import checkpointed, tensor_of
from iresnet_core.adapters.shared.learned_steps import LearnedStep
from iresnet_core.branches import Activation as CoreActivation
from iresnet_core.branches import PReLU as CorePReLU
from iresnet_core.branches import ScaledActivation as CoreScaledActivation
from iresnet_core.common import require_positive_int
from iresnet_core.errors import InvalidArgumentError, UnknownLipschitzError
from iresnet_core.flows import Shape

__all__ = ["DenseConcatenation", "ScaledActivation", "slopes_of"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class ScaledActivation(keras.layers.Layer):
    """``f(s x) / s`` with trained scales s = exp(log_scale), see `iresnet_core.ScaledActivation`.

    Parameters
    ----------
    name : str
        An entrywise activation f, see `iresnet_core.Activation`: with "lipswish" it is that of Residual Flows, whose
        beta is trained.
    channels : int
        Number of scales: 1 for all channels, or as many as there are channels, on the last axis.
    **parameters
        Those of the activation.

    Examples
    --------
    >>> import numpy as np
    >>> np.asarray(ScaledActivation("hardtanh")(np.array([[0.5, 3.0]], "float32"))).tolist()
    [[0.5, 1.0]]
    """

    def __init__(
        self, name: str, *, channels: int = 1, dtype: Any = None, trainable: bool = True, **parameters: Any
    ) -> None:
        super().__init__(dtype=dtype, trainable=trainable)
        self.activation = CoreActivation(name, **parameters)
        if not self.activation.entrywise:
            raise InvalidArgumentError(f"ScaledActivation takes an entrywise activation, got {name!r}.")
        self.channels = require_positive_int(channels, "channels")

    def build(self, input_shape: Any) -> None:
        """Make the scales."""
        self.log_scale = self.add_weight(name="log_scale", shape=(self.channels,), initializer="zeros")
        self.built = True

    def _core(self, log_scale: Any) -> CoreScaledActivation:
        return CoreScaledActivation(self.activation, log_scale, axis=-1)

    def step(self) -> LearnedStep:
        """Return the step of a branch."""
        return LearnedStep(self._core, lambda: tensor_of(self.log_scale), self.activation.lipschitz, self._build_at)

    def _build_at(self, shape: Shape) -> None:
        if not self.built:
            self.build((None, *shape))

    def call(self, x: Any) -> Any:
        """Apply it to x (batch, ..., channels)."""
        return self._core(tensor_of(self.log_scale)).astype(x.dtype)(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the same shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        own = {"name": self.activation.name, "channels": self.channels, **self.activation.parameters}
        return {**own, "dtype": super().get_config()["dtype"]}


@keras.saving.register_keras_serializable(package="iresnet_core")
class DenseConcatenation(keras.layers.Layer):
    """``x -> (cos(a) x, sin(a) net(x))`` along the last axis with a trained angle a: the layer of a dense block.

    Inside of a block the linear layers of `net` are capped such that its constant is 1, and with it that of the
    concatenation; a linear layer behind some of these brings the channels back.

    Parameters
    ----------
    net : layer, or list of layers
        A linear layer and activations, as in `InvertibleResidual`, which keeps all axes but that of the channels.

    Examples
    --------
    >>> from iresnet_core.adapters.keras import InvertibleResidual
    >>> dense = [DenseConcatenation(keras.layers.Dense(8, activation="elu")) for _ in range(2)]
    >>> block = InvertibleResidual([*dense, keras.layers.Dense(2)], coeff=0.9)
    """

    def __init__(self, net: Any, **options: Any) -> None:
        super().__init__(**options)
        layers = list(net) if isinstance(net, Sequence) else [net]
        if not all(isinstance(layer, keras.layers.Layer) for layer in layers):
            raise InvalidArgumentError(f"DenseConcatenation takes a layer, or a list of layers, got {net!r}.")
        self.net = checkpointed(self, "net", layers)

    def build(self, input_shape: Any) -> None:
        """Make the angle, and the layers where they are not made yet."""
        self.angle = self.add_weight(
            name="angle", shape=(1,), initializer=keras.initializers.Constant(math.pi / 4), trainable=True
        )
        shape = input_shape
        for layer in self.net:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.built = True

    def _build_at(self, shape: Shape) -> None:
        """Build the layer for samples of this shape."""
        if not self.built:
            self.build((None, *shape))

    def _present_angle(self) -> Any:
        """Return the angle as a tensor."""
        return tensor_of(self.angle)

    def call(self, x: Any) -> Any:
        """Return both for x (batch, ..., channels)."""
        made = x
        for layer in self.net:
            made = layer(made)
        return keras.ops.concatenate([keras.ops.cos(self.angle) * x, keras.ops.sin(self.angle) * made], axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape with the channels of both."""
        inside = input_shape
        for layer in self.net:
            inside = layer.compute_output_shape(inside)
        return (*input_shape[:-1], input_shape[-1] + inside[-1])

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "net": [keras.saving.serialize_keras_object(layer) for layer in self.net]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer and its net."""
        return cls(**{**config, "net": [keras.saving.deserialize_keras_object(layer) for layer in config["net"]]})


def slopes_of(layer: keras.layers.PReLU) -> LearnedStep:
    """Return the step of a PReLU whose slopes are those of channels, or one for all.

    Raises
    ------
    UnknownLipschitzError
        When it is built, if every position has slopes of its own.
    """

    def build(shape: Shape) -> None:
        if not layer.built:
            layer.build((None, *shape))
        if any(extent != 1 for extent in layer.alpha.shape[:-1]):
            raise UnknownLipschitzError(
                f"PReLU {layer.name!r} has a slope for every position. Share them, for images by "
                "PReLU(shared_axes=[1, 2])."
            )

    return LearnedStep(
        lambda slope: CorePReLU(slope, axis=-1), lambda: keras.ops.reshape(tensor_of(layer.alpha), (-1,)), 1.0, build
    )
