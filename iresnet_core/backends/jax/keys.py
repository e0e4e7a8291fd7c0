"""JAX's keys, and noise drawn from them."""

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iresnet_core.backends.base import Array, NoiseKind
from iresnet_core.backends.jax.precision import x64
from iresnet_core.backends.jax.tracing import concrete_value
from iresnet_core.errors import InvalidArgumentError

__all__ = ["KeyStream", "draw_native"]


class KeyStream:
    """A JAX key that goes on from draw to draw: each one splits a subkey off.

    Parameters
    ----------
    key : jax.Array
        A typed key (`jax.random.key`) or a raw one (`jax.random.PRNGKey`); it may be a tracer.

    Raises
    ------
    InvalidArgumentError
        If it is no single key.
    """

    def __init__(self, key: Array) -> None:
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.dtype != jnp.uint32 or key.ndim != 1:
                raise InvalidArgumentError(
                    f"rng must be a key here, such as jax.random.key(0), got an array of dtype {key.dtype} and shape "
                    f"{tuple(key.shape)}."
                )
            key = jax.random.wrap_key_data(key)
        if key.ndim:
            raise InvalidArgumentError(f"rng must be a single key, got keys of shape {tuple(key.shape)}.")
        self.key = key

    def next(self) -> Array:
        """Return a fresh subkey."""
        known = concrete_value(self.key)
        with nullcontext() if known is None else jax.ensure_compile_time_eval():
            self.key, subkey = jax.random.split(self.key if known is None else known)
        return subkey


def draw_native(kind: NoiseKind, shape: tuple[int, ...], dtype: Any, key: Array) -> Array:
    """Draw noise of a kind from a key."""
    # With 64-bit types for float64 only: JAX takes 64 random bits elsewhere too where it can have them, and a scan that
    # is differentiated looks at the types again when the context of `JaxBackend.full_precision` has been left.
    with x64(dtype == np.float64):
        if kind == "gaussian":
            return jax.random.normal(key, shape, dtype)
        if kind == "rademacher":
            return jax.random.rademacher(key, shape, dtype)
    raise InvalidArgumentError(f"noise must be 'rademacher' or 'gaussian', got {kind!r}.")
