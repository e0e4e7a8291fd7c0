"""A flow as the sequence of its layers, in both frameworks: their numbers, shapes and parameters."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from iresnet_core.flows import Shape, chosen_layers, event_shape_of, shape_found

__all__ = ["SequenceMethods", "flow_shape"]


class SequenceMethods:
    """What a flow has of a sequence: a length, its layers by their numbers, parts of itself, and a table of them."""

    event_shape: Shape
    latent_shape: Shape
    condition: Any
    base: Any
    terms: Any
    penalty: float
    share: Any
    checkpoint: Any
    _shapes: tuple[Shape, ...]
    _flow_layers: Callable[[], list[Any]]
    sample: Callable[..., Any]

    def _parameters_of(self, layer: Any) -> int:
        """Return how many numbers of a layer are trained."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._flow_layers())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._flow_layers())

    def __getitem__(self, key: Any) -> Any:
        """Return one layer; for a slice without a step a flow of these layers themselves, with the base at the end."""
        start, layers = chosen_layers(self._flow_layers(), key)
        if start is None:
            return layers
        takes = any(layer.takes_context for layer in layers)
        options = {name: getattr(self, name) for name in ("terms", "penalty", "share", "checkpoint")}
        base = self.base if start + len(layers) == len(self) else "normal"
        part: Any = type(self)
        part = part(layers, self._shapes[start], base=base, condition=self.condition if takes else None, **options)
        mode: Any = self
        return part.train(mode.training) if hasattr(self, "train") else part

    def __repr__(self) -> str:
        layers = self._flow_layers()
        rows: list[tuple[str, str, int]] = [
            (f"({number}) {_described(layer)}", f"{before} -> {behind}", self._parameters_of(layer))
            for number, (layer, before, behind) in enumerate(zip(layers, self._shapes, self._shapes[1:], strict=False))
        ]
        wide, shapes = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
        lines = [f"  {name:{wide}}  {shape:{shapes}}  {count:,} parameters" for name, shape, count in rows]
        total = self._parameters_of(self)
        head = f"{type(self).__name__}: {self.event_shape} -> {self.latent_shape}, {total:,} parameters"
        return "\n".join([head, *lines])

    def sample_and_log_prob(self, n: Any = (), context: Any = None, **options: Any) -> Any:
        """Return ``sample(n, context, log_prob=True, **options)``: samples and log-densities from one pass."""
        return self.sample(n, context, log_prob=True, **options)


def _described(layer: Any) -> str:
    """Return a layer in a few words."""
    said = layer.extra_repr() if hasattr(layer, "extra_repr") else ""
    coeff = getattr(layer, "coeff", None)
    said = said or ("" if coeff is None else f"coeff={coeff:g}")
    return f"{type(layer).__name__}({said})"


def flow_shape(layers: Sequence[Any], event_shape: Any) -> Shape:
    """Return the shape of one sample of a flow: as given, or what its layers know."""
    if event_shape is not None:
        return event_shape_of(layers, event_shape)
    return shape_found([(layer._own_shape(), layer._shape_before) for layer in layers])
