"""The description of a model as a tree of plain data, and the model from its description.

A part that can be stored has one row in the table `STORABLE`: its class and its fields. Arrays are named by their place
in the model, such as "layers.0.branch.layers.2.weight".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
from iresnet_core.files.fields import (
    ARRAY,
    BOOLEAN,
    INTEGER,
    INTEGERS,
    LABELS,
    LIST,
    NUMBER,
    NUMBERS,
    PAIRS,
    PLACES,
    TEXT,
    FieldKind,
    Node,
    TensorSink,
    TensorSource,
    brief,
    field_of,
    new,
    or_none,
    refuse_unknown,
    some,
    wrong_field,
)
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

DEEPEST = 64  # layers within layers


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
        raise wrong_field(f"{path}the description", "an object", node, source)
    kind = TEXT.read(field_of(node, "type", path, source), f"{path}type", source)
    if kind not in _ROW_OF_NAME:
        raise StorageError(
            f"{source.source}: {where} has the unknown type {kind!r}; known are {', '.join(_ROW_OF_NAME)}."
        )
    row = _ROW_OF_NAME[kind]
    values = {
        name: None
        if field.left_out and name not in node
        else field.read(field_of(node, name, path, source), f"{path}{name}", source)
        for name, field in row.fields.items()
    }
    refuse_unknown(node, {"type", *row.fields}, where, source)
    try:
        return row.built(values)
    except IResNetError as error:
        raise StorageError(f"{source.source}: {where} is no valid {kind}: {error}") from error


def _refuse_depth(path: str, source: str) -> None:
    """Refuse what is nested so deeply that a reader might run out of stack."""
    if path.count(".") > 2 * DEEPEST:
        raise StorageError(f"{source} is nested too deeply: a file holds at most {DEEPEST} layers within layers.")


# --- parts as fields ---


def _write_parts(parts: Any, path: str, sink: TensorSink) -> list[Node]:
    return [describe(part, f"{path}.{index}.", sink) for index, part in enumerate(parts)]


def _read_parts(data: Any, path: str, source: TensorSource) -> list[Any]:
    if not isinstance(data, list):
        raise wrong_field(path, "a list", data, source)
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


_PART = FieldKind(
    lambda part, path, sink: describe(part, f"{path}.", sink),
    lambda data, path, source: build(data, f"{path}.", source),
)
_PARTS = FieldKind(_write_parts, _read_parts)
# The name of a density without parameters, or its description.
_BASE = FieldKind(
    _write_base,
    lambda data, path, source: (_PART if isinstance(data, dict) else TEXT).read(data, path, source),
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
    "stride": INTEGERS,
    "padding": PAIRS,
    "dilation": INTEGERS,
    "groups": INTEGER,
    "data_format": TEXT,
    "padding_mode": TEXT,
}
STORABLE = (
    Storable(
        Flow,
        {"event_shape": INTEGERS, "base": _BASE, "layers": _PARTS, "condition": new(_PART)},
        build=lambda **fields: require_modest_flow(Flow(**fields)),
    ),
    Storable(
        ResidualBlock,
        {"declared_lipschitz": or_none(NUMBER), "branch": _PART, "condition": new(_PART)},
        build=lambda declared_lipschitz, branch, condition: ResidualBlock(
            branch, lipschitz=declared_lipschitz, condition=condition
        ),
    ),
    Storable(
        ActNorm,
        {
            "log_scale": or_none(ARRAY),
            "bias": or_none(ARRAY),
            "axis": INTEGER,
            "condition": new(_PART),
            "spread": new(NUMBER),
        },
        build=lambda spread, **fields: ActNorm(**fields, spread=1.0 if spread is None else spread),
        values=lambda part: {
            **{name: getattr(part, name) for name in ("log_scale", "bias", "axis", "condition")},
            "spread": None if part.spread == 1 else part.spread,
        },
    ),
    Storable(
        Squeeze,
        {"factor": INTEGER, "data_format": TEXT, "basis": new(TEXT)},
        build=lambda basis, **fields: Squeeze(**fields, basis="pixels" if basis is None else basis),
        values=lambda part: {
            **{name: getattr(part, name) for name in ("factor", "data_format")},
            "basis": None if part.basis == "pixels" else part.basis,
        },
    ),
    Storable(InjectivePad, {"padding": INTEGER, "axis": INTEGER}),
    Storable(Logit, {"alpha": NUMBER}),
    Storable(Standardize, {"mean": LIST, "std": LIST, "axis": INTEGER}),
    Storable(Wrap, {"low": NUMBER, "period": NUMBER, "entries": or_none(INTEGERS)}),
    Storable(Pointwise, {"layer": _PART}),
    Storable(
        FactorOut,
        {"keep": INTEGER, "axis": INTEGER, "event_shape": or_none(INTEGERS), "layers": _PARTS},
        build=_built_factor_out,
        values=_values_of_factor_out,
    ),
    Storable(
        Inverted,
        {
            "layer": _PART,
            "solver": TEXT,
            "rtol": or_none(NUMBER),
            "atol": or_none(NUMBER),
            "max_iter": or_none(INTEGER),
        },
    ),
    Storable(DiagonalNormal, {"mean": ARRAY, "scale": ARRAY}),
    Storable(FullNormal, {"mean": ARRAY, "cholesky": ARRAY}),
    Storable(NormalMixture, {"log_weights": ARRAY, "mean": ARRAY, "scale": ARRAY}),
    Storable(StudentT, {"df": NUMBER, "mean": ARRAY, "scale": ARRAY}),
    Storable(VonMises, {"mean": ARRAY, "concentration": ARRAY}),
    Storable(ProductBase, {"parts": _PARTS, "entries": PLACES}),
    Storable(Uniform, {"low": LIST, "high": LIST, "periodic": BOOLEAN}),
    Storable(Chain, {"layers": _PARTS, "reference": new(or_none(ARRAY))}),
    Storable(Dense, {"weight": ARRAY, "bias": or_none(ARRAY)}),
    Storable(
        Convolution,
        {"weight": ARRAY, "bias": or_none(ARRAY), "input_shape": INTEGERS, **_GEOMETRY},
        build=lambda weight, **options: require_modest_convolution(Convolution(weight, **options)),
    ),
    Storable(
        ConvolutionTranspose,
        {"weight": ARRAY, "bias": or_none(ARRAY), "output_shape": INTEGERS, **_GEOMETRY},
        build=_built_transpose,
    ),
    Storable(Fixed, {"linear": _PART}),
    Storable(Reshape, {"input_shape": INTEGERS, "output_shape": INTEGERS}, build=_built_reshape),
    Storable(FourierFeatures, {"frequencies": ARRAY, "passed": INTEGERS}),
    Storable(PReLU, {"slope": ARRAY, "axis": INTEGER}),
    Storable(ScaledActivation, {"activation": _PART, "log_scale": ARRAY, "axis": INTEGER}),
    Storable(DenseConcatenation, {"branch": _PART, "angle": ARRAY, "axis": INTEGER}),
    Storable(Activation, {"name": TEXT, "parameters": NUMBERS}, build=_built_activation),
    Storable(
        Condition,
        {"net": or_none(_PART), "labels": or_none(LABELS), "mean": or_none(LIST), "std": or_none(LIST)},
    ),
)
_ROW_OF_TYPE = {row.kind: row for row in STORABLE}
_ROW_OF_NAME = {row.kind.__name__: row for row in STORABLE}
