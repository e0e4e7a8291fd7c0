"""Certificates that compiled programs keep from batch to batch, in variables that are no weights.

TensorFlow and JAX compile the evaluation of a model, with its weights as inputs of the program. A certificate costs a
dozen products of the weights with themselves, which for dense layers is far more than a batch. CPU time a batch of 32
in `predict`, without and with what is kept: four blocks of width 128 take 22.9 and 3.7 ms on TensorFlow, 14.3 and 1.1
ms on JAX; two of width 512 274 and 10 ms, 256 and 5 ms; convolutions of 3 x 32 x 32 images 1.2 to 1.3 times less time.
"""

import math
from collections.abc import Callable
from typing import Any

import keras

from iresnet_core.adapters.keras.replicas import is_replicated
from iresnet_core.backends import get_backend
from iresnet_core.lipschitz import Certificate

__all__ = ["KeptInPrograms", "is_certificate"]


class KeptInPrograms:
    """The certificate of the weight with which a program ran last, beside that weight.

    All of it is in one variable, so that a program that runs at the same time sees the certificate of the weight that
    it sees. The variable is state as that of a seed generator is: among the `variables` of a model, which programs of
    JAX take and give back, but not among its `weights`, and in no file.

    Parameters
    ----------
    shape : tuple of int
        Shape of the weight.
    direction_shape : tuple of int
        Shape of the direction of a certificate, which has as many entries.
    dtype : str
        Dtype of both.
    """

    def __init__(self, shape: tuple[int, ...], direction_shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.direction_shape, self.dtype = shape, direction_shape, dtype
        # Bound, weight and direction. Zeros are right: the norm of a weight of zeros is bounded by 0.
        self.variable = keras.Variable(
            initializer="zeros",
            shape=(1 + 2 * math.prod(shape),),
            dtype=dtype,
            trainable=False,
            autocast=False,
            name="certificate",
        )
        self.variable.is_certificate = True

    def serves(self, weight: Any) -> bool:
        """Say whether a weight of a program can be compared with what is kept."""
        same = tuple(weight.shape) == self.shape and keras.backend.standardize_dtype(weight.dtype) == self.dtype
        # What replicas assign has to agree, for which they wait; that is impossible inside of loops.
        return same and not is_replicated()

    def certificate(self, weight: Any, certified: Callable[[Any], Certificate]) -> Certificate:
        """Return the certificate of a weight: the kept one if the weight has its values, else a new one."""
        ops, backend = keras.ops, get_backend(weight)
        size = math.prod(self.shape)
        weight = ops.stop_gradient(weight)
        entries = ops.reshape(weight, (size,))
        before = ops.convert_to_tensor(self.variable)  # read once

        def anew() -> Any:
            bound, direction = certified(weight)
            return ops.concatenate([ops.reshape(bound, (1,)), entries, ops.reshape(direction, (size,))])

        with backend.full_precision():  # in which JAX has to differentiate and batch the branches, too
            kept = ops.cond(ops.all(before[1 : 1 + size] == entries), lambda: before, anew)
        kept = ops.stop_gradient(kept)
        if backend.are_of_one_program(before, kept):
            self.variable.assign(kept)
        return Certificate(kept[0], ops.reshape(kept[1 + size :], self.direction_shape))


def is_certificate(variable: Any) -> bool:
    """Say whether a variable is one of those, which need not be saved."""
    return getattr(variable, "is_certificate", False)
