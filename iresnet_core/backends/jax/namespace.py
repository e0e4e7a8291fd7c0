"""jax.numpy, with products in full precision."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from iresnet_core.backends.base import Array

__all__ = ["EXACT", "namespace"]

# On an accelerator JAX multiplies float32 matrices in fewer bits unless it is told not to; the error bounds count on
# the rounding of the dtype.
EXACT = lax.Precision.HIGHEST


def _matmul(a: Array, b: Array, /) -> Array:
    return jnp.matmul(a, b, precision=EXACT)


# Outside a compiled function JAX compiles every primitive of an operation for every shape. What the core's loops are
# made of is one program each; `inline` leaves no trace of that in a program of the caller's.


@partial(jax.jit, static_argnames=("axis",), inline=True)
def _inner_products(a: Array, b: Array, *, axis: int) -> Array:
    return jnp.vecdot(a, b, axis=axis, precision=EXACT)


def _vecdot(a: Array, b: Array, /, *, axis: int = -1) -> Array:
    return _inner_products(a, b, axis=axis)


@partial(jax.jit, static_argnames=("axis", "keepdims", "ord"), inline=True)
def _norms(x: Array, *, axis: Any, keepdims: bool, ord: Any) -> Array:
    return jnp.linalg.vector_norm(x, axis=axis, keepdims=keepdims, ord=ord)


def _vector_norm(x: Array, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Array:
    return _norms(x, axis=axis, keepdims=keepdims, ord=ord)


@partial(jax.jit, static_argnames=("rows", "columns", "k", "dtype"), inline=True)
def _diagonal_of_ones(*, rows: int, columns: int | None, k: int, dtype: Any) -> Array:
    return jnp.eye(rows, columns, k, dtype)


def _eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Array:
    ones = _diagonal_of_ones(rows=n_rows, columns=n_cols, k=k, dtype=dtype)
    return ones if device is None else jax.device_put(ones, device)


def _tensordot(a: Array, b: Array, /, *, axes: Any = 2) -> Array:
    return jnp.tensordot(a, b, axes=axes, precision=EXACT)


# The places have 32 bits: those that are 64 bits wide inside of `full_precision` could not be compiled outside of it.


def _argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    places = lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
    return lax.sort((-x if descending else x, places), dimension=axis % x.ndim, num_keys=1, is_stable=stable)[1]


_PRODUCTS = {"matmul": _matmul, "vecdot": _vecdot, "tensordot": _tensordot}


class _Namespace(SimpleNamespace):
    """The functions of `module`, with products in full precision."""

    def __init__(self, module: Any, **own: Any) -> None:
        super().__init__(_module=module, **_PRODUCTS, **own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


namespace = _Namespace(jnp, linalg=_Namespace(jnp.linalg, vector_norm=_vector_norm), eye=_eye, argsort=_argsort)
