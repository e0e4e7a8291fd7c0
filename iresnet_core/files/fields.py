"""Kinds of fields of a description: how plain data and arrays are written, and checked when they are read."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeGuard

from iresnet_core.backends import Array
from iresnet_core.errors import StorageError

__all__ = [
    "ARRAY",
    "BOOLEAN",
    "INTEGER",
    "INTEGERS",
    "LABELS",
    "LIST",
    "NUMBER",
    "NUMBERS",
    "PAIRS",
    "PLACES",
    "TEXT",
    "FieldKind",
    "Node",
    "TensorSink",
    "TensorSource",
    "brief",
    "field_of",
    "new",
    "or_none",
    "refuse_unknown",
    "some",
    "wrong_field",
]

Node = dict[str, Any]


class TensorSink(Protocol):
    """Where `describe` puts the arrays of a model."""

    def put(self, name: str, array: Array) -> tuple[str, tuple[int, ...]]:
        """Keep the array under this name; return the name of its dtype, and its shape."""


class TensorSource(Protocol):
    """Where `build` takes its arrays from; `source` names it in messages."""

    source: str

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """Return the array of this name after comparing it with its description."""


class FieldKind(NamedTuple):
    """How the values of a field become plain data and back.

    Attributes
    ----------
    write : callable (value, path, sink)
        Returns plain data, and puts the arrays of the value into the sink under names that start with `path`.
    read : callable (data, path, source)
        Returns the value; raises StorageError if the data are not of this kind.
    left_out : bool
        Whether a field of the value None is not written, as in files from before there was such a field.
    """

    write: Callable[[Any, str, TensorSink], Any]
    read: Callable[[Any, str, TensorSource], Any]
    left_out: bool = False


def refuse_unknown(node: Node, known: set[str], where: str, source: TensorSource) -> None:
    """Refuse a node with fields that nobody knows."""
    unknown = set(node) - known
    if unknown:
        raise StorageError(f"{source.source}: {where} has unknown fields: {some(unknown)}.")


def field_of(node: Node, name: str, path: str, source: TensorSource) -> Any:
    """Return one field of a node, which has to have it."""
    if name not in node:
        raise StorageError(f"{source.source}: the description lacks {path}{name}.")
    return node[name]


def wrong_field(place: str, expected: str, seen: Any, source: TensorSource) -> StorageError:
    """Return the error for a field of another kind."""
    return StorageError(f"{source.source}: {place} must be {expected}, got {brief(seen)}.")


def brief(value: Any) -> str:
    """Return the repr, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def some(names: set[str]) -> str:
    """Return a few of the names."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "none"


def _data(
    expected: str,
    accepts: Callable[[Any], bool],
    *,
    write: Callable[[Any], Any] = lambda value: value,
    read: Callable[[Any], Any] = lambda data: data,
) -> FieldKind:
    """Return a kind of plain data; `expected` describes it in messages, `write` and `read` convert what is accepted."""

    def read_checked(data: Any, path: str, source: TensorSource) -> Any:
        if not accepts(data):
            raise wrong_field(path, expected, data, source)
        return read(data)

    return FieldKind(lambda value, path, sink: write(value), read_checked)


def or_none(kind: FieldKind) -> FieldKind:
    """Return the kind of the same values and None."""
    return FieldKind(
        lambda value, path, sink: None if value is None else kind.write(value, path, sink),
        lambda data, path, source: None if data is None else kind.read(data, path, source),
    )


def new(kind: FieldKind) -> FieldKind:
    """Return the kind of a field that older files lack: one of the value None is left out."""
    return kind._replace(left_out=True)


def _is_integer(value: Any) -> TypeGuard[int]:
    """Whole numbers of 64 bits: JSON has larger ones, which no float holds and no shape needs."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else _is_integer(value)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


def _write_array(array: Array, path: str, sink: TensorSink) -> Node:
    dtype, shape = sink.put(path, array)
    return {"dtype": dtype, "shape": list(shape)}


def _read_array(data: Any, path: str, source: TensorSource) -> Array:
    if data is None:
        raise wrong_field(path, "a tensor", None, source)
    if not isinstance(data, dict):
        raise wrong_field(path, "an object", data, source)
    refuse_unknown(data, {"dtype", "shape"}, path, source)
    dtype, shape = (
        kind.read(field_of(data, name, f"{path}.", source), f"{path}.{name}", source)
        for name, kind in (("dtype", TEXT), ("shape", INTEGERS))
    )
    return source.take(path, dtype, shape)


TEXT = _data("a string", lambda value: isinstance(value, str))
INTEGER = _data("a whole number", _is_integer)
BOOLEAN = _data("true or false", lambda value: isinstance(value, bool))
NUMBER = _data("a number", _is_number, read=float)
INTEGERS = _data("a list of whole numbers", _are_integers, write=list, read=tuple)
PAIRS = _data(
    "a list of pairs of whole numbers",
    lambda value: isinstance(value, list) and all(_are_integers(pair) and len(pair) == 2 for pair in value),
    write=lambda pairs: [list(pair) for pair in pairs],
    read=lambda pairs: [tuple(pair) for pair in pairs],
)
PLACES = _data(
    "a list of lists of whole numbers",
    lambda value: isinstance(value, list) and all(map(_are_integers, value)),
    write=lambda places: [list(own) for own in places],
)
NUMBERS = _data(
    "an object of numbers", lambda value: isinstance(value, dict) and all(map(_is_number, value.values())), write=dict
)
LIST = _data(
    "a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value)), write=list, read=tuple
)
LABELS = _data(
    "a list of lists of numbers, or of null",
    lambda value: (
        isinstance(value, list)
        and all(own is None or (isinstance(own, list) and all(map(_is_number, own))) for own in value)
    ),
    write=lambda labels: [None if own is None else list(own) for own in labels],
)
ARRAY = FieldKind(_write_array, _read_array)
