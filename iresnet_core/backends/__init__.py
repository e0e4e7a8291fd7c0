"""One file per engine, and the dispatch that finds the engine of an array.

An engine is looked up by the type of the array, through a cached dictionary; only frameworks that the program has
already imported are asked whether a new type is theirs. There is no global state to set and no environment switch.
"""

import importlib
import sys
from typing import Any

from iresnet_core.backends.base import Array, Backend, device_of
from iresnet_core.errors import InvalidArgumentError, MissingDependencyError, MixedBackendsError, UnknownArrayError

__all__ = ["Array", "Backend", "available_backends", "backend", "device_of", "get_backend"]

# engine -> (the framework's module, how to install it). The engine `name` is the class `Engine` of
# iresnet_core.backends.<name>; one more engine is one more file and one more row.
_ENGINES: dict[str, tuple[str, str]] = {
    "numpy": ("numpy", "pip install numpy"),
    "torch": ("torch", "pip install 'iresnet-core[torch]'"),
    "tensorflow": ("tensorflow", "pip install 'iresnet-core[tensorflow]'"),
    "jax": ("jax", "pip install 'iresnet-core[jax]'"),
    "cupy": ("cupy", "pip install 'iresnet-core[cupy]'"),
    "array_api_strict": ("array_api_strict", "pip install array-api-strict"),
}

_engine_of_type: dict[type, Backend] = {}
_engine_of_name: dict[str, Backend] = {}  # no functools.cache, which torch.compile warns of


def backend(name: str) -> Backend:
    """Return the engine called `name`, importing its framework.

    Parameters
    ----------
    name : str
        One of `available_backends()`.

    Raises
    ------
    InvalidArgumentError
        If there is no engine of that name.
    MissingDependencyError
        If its framework is not installed; the message says how to install it.

    Examples
    --------
    >>> backend("numpy").name
    'numpy'
    """
    if name in _engine_of_name:
        return _engine_of_name[name]
    if name not in _ENGINES:
        raise InvalidArgumentError(
            f"there is no backend {name!r} in this release; the backends are {', '.join(_ENGINES)}."
        )
    framework, hint = _ENGINES[name]
    try:
        importlib.import_module(framework)
    except ImportError as error:
        raise MissingDependencyError(
            f"backend {name!r} needs {framework}, which cannot be imported ({error}). Try: {hint}"
        ) from error
    engine: Backend = importlib.import_module(f"iresnet_core.backends.{name}").Engine()
    return _engine_of_name.setdefault(name, engine)


def available_backends() -> tuple[str, ...]:
    """Return the names of the engines, installed or not, that `backend` knows."""
    return tuple(_ENGINES)


def _load(kind: type) -> str | None:
    """Import the engine of a type of arrays, and return its name."""
    for name, (framework, _) in _ENGINES.items():
        if sys.modules.get(framework) is not None:
            try:
                engine = backend(name)
            except MissingDependencyError:  # imported, but it cannot run here, and so has no arrays
                continue
            if engine.owns(kind):
                setattr(_loaded, name, engine)
                return name
    return None


# torch.compile cannot follow an import. This mark, which is what `torch.compiler.assume_constant_result` sets, makes it
# call the function as it is where the first array of a process is met inside a compiled function. It takes attributes,
# unlike entries of a dictionary, as they are after that.
_load._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Loaded:
    """The engines that arrays have been found to belong to, by name."""


_loaded = _Loaded()


def get_backend(*arrays: Array) -> Backend:
    """Return the one engine that all `arrays` belong to.

    Raises
    ------
    UnknownArrayError
        If an argument is no array of a framework that has been imported (a list, say), or none is given.
    MixedBackendsError
        If two arrays belong to two engines; the message names both types.

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
        engine = _engine_of_type.get(kind)
        if engine is None:
            name = _load(kind)
            if name is None:
                raise UnknownArrayError(
                    f"expected an array of {', '.join(one for one in _ENGINES if _ENGINES[one][0] in sys.modules)}, "
                    f"got {kind.__module__}.{kind.__qualname__}. "
                    "Convert it first, for example with numpy.asarray(..., dtype=numpy.float64)."
                )
            engine = _engine_of_type[kind] = getattr(_loaded, name)
        if found is None:
            found, first = engine, array
        elif engine is not found:
            raise MixedBackendsError(
                f"arrays of two frameworks in one call: {_type_name(first)} ({found.name}) and "
                f"{_type_name(array)} ({engine.name}). Convert one of them."
            )
    if found is None:
        raise UnknownArrayError("no array was given, so the backend is unknown.")
    return found


def _type_name(array: Array) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"
