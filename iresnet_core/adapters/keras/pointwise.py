"""Layers of points for whole sets of them, as a Keras layer."""

from collections.abc import Sequence
from typing import Any, Self

import keras

from iresnet_core.adapters.keras.layer import FlowLayer, require_different_layers
from iresnet_core.adapters.keras.tensors import checkpointed
from iresnet_core.adapters.shared.pointwise import PointwiseMethods
from iresnet_core.flows import Shape

__all__ = ["Pointwise"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class Pointwise(PointwiseMethods, FlowLayer):
    """``z_p = layers(x_p)`` for every point x_p of a set; the conditions of a set are those of all its points.

    Examples
    --------
    >>> from iresnet_core.adapters.keras import Flow, InvertibleResidual
    >>> block = InvertibleResidual([keras.layers.Dense(8, activation="elu"), keras.layers.Dense(3)], coeff=0.9)
    >>> tuple(Flow([Pointwise(block)], event_shape=(100, 3)).sample(2).shape)
    (2, 100, 3)
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
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer and its inner ones."""
        return cls(**{**config, "layers": [keras.saving.deserialize_keras_object(c) for c in config["layers"]]})
