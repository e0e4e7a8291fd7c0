"""TensorFlow programs compiled once for every batch size, which the core's shapes are made of.

Keras compiles one program for all batch sizes on TensorFlow, with an unknown first extent, as soon as the last batch of
an epoch is smaller. On its other backends the size is always known.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras

__all__ = ["steps_for_shapes"]


def steps_for_shapes(model: keras.Model, step: Callable[[Any], Any]) -> Callable[[Iterator[Any]], Any] | None:
    """Return a function that takes the next batch from an iterator and does a compiled step with it.

    None where Keras' own is to be taken: on other backends, eagerly, with several steps an execution, and under a
    tf.distribute strategy, whose batches should all have one size.
    """
    if keras.backend.backend() != "tensorflow" or model.run_eagerly or model.steps_per_execution != 1:
        return None
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return None
    tensorflow = sys.modules["tensorflow"]
    compiled = tensorflow.function(step, jit_compile=model.jit_compile, autograph=False)
    return lambda batches: compiled(next(batches))
