"""Keras' variables as the arrays of the backend that Keras runs on, and as parts of TensorFlow's checkpoints."""

from collections.abc import Sequence
from typing import Any

import keras

__all__ = ["checkpointed", "constant", "kernel_of", "tensor_of"]


def tensor_of(variable: Any) -> Any:
    """Return the present value of a variable, differentiable with respect to it, as an array of its own."""
    return keras.ops.copy(variable.value)


def constant(variable: Any) -> Any:
    """Return the present value of a variable as a constant."""
    return keras.ops.stop_gradient(keras.ops.copy(variable.value))


def kernel_of(layer: keras.layers.Layer) -> Any:
    """Return the present kernel of a linear layer; that of one with `enable_lora` is the sum that Keras makes."""
    kernel = layer.kernel
    if isinstance(kernel, keras.Variable):
        return tensor_of(kernel)
    return keras.ops.cast(kernel, layer.variable_dtype)


def checkpointed(owner: Any, name: str, layers: Sequence[Any]) -> list[Any]:
    """Return the layers as a list, and make each a part of what ``tf.train.Checkpoint`` saves of their owner.

    Keras 3 tells TensorFlow about layers that are attributes, but not about those in lists, whose variables would be
    missing from a checkpoint without a word.
    """
    if keras.backend.backend() == "tensorflow":
        for index, layer in enumerate(layers):
            owner._track_trackable(layer, name=f"{name}_{index}", overwrite=True)
    return list(layers)
