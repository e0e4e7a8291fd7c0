"""The layers, shapes, parameters and certified constants of a model, as rows of a table."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from iresnet_core.branches import Chain
from iresnet_core.flows import FactorOut, Flow, Inverted, Layer, Pointwise, ResidualBlock, Shape
from iresnet_core.operators import Convolution, LinearLayer

__all__ = ["SummaryRow", "largest_constant", "repeated", "summary_rows"]

_LONGEST_GROUP = 4  # rows that are looked for again together


@dataclass(frozen=True)
class SummaryRow:
    """One layer, or one linear layer of a residual branch.

    Attributes
    ----------
    depth : int
        0 for the layers of the model, more for what is inside one.
    name : str
        Type and settings.
    input_shape, output_shape : tuple of int
        Shapes of one sample.
    parameters : int
        Numbers that the layer holds, those inside it included.
    lipschitz : float or None
        Certified constant of the branch of a residual block, or of a linear layer in one; None for other layers.
    certificate : str
        "exact", "certified" or "stated"; "" where there is no constant.
    in_branch : bool
        Whether it is a part of a residual branch.
    """

    depth: int
    name: str
    input_shape: Shape
    output_shape: Shape
    parameters: int
    lipschitz: float | None
    certificate: str
    in_branch: bool = False


def summary_rows(model: Any) -> list[SummaryRow]:
    """Return the rows of a model that `iresnet_core.load` returned.

    Parameters
    ----------
    model : Flow or Chain
        Other layers know their shapes only inside a flow.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Dense
    >>> row = summary_rows(Chain([Dense(np.eye(2) / 2)]))[0]
    >>> row.name, row.parameters, round(row.lipschitz, 6)
    ('Dense', 4, 0.5)
    """
    return list(_of_flow(model, 0) if isinstance(model, Flow) else _of_chain(model, 0))


def largest_constant(rows: list[SummaryRow]) -> float | None:
    """Return the largest constant of a residual block, None without one."""
    return max(
        (row.lipschitz for row in rows if row.name == "ResidualBlock" and row.lipschitz is not None), default=None
    )


def repeated(rows: list[SummaryRow]) -> list[tuple[int, list[SummaryRow]]]:
    """Return the rows without those of branches, in groups that follow on each other so many times.

    Rows that differ in their constants only are alike, and stand with the largest of them.
    """
    left = [row for row in rows if not row.in_branch]
    found: list[tuple[int, list[SummaryRow]]] = []
    while left:
        times = {size: _times(left, size) for size in range(1, _LONGEST_GROUP + 1)}
        size = max(times, key=lambda size: (size * times[size] if times[size] > 1 else 1, -size))
        group = [_largest(left[place : size * times[size] : size]) for place in range(size)]
        found.append((times[size], group))
        left = left[size * times[size] :]
    return found


def _times(rows: list[SummaryRow], size: int) -> int:
    """How often the first rows, so many of them, follow on each other."""
    kinds = [replace(row, lipschitz=None) for row in rows]
    times = 1
    while kinds[times * size : (times + 1) * size] == kinds[:size] and len(kinds) >= (times + 1) * size:
        times += 1
    return times


def _largest(rows: list[SummaryRow]) -> SummaryRow:
    constants = [row.lipschitz for row in rows if row.lipschitz is not None]
    return replace(rows[0], lipschitz=max(constants, default=None))


def _of_flow(flow: Flow, depth: int) -> Iterator[SummaryRow]:
    shape = flow.event_shape
    for layer in flow.layers:
        after = layer.output_shape(shape)
        yield from _of_layer(layer, shape, after, depth)
        shape = after
    condition = flow.condition
    if condition is not None:
        yield SummaryRow(
            depth, "map of the condition", (condition.features,), (condition.width,), _count(condition), None, ""
        )
    if not isinstance(flow.base, str):
        yield SummaryRow(depth, f"base {type(flow.base).__name__}", shape, shape, _count(flow.base), None, "")


def _count(part: Any) -> int:
    return sum(math.prod(array.shape) for array in part.arrays)


def _of_layer(layer: Layer, before: Shape, after: Shape, depth: int) -> Iterator[SummaryRow]:
    count, constant, certificate = _count(layer), None, ""
    if isinstance(layer, ResidualBlock):
        constant, certificate = layer.lipschitz, _certificate(layer)
    yield SummaryRow(depth, _name(layer), before, after, count, constant, certificate)
    if isinstance(layer, ResidualBlock) and isinstance(layer.branch, Chain):
        yield from _of_chain(layer.branch, depth + 1)
    elif isinstance(layer, FactorOut) and layer.flow is not None:
        yield from _of_flow(layer.flow, depth + 1)
    elif isinstance(layer, Pointwise):
        yield from _of_layer(layer.layer, before[1:], after[1:], depth + 1)
    elif isinstance(layer, Inverted):
        yield from _of_layer(layer.layer, after, before, depth + 1)
    elif isinstance(layer, Flow):
        yield from _of_flow(layer, depth + 1)


def _of_chain(chain: Chain, depth: int) -> Iterator[SummaryRow]:
    shape = chain.input_shape
    for layer in chain.layers:
        if isinstance(layer, LinearLayer):
            count = sum(math.prod(array.shape) for array in (layer.weight, layer.bias) if array is not None)
            kind = type(layer).__name__
            if isinstance(layer, Convolution):
                kind += f" {'x'.join(str(n) for n in layer.weight.shape[2:])}"
            yield SummaryRow(
                depth, kind, shape, layer.output_shape, count, layer.lipschitz, layer.bound.certificate, depth > 0
            )
            shape = layer.output_shape
        else:
            after = shape if (changed := getattr(layer, "output_shape", None)) is None else changed
            count = sum(math.prod(array.shape) for array in getattr(layer, "arrays", ()))
            certificate = getattr(layer, "certificate", "exact")
            yield SummaryRow(depth, layer.name, shape, after, count, layer.lipschitz, certificate, depth > 0)
            shape = after


def _certificate(block: ResidualBlock) -> str:
    """The weakest of the certificates that the constant rests on."""
    if block.declared_lipschitz is not None:
        return "stated"
    kinds = {layer.bound.certificate for layer in getattr(block.branch, "operators", ())}
    kinds |= {layer.certificate for layer in getattr(block.branch, "layers", ()) if hasattr(layer, "certificate")}
    return next((kind for kind in ("stated", "probabilistic", "certified") if kind in kinds), "exact")


def _name(layer: Layer) -> str:
    if isinstance(layer, ResidualBlock | Flow):
        return type(layer).__name__
    if isinstance(layer, Inverted | Pointwise):
        return type(layer).__name__
    if isinstance(layer, FactorOut):
        return f"FactorOut({layer.keep})"
    name = repr(layer).replace(", 'channels_first'", "").replace(", axis=1", "")
    return name if layer.condition is None else name.split(", condition=")[0] + ", conditional)"
