"""Objects that never change: deep copies of those that hold arrays, and properties that are computed once.

`copy.deepcopy` alone is not enough: PyTorch refuses it for results of recorded computations, such as normalised
weights, and NumPy gives a copy that everybody may write to. A copy holds arrays of its own; where they were computed
from parameters that require a gradient, they still belong to those.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Self

from iresnet_core.backends import get_backend
from iresnet_core.errors import UnknownArrayError

__all__ = ["Copyable", "kept_property"]


class Copyable:
    """Base class that copies the arrays among the attributes as their backend does."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything. A pickle, by contrast, forgets what its arrays were computed from."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in self.__dict__.items():
            _copy_arrays(value, memo)
            copied.__dict__[name] = deepcopy(value, memo)
        return copied


def _copy_arrays(value: Any, memo: dict[int, Any]) -> None:
    """Note the copies of an array, or of all arrays in a tuple, list or dictionary, for `deepcopy` to take."""
    if id(value) in memo:
        return
    if isinstance(value, tuple | list):
        for entry in value:
            _copy_arrays(entry, memo)
    elif isinstance(value, dict):
        for entry in value.values():
            _copy_arrays(entry, memo)
    elif hasattr(value, "shape"):
        try:
            memo[id(value)] = get_backend(value).copied(value, memo)
        except UnknownArrayError:
            return


class kept_property:  # noqa: N801  # named like the built-in property
    """Like `functools.cached_property`, without a lock: compilers that trace Python cannot follow one."""

    def __init__(self, fn: Callable[[Any], Any]) -> None:
        self.fn, self.name, self.__doc__ = fn, fn.__name__, fn.__doc__

    def __get__(self, owner: Any, kind: type) -> Any:
        if owner is None:
            return self
        value = self.fn(owner)
        setattr(owner, self.name, value)
        return value
