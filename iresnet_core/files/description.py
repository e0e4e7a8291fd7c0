"""The description of a model as a tree of plain data, and the model from its description.

A part that can be stored has one row in the table `STORABLE`: its class and its fields. Arrays are named by their place
in the model, such as "layers.0.branch.layers.2.weight".
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeGuard

from iresnet_core.backends import Array
from iresnet_core.branches import (
    ACTIVATIONS,
    Activation,
    Chain,
    DenseConcatenation,
    Fixed,
    FourierFeatures,
    PReLU,
    Reshape,
    ScaledActivation,
    StatedLayer,
)
from iresnet_core.errors import InvalidArgumentError, IResNetError, StorageError
from iresnet_core.files.limits import require_modest_convolution, require_modest_flow, require_modest_shape
from iresnet_core.flows import (
    ActNorm,
    Base,
    Condition,
    DiagonalNormal,
    FactorOut,
    Flow,
    FullNormal,
    InjectivePad,
    Inverted,
    Logit,
    NormalMixture,
    Pointwise,
    ProductBase,
    ResidualBlock,
    Squeeze,
    Standardize,
    StudentT,
    Uniform,
    VonMises,
    Wrap,
)
from iresnet_core.operators import Convolution, ConvolutionTranspose, Dense

__all__ = ["STORABLE", "Storable", "TensorSink", "TensorSource", "brief", "build", "describe", "some"]

Node = dict[str, Any]

DEEPEST = 64  # layers within layers


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


@dataclass(frozen=True)
class Storable:
    """A class whose objects can be stored: a row of the table `STORABLE`.

    Attributes
    ----------
    kind : type
        The class; its name is the "type" in the description.
    fields : mapping of str to FieldKind
        Names and kinds of the fields in the description of an object.
    build : callable, optional
        Makes an object from its fields, given by keyword; default the class itself.
    values : callable, optional
        Returns the fields of an object as a mapping; default its attributes of the same names.
    """

    kind: type
    fields: Mapping[str, FieldKind]
    build: Callable[..., Any] | None = None
    values: Callable[[Any], Mapping[str, Any]] | None = None

    def values_of(self, part: Any) -> Mapping[str, Any]:
        """Return the fields of an object."""
        return {name: getattr(part, name) for name in self.fields} if self.values is None else self.values(part)

    def built(self, values: Mapping[str, Any]) -> Any:
        """Return the object with these fields."""
        return (self.kind if self.build is None else self.build)(**values)


def describe(part: Any, path: str, sink: TensorSink) -> Node:
    """Return the description of one part; its arrays go to the sink, under names that start with `path`.

    Raises
    ------
    StorageError
        If the part, or one inside it, is of no type that can be stored.
    """
    _refuse_depth(path, "the model")
    part = part.layer if isinstance(part, StatedLayer) else part
    row = _ROW_OF_TYPE.get(type(part))
    if row is None:
        where = f"{path.rstrip('.')} is" if path else "the model is"
        name = getattr(part, "__qualname__", None)
        what = f"the function {name}" if name else f"a {type(part).__module__}.{type(part).__qualname__}"
        raise StorageError(
            f"{where} {what}, which a file cannot describe. What can be stored: "
            f"{', '.join(_ROW_OF_NAME)}; write a branch as a Chain."
        )
    values = row.values_of(part)
    written = {name: kind for name, kind in row.fields.items() if values[name] is not None or not kind.left_out}
    fields = {name: kind.write(values[name], f"{path}{name}", sink) for name, kind in written.items()}
    return {"type": row.kind.__name__, **fields}


def build(node: Any, path: str, source: TensorSource) -> Any:
    """Build one part from its description.

    Raises
    ------
    StorageError
        If a field is missing, surplus or of the wrong type, or the part refuses its arguments.
    """
    _refuse_depth(path, source.source)
    where = path.rstrip(".") or "the model"
    if not isinstance(node, dict):
        raise _wrong(f"{path}the description", "an object", node, source)
    kind = _TEXT.read(_field(node, "type", path, source), f"{path}type", source)
    if kind not in _ROW_OF_NAME:
        raise StorageError(
            f"{source.source}: {where} has the unknown type {kind!r}; known are {', '.join(_ROW_OF_NAME)}."
        )
    row = _ROW_OF_NAME[kind]
    values = {
        name: None
        if field.left_out and name not in node
        else field.read(_field(node, name, path, source), f"{path}{name}", source)
        for name, field in row.fields.items()
    }
    _refuse_unknown(node, {"type", *row.fields}, where, source)
    try:
        return row.built(values)
    except IResNetError as error:
        raise StorageError(f"{source.source}: {where} is no valid {kind}: {error}") from error


def _refuse_depth(path: str, source: str) -> None:
    """Refuse what is nested so deeply that a reader might run out of stack."""
    if path.count(".") > 2 * DEEPEST:
        raise StorageError(f"{source} is nested too deeply: a file holds at most {DEEPEST} layers within layers.")


def _refuse_unknown(node: Node, known: set[str], where: str, source: TensorSource) -> None:
    unknown = set(node) - known
    if unknown:
        raise StorageError(f"{source.source}: {where} has unknown fields: {some(unknown)}.")


def _field(node: Node, name: str, path: str, source: TensorSource) -> Any:
    if name not in node:
        raise StorageError(f"{source.source}: the description lacks {path}{name}.")
    return node[name]


def _wrong(place: str, expected: str, seen: Any, source: TensorSource) -> StorageError:
    return StorageError(f"{source.source}: {place} must be {expected}, got {brief(seen)}.")


def brief(value: Any) -> str:
    """Return the repr, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def some(names: set[str]) -> str:
    """Return a few of the names."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "none"


# --- kinds of fields ---


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
            raise _wrong(path, expected, data, source)
        return read(data)

    return FieldKind(lambda value, path, sink: write(value), read_checked)


def _or_none(kind: FieldKind) -> FieldKind:
    """Return the kind of the same values and None."""
    return FieldKind(
        lambda value, path, sink: None if value is None else kind.write(value, path, sink),
        lambda data, path, source: None if data is None else kind.read(data, path, source),
    )


def _new(kind: FieldKind) -> FieldKind:
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
        raise _wrong(path, "a tensor", None, source)
    if not isinstance(data, dict):
        raise _wrong(path, "an object", data, source)
    _refuse_unknown(data, {"dtype", "shape"}, path, source)
    dtype, shape = (
        kind.read(_field(data, name, f"{path}.", source), f"{path}.{name}", source)
        for name, kind in (("dtype", _TEXT), ("shape", _INTEGERS))
    )
    return source.take(path, dtype, shape)


def _write_parts(parts: Any, path: str, sink: TensorSink) -> list[Node]:
    return [describe(part, f"{path}.{index}.", sink) for index, part in enumerate(parts)]


def _read_parts(data: Any, path: str, source: TensorSource) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(path, "a list", data, source)
    return [build(node, f"{path}.{index}.", source) for index, node in enumerate(data)]


def _write_base(base: Any, path: str, sink: TensorSink) -> Any:
    if isinstance(base, str):
        return base
    if type(base) not in _ROW_OF_TYPE:
        kinds = ", ".join(row.kind.__name__ for row in STORABLE if issubclass(row.kind, Base))
        raise StorageError(
            f"the base {base!r} is an object of your own, which a file cannot describe. Densities that can be stored: "
            f"{kinds}. To save the map alone, give its layers to a Flow without base."
        )
    return describe(base, f"{path}.", sink)


_TEXT = _data("a string", lambda value: isinstance(value, str))
_INTEGER = _data("a whole number", _is_integer)
_BOOLEAN = _data("true or false", lambda value: isinstance(value, bool))
_NUMBER = _data("a number", _is_number, read=float)
_INTEGERS = _data("a list of whole numbers", _are_integers, write=list, read=tuple)
_PAIRS = _data(
    "a list of pairs of whole numbers",
    lambda value: isinstance(value, list) and all(_are_integers(pair) and len(pair) == 2 for pair in value),
    write=lambda pairs: [list(pair) for pair in pairs],
    read=lambda pairs: [tuple(pair) for pair in pairs],
)
_PLACES = _data(
    "a list of lists of whole numbers",
    lambda value: isinstance(value, list) and all(map(_are_integers, value)),
    write=lambda places: [list(own) for own in places],
)
_NUMBERS = _data(
    "an object of numbers", lambda value: isinstance(value, dict) and all(map(_is_number, value.values())), write=dict
)
_LIST = _data(
    "a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value)), write=list, read=tuple
)
_LABELS = _data(
    "a list of lists of numbers, or of null",
    lambda value: (
        isinstance(value, list)
        and all(own is None or (isinstance(own, list) and all(map(_is_number, own))) for own in value)
    ),
    write=lambda labels: [None if own is None else list(own) for own in labels],
)
_ARRAY = FieldKind(_write_array, _read_array)
_PART = FieldKind(
    lambda part, path, sink: describe(part, f"{path}.", sink),
    lambda data, path, source: build(data, f"{path}.", source),
)
_PARTS = FieldKind(_write_parts, _read_parts)
# The name of a density without parameters, or its description.
_BASE = FieldKind(
    _write_base,
    lambda data, path, source: (_PART if isinstance(data, dict) else _TEXT).read(data, path, source),
)


# --- the table ---


def _values_of_factor_out(part: FactorOut) -> Node:
    shape = None if part.flow is None else part.flow.event_shape
    return {"keep": part.keep, "axis": part.axis, "event_shape": shape, "layers": part.layers}


def _built_factor_out(keep: int, axis: int, event_shape: tuple[int, ...] | None, layers: list[Any]) -> FactorOut:
    inner = layers if event_shape is None else require_modest_flow(Flow(layers, event_shape))
    return FactorOut(keep, inner, axis=axis)


def _built_activation(name: str, parameters: dict[str, Any]) -> Activation:
    known = {key for function in ACTIVATIONS.values() for key in function.defaults}
    unknown = set(parameters) - known  # they become keywords of the constructor, which are not just any names
    if unknown:
        raise InvalidArgumentError(f"the parameters are {some(known)}, got {some(unknown)}.")
    return Activation(name, **parameters)


def _built_transpose(weight: Array, bias: Array | None, output_shape: tuple[int, ...], **options: Any) -> Any:
    convolution = Convolution(weight, input_shape=output_shape, **options)
    require_modest_convolution(convolution)
    return ConvolutionTranspose(weight, bias, output_shape=output_shape, **options)


def _built_reshape(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Reshape:
    require_modest_shape(input_shape, "a sample")
    return Reshape(input_shape, output_shape)


_GEOMETRY = {
    "stride": _INTEGERS,
    "padding": _PAIRS,
    "dilation": _INTEGERS,
    "groups": _INTEGER,
    "data_format": _TEXT,
    "padding_mode": _TEXT,
}
STORABLE = (
    Storable(
        Flow,
        {"event_shape": _INTEGERS, "base": _BASE, "layers": _PARTS, "condition": _new(_PART)},
        build=lambda **fields: require_modest_flow(Flow(**fields)),
    ),
    Storable(
        ResidualBlock,
        {"declared_lipschitz": _or_none(_NUMBER), "branch": _PART, "condition": _new(_PART)},
        build=lambda declared_lipschitz, branch, condition: ResidualBlock(
            branch, lipschitz=declared_lipschitz, condition=condition
        ),
    ),
    Storable(
        ActNorm,
        {"log_scale": _or_none(_ARRAY), "bias": _or_none(_ARRAY), "axis": _INTEGER, "condition": _new(_PART)},
    ),
    Storable(Squeeze, {"factor": _INTEGER, "data_format": _TEXT}),
    Storable(InjectivePad, {"padding": _INTEGER, "axis": _INTEGER}),
    Storable(Logit, {"alpha": _NUMBER}),
    Storable(Standardize, {"mean": _LIST, "std": _LIST, "axis": _INTEGER}),
    Storable(Wrap, {"low": _NUMBER, "period": _NUMBER, "entries": _or_none(_INTEGERS)}),
    Storable(Pointwise, {"layer": _PART}),
    Storable(
        FactorOut,
        {"keep": _INTEGER, "axis": _INTEGER, "event_shape": _or_none(_INTEGERS), "layers": _PARTS},
        build=_built_factor_out,
        values=_values_of_factor_out,
    ),
    Storable(
        Inverted,
        {
            "layer": _PART,
            "solver": _TEXT,
            "rtol": _or_none(_NUMBER),
            "atol": _or_none(_NUMBER),
            "max_iter": _or_none(_INTEGER),
        },
    ),
    Storable(DiagonalNormal, {"mean": _ARRAY, "scale": _ARRAY}),
    Storable(FullNormal, {"mean": _ARRAY, "cholesky": _ARRAY}),
    Storable(NormalMixture, {"log_weights": _ARRAY, "mean": _ARRAY, "scale": _ARRAY}),
    Storable(StudentT, {"df": _NUMBER, "mean": _ARRAY, "scale": _ARRAY}),
    Storable(VonMises, {"mean": _ARRAY, "concentration": _ARRAY}),
    Storable(ProductBase, {"parts": _PARTS, "entries": _PLACES}),
    Storable(Uniform, {"low": _LIST, "high": _LIST, "periodic": _BOOLEAN}),
    Storable(Chain, {"layers": _PARTS}),
    Storable(Dense, {"weight": _ARRAY, "bias": _or_none(_ARRAY)}),
    Storable(
        Convolution,
        {"weight": _ARRAY, "bias": _or_none(_ARRAY), "input_shape": _INTEGERS, **_GEOMETRY},
        build=lambda weight, **options: require_modest_convolution(Convolution(weight, **options)),
    ),
    Storable(
        ConvolutionTranspose,
        {"weight": _ARRAY, "bias": _or_none(_ARRAY), "output_shape": _INTEGERS, **_GEOMETRY},
        build=_built_transpose,
    ),
    Storable(Fixed, {"linear": _PART}),
    Storable(Reshape, {"input_shape": _INTEGERS, "output_shape": _INTEGERS}, build=_built_reshape),
    Storable(FourierFeatures, {"frequencies": _ARRAY, "passed": _INTEGERS}),
    Storable(PReLU, {"slope": _ARRAY, "axis": _INTEGER}),
    Storable(ScaledActivation, {"activation": _PART, "log_scale": _ARRAY, "axis": _INTEGER}),
    Storable(DenseConcatenation, {"branch": _PART, "angle": _ARRAY, "axis": _INTEGER}),
    Storable(Activation, {"name": _TEXT, "parameters": _NUMBERS}, build=_built_activation),
    Storable(
        Condition,
        {"net": _or_none(_PART), "labels": _or_none(_LABELS), "mean": _or_none(_LIST), "std": _or_none(_LIST)},
    ),
)
_ROW_OF_TYPE = {row.kind: row for row in STORABLE}
_ROW_OF_NAME = {row.kind.__name__: row for row in STORABLE}
