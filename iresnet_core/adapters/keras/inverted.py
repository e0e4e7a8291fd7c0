"""Layers turned round, as a Keras layer."""

from collections.abc import Sequence
from typing import Any, Self

import keras

from iresnet_core.adapters.keras.layer import FlowLayer, require_different_layers
from iresnet_core.adapters.keras.tensors import checkpointed
from iresnet_core.adapters.shared.inverted import InvertedMethods
from iresnet_core.flows import Shape

__all__ = ["Inverted"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class Inverted(InvertedMethods, FlowLayer):
    """``z = f^-1(x)``: samples are made by evaluating the layers, and scored by a solution.

    Examples
    --------
    >>> from iresnet_core.adapters.keras import Flow, InvertibleResidual
    >>> block = InvertibleResidual([keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)], coeff=0.9)
    >>> tuple(Flow([Inverted(block)], event_shape=(2,)).sample(5).shape)
    (5, 2)
    """

    def _take_layers(self, layers: Sequence[FlowLayer]) -> None:
        self.inner = checkpointed(self, "inner", require_different_layers(layers))

    def _inner(self) -> list[Any]:
        return list(self.inner)

    def _build_for(self, event_shape: Shape) -> None:
        self._bind_inner(event_shape)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {
            **super().get_config(),
            "layer": [keras.saving.serialize_keras_object(layer) for layer in self.inner],
            "solver": self.solver,
            "rtol": self.rtol,
            "atol": self.atol,
            "max_iter": self.max_iter,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer and its inner ones."""
        return cls(**{**config, "layer": [keras.saving.deserialize_keras_object(c) for c in config["layer"]]})
