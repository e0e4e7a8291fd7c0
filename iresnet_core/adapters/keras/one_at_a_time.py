"""Programs of JAX on a CPU run one after the other.

With several steps in flight, as `fit` has them, the factorisations inside can wait for threads that wait for them: on
two cores every other run of JAX 0.10 stood still. On accelerators nothing waits here.
"""

import sys
from collections.abc import Callable
from typing import Any

import keras

__all__ = ["waiting"]


def waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, on JAX on a CPU such that it waits for its results."""
    if keras.backend.backend() != "jax":
        return function
    jax = sys.modules["jax"]
    if jax.default_backend() != "cpu":
        return function
    return lambda *args: jax.block_until_ready(function(*args))
