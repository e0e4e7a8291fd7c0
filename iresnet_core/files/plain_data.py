"""Parts of a model as plain data, arrays included, for the configurations of frameworks."""

from typing import Any

import numpy as np

from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import StorageError
from iresnet_core.files.description import build, describe

__all__ = ["as_plain_data", "from_plain_data"]


class _Lists:
    """Arrays as nested lists of numbers, by name; both a sink and a source of `description`."""

    source = "the configuration"

    def __init__(self, lists: dict[str, Any]) -> None:
        self.lists = lists

    def put(self, name: str, array: Array) -> tuple[str, tuple[int, ...]]:
        host = get_backend(array).to_numpy(array)
        self.lists[name] = host.tolist()
        return str(host.dtype), host.shape

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        try:
            return np.asarray(self.lists[name], dtype=dtype).reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{self.source} has no array {name} of {dtype} and shape {shape}: {error}") from error


def as_plain_data(part: Any) -> dict[str, Any]:
    """Return a small part, such as a density, as data that JSON holds without loss; StorageError if it has no row."""
    lists = _Lists({})
    return {"description": describe(part, "", lists), "arrays": lists.lists}


def from_plain_data(data: dict[str, Any]) -> Any:
    """Return the part, with arrays of NumPy's."""
    return build(data["description"], "", _Lists(data["arrays"]))
