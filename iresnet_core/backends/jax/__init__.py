"""The JAX backend: every array is a constant, and every function may be traced by grad, jit or vmap."""

from iresnet_core.backends.jax.backend import JaxBackend

__all__ = ["JaxBackend"]
