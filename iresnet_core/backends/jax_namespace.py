"""jax.numpy, with products in full precision."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
from jax import lax

from iresnet_core.backends.base import Array

__all__ = ["EXACT", "namespace"]

# On an accelerator JAX multiplies float32 matrices in fewer bits unless it is told not to; the error bounds count on
# the rounding of the dtype.
EXACT = lax.Precision.HIGHEST


def _matmul(a: Array, b: Array, /) -> Array:
    return jnp.matmul(a, b, precision=EXACT)


def _vecdot(a: Array, b: Array, /, *, axis: int = -1) -> Array:
    return jnp.vecdot(a, b, axis=axis, precision=EXACT)


def _tensordot(a: Array, b: Array, /, *, axes: Any = 2) -> Array:
    return jnp.tensordot(a, b, axes=axes, precision=EXACT)


_PRODUCTS = {"matmul": _matmul, "vecdot": _vecdot, "tensordot": _tensordot}


class _Namespace(SimpleNamespace):
    """The functions of `module`, with products in full precision."""

    def __init__(self, module: Any, **own: Any) -> None:
        super().__init__(_module=module, **_PRODUCTS, **own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


namespace = _Namespace(jnp, linalg=_Namespace(jnp.linalg))
