"""Keras' variables as the arrays of the backend that Keras runs on."""

from typing import Any

import keras

__all__ = ["constant", "tensor_of"]


def tensor_of(variable: Any) -> Any:
    """Return the present value of a variable, differentiable with respect to it, as an array of its own."""
    return keras.ops.copy(variable.value)


def constant(variable: Any) -> Any:
    """Return the present value of a variable as a constant."""
    return keras.ops.stop_gradient(keras.ops.copy(variable.value))
