"""A property that is computed once and kept."""

from collections.abc import Callable
from typing import Any

__all__ = ["kept_property"]


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
