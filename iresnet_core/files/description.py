"""The description of a model as a tree of plain data, and the model from its description.

Every part that can be stored has one row in each of the two tables below: what describes it, and what builds it.
Arrays are named by their place in the model, such as "layers.0.branch.layers.2.weight".
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches import Activation, Chain
from iresnet_core.errors import IResNetError, StorageError
from iresnet_core.files.storage_bfloat16 import is_bfloat16, to_bits
from iresnet_core.flows import ActNorm, FactorOut, Flow, InjectivePad, Logit, ResidualBlock, Squeeze
from iresnet_core.operators import Convolution, Dense

__all__ = ["TensorSource", "brief", "build", "describe", "some"]

Node = dict[str, Any]

# Layers within layers.
DEEPEST = 64


class TensorSource(Protocol):
    """Where `build` takes its arrays from; `source` names it in messages."""

    source: str

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """Return the array of this name after comparing it with its description."""


def describe(part: Any, path: str, tensors: dict[str, Any]) -> Node:
    """Return the description of one part; its arrays go to `tensors`, as NumPy's, under names that start with `path`.

    Raises
    ------
    StorageError
        If the part, or one inside it, is of no type that can be stored.
    """
    _refuse_depth(path, "the model")
    entry = _DESCRIBE.get(type(part))
    if entry is None:
        where = f"{path.rstrip('.')} is" if path else "the model is"
        name = getattr(part, "__qualname__", None)
        what = f"the function {name}" if name else f"a {type(part).__module__}.{type(part).__qualname__}"
        raise StorageError(
            f"{where} {what}, which a file cannot describe. What can be stored: "
            f"{', '.join(kind.__name__ for kind in _DESCRIBE)}; write a branch as a Chain."
        )
    return {"type": type(part).__name__, **entry(part, path, tensors)}


def _refuse_depth(path: str, source: str) -> None:
    """Refuse what is nested so deeply that a reader might run out of stack."""
    if path.count(".") > 2 * DEEPEST:
        raise StorageError(f"{source} is nested too deeply: a file holds at most {DEEPEST} layers within layers.")


def _describe_array(array: Any, path: str, tensors: dict[str, Any]) -> Node | None:
    if array is None:
        return None
    if is_bfloat16(array):
        host = tensors[path] = to_bits(array)
        return {"dtype": "bfloat16", "shape": list(host.shape)}
    host = tensors[path] = get_backend(array).to_numpy(array)
    return {"dtype": host.dtype.name, "shape": list(host.shape)}


def _describe_all(parts: Any, path: str, tensors: dict[str, Any]) -> list[Node]:
    return [describe(part, f"{path}layers.{index}.", tensors) for index, part in enumerate(parts)]


def _dense(part: Dense, path: str, tensors: dict[str, Any]) -> Node:
    return {
        "weight": _describe_array(part.weight, f"{path}weight", tensors),
        "bias": _describe_array(part.bias, f"{path}bias", tensors),
    }


def _convolution(part: Convolution, path: str, tensors: dict[str, Any]) -> Node:
    return {
        "weight": _describe_array(part.weight, f"{path}weight", tensors),
        "bias": _describe_array(part.bias, f"{path}bias", tensors),
        "input_shape": list(part.input_shape),
        "stride": list(part.stride),
        "padding": [list(pair) for pair in part.padding],
        "dilation": list(part.dilation),
        "groups": part.groups,
        "data_format": part.data_format,
        "padding_mode": part.padding_mode,
    }


def _residual_block(part: ResidualBlock, path: str, tensors: dict[str, Any]) -> Node:
    return {
        "declared_lipschitz": part.declared_lipschitz,
        "branch": describe(part.branch, f"{path}branch.", tensors),
    }


def _actnorm(part: ActNorm, path: str, tensors: dict[str, Any]) -> Node:
    return {
        "log_scale": _describe_array(part.log_scale, f"{path}log_scale", tensors),
        "bias": _describe_array(part.bias, f"{path}bias", tensors),
        "axis": part.axis,
    }


def _factor_out(part: FactorOut, path: str, tensors: dict[str, Any]) -> Node:
    return {
        "keep": part.keep,
        "axis": part.axis,
        "event_shape": None if part.flow is None else list(part.flow.event_shape),
        "layers": _describe_all(part.layers, path, tensors),
    }


def _flow(part: Flow, path: str, tensors: dict[str, Any]) -> Node:
    return {
        "event_shape": list(part.event_shape),
        "base": part.base,
        "layers": _describe_all(part.layers, path, tensors),
    }


_DESCRIBE: dict[type, Callable[[Any, str, dict[str, Any]], Node]] = {
    Flow: _flow,
    ResidualBlock: _residual_block,
    ActNorm: _actnorm,
    Squeeze: lambda part, path, tensors: {"factor": part.factor, "data_format": part.data_format},
    InjectivePad: lambda part, path, tensors: {"padding": part.padding, "axis": part.axis},
    Logit: lambda part, path, tensors: {"alpha": part.alpha},
    FactorOut: _factor_out,
    Chain: lambda part, path, tensors: {"layers": _describe_all(part.layers, path, tensors)},
    Dense: _dense,
    Convolution: _convolution,
    Activation: lambda part, path, tensors: {"name": part.name, "parameters": dict(part.parameters)},
}


class _Fields:
    """The fields of one node, each read once and with its type."""

    def __init__(self, node: Any, path: str, tensors: TensorSource) -> None:
        self.path, self.tensors = path, tensors
        if not isinstance(node, dict):
            raise self.wrong("the description", "an object", node)
        self.node = dict(node)

    def wrong(self, name: str, expected: str, seen: Any) -> StorageError:
        where = f"{self.path}{name}" if self.path else name
        return StorageError(f"{self.tensors.source}: {where} must be {expected}, got {brief(seen)}.")

    def take(self, name: str) -> Any:
        """Return a field as it is."""
        if name not in self.node:
            raise StorageError(f"{self.tensors.source}: the description lacks {self.path}{name}.")
        return self.node.pop(name)

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value

    def integer(self, name: str) -> int:
        value = self.take(name)
        if not _is_integer(value):
            raise self.wrong(name, "a whole number", value)
        return value

    def number(self, name: str) -> float:
        value = self.take(name)
        if not _is_number(value):
            raise self.wrong(name, "a number", value)
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        value = self.take(name)
        if value is not None and not _is_number(value):
            raise self.wrong(name, "a number or null", value)
        return None if value is None else float(value)

    def integers(self, name: str) -> tuple[int, ...]:
        value = self.take(name)
        if not isinstance(value, list) or not all(_is_integer(n) for n in value):
            raise self.wrong(name, "a list of whole numbers", value)
        return tuple(value)

    def integers_or_none(self, name: str) -> tuple[int, ...] | None:
        if name in self.node and self.node[name] is None:
            self.node.pop(name)
            return None
        return self.integers(name)

    def array(self, name: str) -> Any:
        """Return the tensor of this field, or None where the description says so."""
        value = self.take(name)
        if value is None:
            return None
        fields = _Fields(value, f"{self.path}{name}.", self.tensors)
        dtype, shape = fields.text("dtype"), fields.integers("shape")
        fields.end()
        return self.tensors.take(f"{self.path}{name}", dtype, shape)

    def parts(self, name: str) -> list[Any]:
        """Return the parts of a list, built."""
        value = self.take(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list", value)
        return [build(node, f"{self.path}{name}.{index}.", self.tensors) for index, node in enumerate(value)]

    def end(self) -> None:
        """Refuse fields that nobody asked for."""
        if self.node:
            where = self.path.rstrip(".") or "the model"
            raise StorageError(f"{self.tensors.source}: {where} has unknown fields: {some(set(self.node))}.")


def build(node: Any, path: str, tensors: TensorSource) -> Any:
    """Build one part from its description.

    Raises
    ------
    StorageError
        If a field is missing, surplus or of the wrong type, or the part refuses its arguments.
    """
    _refuse_depth(path, tensors.source)
    fields = _Fields(node, path, tensors)
    kind = fields.text("type")
    if kind not in _BUILD:
        raise StorageError(
            f"{tensors.source}: {path.rstrip('.') or 'the model'} has the unknown type {kind!r}; known are "
            f"{', '.join(_BUILD)}."
        )
    try:
        part = _BUILD[kind](fields)
    except StorageError:
        raise
    except IResNetError as error:
        raise StorageError(
            f"{tensors.source}: {path.rstrip('.') or 'the model'} is no valid {kind}: {error}"
        ) from error
    fields.end()
    return part


def _build_convolution(fields: _Fields) -> Convolution:
    padding = fields.take("padding")
    if not isinstance(padding, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_integer(n) for n in pair) for pair in padding
    ):
        raise fields.wrong("padding", "a list of pairs of whole numbers", padding)
    return Convolution(
        _required(fields, "weight"),
        fields.array("bias"),
        input_shape=fields.integers("input_shape"),
        stride=fields.integers("stride"),
        padding=[tuple(pair) for pair in padding],
        dilation=fields.integers("dilation"),
        groups=fields.integer("groups"),
        data_format=fields.text("data_format"),  # type: ignore[arg-type]  # checked by the constructor
        padding_mode=fields.text("padding_mode"),  # type: ignore[arg-type]
    )


def _build_activation(fields: _Fields) -> Activation:
    parameters = fields.take("parameters")
    if not isinstance(parameters, dict) or not all(_is_number(value) for value in parameters.values()):
        raise fields.wrong("parameters", "an object of numbers", parameters)
    if not set(parameters) <= {"alpha", "beta", "axis"}:  # keywords of the constructor, so not just any names
        raise fields.wrong("parameters", "alpha, beta or axis", parameters)
    return Activation(fields.text("name"), **parameters)


def _build_residual_block(fields: _Fields) -> ResidualBlock:
    branch = build(fields.take("branch"), f"{fields.path}branch.", fields.tensors)
    return ResidualBlock(branch, lipschitz=fields.number_or_none("declared_lipschitz"))


def _build_factor_out(fields: _Fields) -> FactorOut:
    keep, axis, layers = fields.integer("keep"), fields.integer("axis"), fields.parts("layers")
    shape = fields.integers_or_none("event_shape")
    return FactorOut(keep, layers if shape is None else Flow(layers, shape), axis=axis)


def _required(fields: _Fields, name: str) -> Any:
    array = fields.array(name)
    if array is None:
        raise fields.wrong(name, "a tensor", None)
    return array


_BUILD: dict[str, Callable[[_Fields], Any]] = {
    "Flow": lambda fields: Flow(
        fields.parts("layers"),
        fields.integers("event_shape"),
        base=fields.text("base"),  # type: ignore[arg-type]  # checked by the constructor
    ),
    "ResidualBlock": _build_residual_block,
    "ActNorm": lambda fields: ActNorm(fields.array("log_scale"), fields.array("bias"), axis=fields.integer("axis")),
    "Squeeze": lambda fields: Squeeze(fields.integer("factor"), fields.text("data_format")),  # type: ignore[arg-type]
    "InjectivePad": lambda fields: InjectivePad(fields.integer("padding"), axis=fields.integer("axis")),
    "Logit": lambda fields: Logit(fields.number("alpha")),
    "FactorOut": _build_factor_out,
    "Chain": lambda fields: Chain(fields.parts("layers")),
    "Dense": lambda fields: Dense(_required(fields, "weight"), fields.array("bias")),
    "Convolution": _build_convolution,
    "Activation": _build_activation,
}


def _is_integer(value: Any) -> TypeGuard[int]:
    """Whole numbers of 64 bits: JSON has larger ones, which no float holds and no shape needs."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else _is_integer(value)


def brief(value: Any) -> str:
    """Return the repr, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def some(names: set[str]) -> str:
    """Return a few of the names."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "none"
