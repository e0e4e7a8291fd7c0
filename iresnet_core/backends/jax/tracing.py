"""Tracers of JAX: their values, closures taken apart, and what may be differentiated once only."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from iresnet_core.backends.base import Array
from iresnet_core.errors import DerivativeError

__all__ = ["concrete_value", "constants", "converted_closure", "no_cotangent", "once_derivable"]


def concrete_value(x: Array) -> Any:
    """Return the value of an array that may be a tracer of grad, or None where no value is known yet."""
    tracer: Any = x
    return tracer.to_concrete_value() if isinstance(x, jax.core.Tracer) else x


def constants(values: Any) -> Any:
    """Return the same arrays with zero tangents."""
    return jax.tree.map(lax.stop_gradient, values)


def converted_closure(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], list[Any]]:
    """Return ``fn(*args)`` as a function ``(closed_over, *args)``, and all that `fn` closes over.

    Unlike `jax.closure_convert` it hands out whole numbers too, which a derivative rule could not close over.
    """
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    structure = jax.tree.structure(shapes)

    def converted(closed_over: Sequence[Any], *args: Any) -> Any:
        return jax.tree.unflatten(structure, jax.core.eval_jaxpr(program.jaxpr, closed_over, *jax.tree.leaves(args)))

    return converted, list(program.consts)


@jax.custom_jvp
def _underivable(x: Array) -> Array:
    """Return `x`; its derivative is refused."""
    return x


@_underivable.defjvp
def _refuse_second_derivative(primals: Any, tangents: Any) -> Any:
    raise DerivativeError(
        "a second derivative through an implicit gradient (a gradient of the inverse or of the log-determinant) would "
        "be wrong and is refused. Use first derivatives, or differentiate the residual equation yourself."
    )


def once_derivable(x: Array) -> Array:
    """Return what a backward pass reads; whoever differentiates that pass with respect to it is refused."""
    return _underivable(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def no_cotangent(x: Array) -> Any:
    """Return the zero cotangent of a constant; for whole numbers it has JAX's empty dtype."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
