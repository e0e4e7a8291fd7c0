"""Layers in a row, each with the shape of its samples."""

from collections.abc import Sequence
from typing import Any

from iresnet_core.flows import Shape, located

__all__ = ["bound_shapes", "placed"]


def bound_shapes(layers: Sequence[Any], event_shape: Shape) -> tuple[Shape, ...]:
    """Tell layers in a row the shapes of their samples; return these, and at the end the shape of the last output."""
    shapes = [event_shape]
    for index, layer in enumerate(layers):
        with located(index, layer):
            shapes.append(layer.bind(shapes[-1]))
    return tuple(shapes)


def placed(layers: Sequence[Any], shapes: tuple[Shape, ...]) -> list[tuple[Any, Shape]]:
    """Return layers in a row, each with the shape of its samples; those that were added later are told theirs."""
    if len(shapes) != len(layers) + 1:
        shapes = bound_shapes(layers, shapes[0])
    return list(zip(layers, shapes[:-1], strict=True))
