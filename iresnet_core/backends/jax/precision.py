"""JAX's 64-bit types, which a process may have switched off and the package still computes its certificates in."""

import importlib
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

__all__ = ["borrowed", "has_float64", "x64"]


def has_float64() -> bool:
    """Say whether float64 arrays can be made here and now."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def x64(enable: bool) -> AbstractContextManager[Any]:
    """Context with or without 64-bit arrays; JAX's own context manager moved with 0.8."""
    if enable == has_float64():
        return nullcontext()
    owner: Any = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    context: AbstractContextManager[Any] = owner.enable_x64(enable)
    return context


class _Borrowed(threading.local):
    """Whether this thread has 64-bit types only because the package asked for them."""

    here = False


borrowed = _Borrowed()
