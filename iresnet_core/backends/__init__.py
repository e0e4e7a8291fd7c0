"""Backends, one file or folder per array library, and the dispatch that finds the backend of an array by its type."""

import importlib
import sys
from types import SimpleNamespace
from typing import Any

from iresnet_core.backends.base import Array, Backend, device_of
from iresnet_core.errors import InvalidArgumentError, MissingDependencyError, MixedBackendsError, UnknownArrayError

__all__ = ["Array", "Backend", "available_backends", "backend", "device_of", "get_backend"]

# backend -> (its class in iresnet_core.backends.<name>, the framework's module, how to install that); one more backend
# is one more file and one more row.
_BACKENDS: dict[str, tuple[str, str, str]] = {
    "numpy": ("NumPyBackend", "numpy", "pip install numpy"),
    "torch": ("TorchBackend", "torch", "pip install 'iresnet-core[torch]'"),
    "tensorflow": ("TensorFlowBackend", "tensorflow", "pip install 'iresnet-core[tensorflow]'"),
    "jax": ("JaxBackend", "jax", "pip install 'iresnet-core[jax]'"),
    "cupy": ("CuPyBackend", "cupy", "pip install 'iresnet-core[cupy]'"),
    "array_api_strict": ("ArrayAPIStrictBackend", "array_api_strict", "pip install array-api-strict"),
}

# The backend of every type of arrays that has been seen.
_backend_of_type: dict[type, Backend] = {}
# The backends in use, by name. torch.compile sees an attribute that is set while it traces, but no entry of a dict.
_in_use = SimpleNamespace()


def backend(name: str) -> Backend:
    """Return the backend called `name`, importing its framework.

    Parameters
    ----------
    name : str
        One of `available_backends()`.

    Raises
    ------
    InvalidArgumentError
        If there is no backend of that name.
    MissingDependencyError
        If its framework is not installed; the message says how to install it.

    Examples
    --------
    >>> backend("numpy").name
    'numpy'
    """
    if hasattr(_in_use, name):
        return getattr(_in_use, name)  # type: ignore[no-any-return]
    if name not in _BACKENDS:
        raise InvalidArgumentError(
            f"there is no backend {name!r} in this release; the backends are {', '.join(_BACKENDS)}."
        )
    kind, framework, hint = _BACKENDS[name]
    try:
        importlib.import_module(framework)
    except ImportError as error:
        raise MissingDependencyError(
            f"backend {name!r} needs {framework}, which cannot be imported ({error}). Try: {hint}"
        ) from error
    found: Backend = getattr(importlib.import_module(f"iresnet_core.backends.{name}"), kind)()
    return _in_use.__dict__.setdefault(name, found)  # type: ignore[no-any-return]


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends, installed or not, that `backend` knows."""
    return tuple(_BACKENDS)


def _load(kind: type) -> str | None:
    """Import the backend that a type of arrays belongs to, and return its name; None if no framework owns it.

    Only frameworks that the program has imported are asked.
    """
    for name, (_, framework, _) in _BACKENDS.items():
        if sys.modules.get(framework) is not None:
            try:
                found = backend(name)
            except MissingDependencyError:  # imported, but it cannot run here, and so has no arrays
                continue
            if found.owns(kind):
                return name
    return None


# torch.compile cannot follow an import. This mark, which is what `torch.compiler.assume_constant_result` sets, makes it
# call the function as it is where the first array of a process is met inside a compiled function.
_load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def get_backend(*arrays: Array) -> Backend:
    """Return the one backend that all `arrays` belong to.

    Raises
    ------
    UnknownArrayError
        If an argument is no array of a framework that has been imported (a list, say), or none is given.
    MixedBackendsError
        If two arrays belong to two backends; the message names both types.

    Examples
    --------
    >>> import numpy as np
    >>> get_backend(np.zeros(3)).name
    'numpy'
    """
    found: Backend | None = None
    first: Any = None
    for array in arrays:
        kind = type(array)
        backend = _backend_of_type.get(kind)
        if backend is None:
            name = _load(kind)
            if name is None:
                raise UnknownArrayError(
                    f"expected an array of {', '.join(one for one in _BACKENDS if _BACKENDS[one][1] in sys.modules)}, "
                    f"got {kind.__module__}.{kind.__qualname__}. "
                    "Convert it first, for example with numpy.asarray(..., dtype=numpy.float64)."
                )
            backend = _backend_of_type[kind] = getattr(_in_use, name)
        if found is None:
            found, first = backend, array
        elif backend is not found:
            raise MixedBackendsError(
                f"arrays of two frameworks in one call: {_type_name(first)} ({found.name}) and "
                f"{_type_name(array)} ({backend.name}). Convert one of them."
            )
    if found is None:
        raise UnknownArrayError("no array was given, so the backend is unknown.")
    return found


def _type_name(array: Array) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"
