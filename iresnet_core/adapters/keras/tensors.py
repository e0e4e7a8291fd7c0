"""Keras' variables as the arrays of the backend that Keras runs on."""

from typing import Any

import keras

from iresnet_core.backends import get_backend

__all__ = ["constant", "is_known", "same", "tensor_of"]


def tensor_of(variable: Any) -> Any:
    """Return the present value of a variable, differentiable with respect to it, as an array of its own."""
    return keras.ops.copy(variable.value)


def constant(variable: Any) -> Any:
    """Return the present value of a variable as a constant."""
    return keras.ops.stop_gradient(keras.ops.copy(variable.value))


def is_known(x: Any) -> bool:
    """Say whether an array has a value here, so that a certificate can be computed: not in a compiled program."""
    return not get_backend(x).is_tracing(x)


def same(a: Any, b: Any) -> bool:
    """Say whether two arrays with values are equal, entry by entry."""
    return bool(keras.ops.all(keras.ops.equal(a, b)))
