"""A flow as the sequence of its layers, the shape of its samples where these know it, and how many are drawn."""

import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

from iresnet_core.backends import Backend
from iresnet_core.common import require_nonnegative_int, require_positive_int, require_shape
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.layer import Layer, Shape

__all__ = ["LayerSequence", "chosen_layers", "event_shape_of", "in_shape", "number_and_shape", "shape_found"]


class LayerSequence:
    """What a flow has of a sequence: a length, its layers by their numbers, and parts of itself as flows."""

    layers: tuple[Layer, ...]
    event_shape: Shape
    sample: Callable[..., Any]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, key: Any) -> Any:
        """Return one layer; for a slice without a step the flow of these layers, with the same base at the end."""
        start, layers = chosen_layers(self.layers, key)
        if start is None:
            return layers
        shape = self.event_shape
        for layer in self.layers[:start]:
            shape = layer.output_shape(shape)
        own: Any = self
        takes = any(layer.context_features is not None for layer in layers)
        base = own.base if start + len(layers) == len(self.layers) else "normal"
        return type(own)(layers, shape, base=base, condition=own.condition if takes else None)

    def sample_and_log_prob(self, n: Any = (), context: Any = None, **options: Any) -> Any:
        """Return ``sample(n, context, log_prob=True, **options)``: samples and log-densities from one pass."""
        return self.sample(n, context, log_prob=True, **options)


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def chosen_layers(layers: Sequence[Any], key: Any) -> tuple[int | None, Any]:
    """Return None and one layer, or, for a slice, the number of the first one and the layers of the slice."""
    if not isinstance(key, slice):
        if not _is_number(key):
            raise InvalidArgumentError(f"a layer of a flow is flow[number] or flow[from:to], got flow[{key!r}].")
        if not -len(layers) <= key < len(layers):
            raise IndexError(f"there is no layer {key}: the flow has {len(layers)} layers, numbered from 0.")
        return None, layers[int(key)]
    start, _, step = key.indices(len(layers))
    if step != 1 or not layers[key]:
        raise InvalidArgumentError(
            f"flow[{key.start}:{key.stop}:{key.step}]: a part of a flow has at least one layer, and leaves none out."
        )
    return start, list(layers[key])


def event_shape_of(layers: Sequence[Any], event_shape: Any) -> Shape:
    """Return the shape of one sample: as given, where a number n stands for (n,), or what the layers know."""
    if event_shape is None:
        return shape_found([(_own_shape(layer), getattr(layer, "input_shape", None)) for layer in layers])
    if _is_number(event_shape):
        return (require_positive_int(event_shape, "event_shape"),)
    return require_shape(event_shape, "event_shape")


def _own_shape(layer: Any) -> Shape | None:
    """Return the shape of the samples that a layer takes, where its weights say it."""
    shape = layer.event_shape if isinstance(layer, LayerSequence) else getattr(layer, "branch", None)
    found = shape if isinstance(shape, tuple) else getattr(shape, "input_shape", None)
    return tuple(found) if found and all(isinstance(n, Integral) for n in found) else None


def shape_found(layers: Sequence[tuple[Shape | None, Callable[[Shape], Shape] | None]]) -> Shape:
    """Return the shape of one sample from the first layer that knows its own, carried back through those before.

    Each layer is given by its own shape, or None, and by the function from the shape behind it to that in front.
    """
    for number, (shape, _) in enumerate(layers):
        if shape is not None:
            for _, before in reversed(layers[:number]):
                if before is None:
                    break
                shape = tuple(before(shape))
            else:
                return shape
    raise ShapeError(
        "the layers do not say the shape of one sample, as blocks of dense layers do: give it as event_shape=, a "
        "number for vectors and a tuple such as (3, 32, 32) for images."
    )


def number_and_shape(n: Any) -> tuple[Any, Shape | None]:
    """Return how many samples are drawn, and their shape, where `n` is one: () stands for one without a batch axis."""
    if not isinstance(n, Sequence) or isinstance(n, str):
        return n, None
    shape = tuple(require_nonnegative_int(extent, "each extent of n") for extent in n)
    return math.prod(shape), shape


def in_shape(backend: Backend, result: Any, shape: Shape | None) -> Any:
    """Return a result whose arrays have one entry per sample with the samples in another shape."""
    if shape is None:
        return result
    if isinstance(result, tuple):
        parts = [in_shape(backend, part, shape) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    if not getattr(result, "shape", ()):
        return result
    return backend.xp.reshape(result, (*shape, *result.shape[1:]))
