"""The map of a condition as a Keras layer."""

from typing import Any, Self

import keras

import iresnet_core as core
from iresnet_core.adapters.keras.branch import learned_layers, steps_of
from iresnet_core.adapters.keras.tensors import checkpointed, kernel_of, tensor_of
from iresnet_core.adapters.shared.condition import ConditionMethods
from iresnet_core.adapters.shared.learned_steps import LearnedStep, with_core_layers
from iresnet_core.branches import Activation
from iresnet_core.errors import InvalidArgumentError, UnknownArrayError

__all__ = ["Condition", "context_tensor"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class Condition(ConditionMethods, keras.layers.Layer):
    """``h = net(e(c))``: from a condition c to what enters, with labels one-hot and numbers scaled.

    Notes
    -----
    The net is a list or a Sequential of Dense layers and activations, with kernels as they are: a condition does not
    enter the contraction. An embedding by another model is computed before, and its output given as the context.

    Examples
    --------
    >>> import numpy as np
    >>> tuple(Condition([keras.layers.Dense(2)], classes=3)(np.array([2, 0])).shape)
    (2, 2)
    """

    def _take_net(self, net: Any, inputs: int | None) -> None:
        self.net: Any = [] if net is None else list(net) if isinstance(net, tuple) else net
        steps = steps_of(self.net)
        dense = [step for step in steps if type(step) is keras.layers.Dense]
        if any(step not in dense and not isinstance(step, Activation | LearnedStep) for step in steps):
            raise InvalidArgumentError(f"the net of a condition maps vectors: Dense and activations, got {net!r}.")
        if dense and inputs is None:
            raise InvalidArgumentError("say how many columns a condition has: Condition(net, features=...).")
        for step in steps:
            if isinstance(step, LearnedStep) and inputs is not None:
                step.build((inputs,))
            elif step in dense:
                if not step.built:
                    step.build((None, inputs))
                inputs = step.units
        checkpointed(self, "net", dense)
        checkpointed(self, "learned", learned_layers(self.net))
        for layer in self._flatten_layers(include_self=False):
            if not layer.built:  # activations, which are never called
                layer.built = True
        self.built = True
        self.core_condition()  # checks that all fits

    def _net_steps(self, checked: bool) -> list[Any]:
        steps = steps_of(self.net)
        like = next((kernel_of(step) for step in steps if isinstance(step, keras.layers.Dense)), None)
        return [
            core.Dense(
                keras.ops.transpose(kernel_of(step)), tensor_of(step.bias) if step.use_bias else None, checked=checked
            )
            if isinstance(step, keras.layers.Dense)
            else step
            for step in with_core_layers(steps, like)
        ]

    def call(self, context: Any) -> Any:
        """Return what enters for conditions (batch, features)."""
        return self.core_condition()(context_tensor(context, self.variable_dtype))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch, width)."""
        return (input_shape[0], self.width)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        serialize, net, said = keras.saving.serialize_keras_object, self.net, self.encoding
        return {
            **super().get_config(),
            "net": [serialize(layer) for layer in net] if isinstance(net, list) else serialize(net),
            "labels": None if said is None or said.labels is None else [own and list(own) for own in said.labels],
            "mean": None if said is None or said.mean is None else list(said.mean),
            "std": None if said is None or said.std is None else list(said.std),
            "features": self._given_features,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer and its net."""
        net, deserialize = config["net"], keras.saving.deserialize_keras_object
        made = [deserialize(layer) for layer in net] if isinstance(net, list) else deserialize(net)
        return cls(**{**config, "net": made or None})


def context_tensor(context: Any, dtype: Any) -> Any:
    """Return conditions as a tensor in a dtype; whole numbers, which may be labels, as they are. None for None."""
    if context is None:
        return None
    try:
        found = keras.ops.convert_to_tensor(context)
    except (TypeError, ValueError) as error:
        raise UnknownArrayError(f"the context is no array: {error}") from error
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(found.dtype))
    return keras.ops.convert_to_tensor(context, dtype=dtype) if is_float else found
