"""TensorFlow's stateless random numbers as a generator that goes on from draw to draw."""

from typing import Any

import tensorflow as tf

from iresnet_core.errors import InvalidArgumentError

__all__ = ["SeedStream"]

# Left alone, TensorFlow chooses by device.
_ALGORITHM = "philox"


class SeedStream:
    """A seed tensor that is used up draw by draw, in a traced program as well; the counterpart of a stream of JAX keys.

    Parameters
    ----------
    seed : tf.Tensor (2,) of whole numbers
        As ``tf.random.stateless_normal`` takes it; it may be symbolic.

    Raises
    ------
    InvalidArgumentError
        If it is no such tensor.
    """

    def __init__(self, seed: Any) -> None:
        if not seed.dtype.is_integer or tuple(seed.shape) != (2,):
            raise InvalidArgumentError(
                f"a seed tensor holds two whole numbers, got dtype {seed.dtype.name} and shape {tuple(seed.shape)}."
            )
        self._seed = tf.bitcast(seed, tf.int32) if seed.dtype == tf.uint32 else seed

    def _next(self) -> Any:
        seeds = tf.random.split(self._seed, 2, alg=_ALGORITHM)
        self._seed = seeds[0]
        return seeds[1]

    def normal(self, shape: Any, dtype: Any) -> Any:
        """Draw standard normal numbers."""
        return tf.random.stateless_normal(shape, self._next(), dtype=dtype, alg=_ALGORITHM)

    def uniform(self, shape: Any, minval: int, maxval: int, dtype: Any) -> Any:
        """Draw whole numbers in [minval, maxval)."""
        return tf.random.stateless_uniform(shape, self._next(), minval, maxval, dtype=dtype, alg=_ALGORITHM)

    def fractions(self, shape: Any) -> Any:
        """Draw float64 numbers in [0, 1)."""
        return tf.random.stateless_uniform(shape, self._next(), dtype=tf.float64, alg=_ALGORITHM)
