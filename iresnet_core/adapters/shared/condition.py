"""Conditions: the map of one as a part of a model of either framework."""

from collections.abc import Iterable, Sequence
from typing import Any

import iresnet_core as core
from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Layer

__all__ = ["ConditionMethods", "require_taken", "rows_of", "taken"]


class ConditionMethods:
    """The map of a condition: the encoding of its columns, and a net of the framework behind it.

    Attributes
    ----------
    encoding : iresnet_core.Condition or None
        Labels and scales; None where the columns are numbers as they are.
    """

    encoding: core.Condition | None
    _given_features: int | None

    def __init__(
        self,
        net: Any = None,
        *,
        classes: int | None = None,
        labels: Sequence[Iterable[float] | None] | None = None,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        features: int | None = None,
        **options: Any,
    ) -> None:
        """Make the map.

        Parameters
        ----------
        net : module, layer or list of layers, optional
            Dense layers and activations, of any constant, from the encoded columns to the numbers that enter the
            layers. Without it the encoded columns enter directly. The activations are those that a block may have.
        classes, labels, mean, std
            As in `iresnet_core.Condition`.
        features : int, optional
            The number of columns of a condition of plain numbers. Keras needs it, since its layers do not tell their
            inputs.
        **options
            Options of a Keras layer.

        Raises
        ------
        InvalidArgumentError, ShapeError
            As `iresnet_core.Condition`.
        UnknownLipschitzError
            If the net holds another layer.
        """
        super().__init__(**options)
        said = any(argument is not None for argument in (classes, labels, mean, std))
        self.encoding = core.Condition(classes=classes, labels=labels, mean=mean, std=std) if said else None
        if net is None and not said:
            raise InvalidArgumentError("a Condition needs a net, classes, labels, or mean and std to know its size.")
        self._given_features = features
        self._take_net(net, features if self.encoding is None else self.encoding.width)

    def _take_net(self, net: Any, inputs: int | None) -> None:
        """Keep the net where the framework finds it; it gets so many inputs, where that is known."""
        raise NotImplementedError

    def _net_steps(self, checked: bool) -> list[Any]:
        """Return the layers of the core that the net is made of, with the present weights; `checked` as in `Dense`."""
        raise NotImplementedError

    def core_condition(self, *, checked: bool = True) -> core.Condition:
        """Return the map of the core, with the present weights: those in use, or, unless `checked`, copies of them."""
        steps = self._net_steps(checked)
        said = self.encoding
        if said is None:
            return core.Condition(core.Chain(steps))
        net = core.Chain(steps) if steps else None
        return core.Condition(net, labels=said.labels, mean=said.mean, std=said.std)

    @property
    def features(self) -> int:
        """Columns of a condition."""
        return self.core_condition().features

    @property
    def width(self) -> int:
        """Entries of what enters."""
        return self.core_condition().width


def taken(layer: Layer, context: Array | None) -> Array | None:
    """Return the context where a layer of the core takes one; those of one's own have taken it already."""
    return context if layer.context_features is not None else None


def rows_of(context: Array | None, condition: Any) -> Array | None:
    """Return conditions of every shape that the core takes as (batch, features), or (1, features) for all samples."""
    if context is None or len(context.shape) > 1:
        return context
    encoding = None if condition is None else condition.encoding
    column = encoding is not None and encoding.features == 1 and encoding.labels is not None
    return get_backend(context).xp.reshape(context, (-1, 1) if column else (1, -1))


def require_taken(context: Any, takers: Iterable[Any]) -> None:
    """Refuse a conditioning that none of the layers of a flow takes: it would have no effect.

    Parameters
    ----------
    context : array or None
        What was given.
    takers : iterable of layers
        All of them, inner ones too; each says in its attribute `takes_context` whether it does.
    """
    if context is not None and not any(layer.takes_context for layer in takers):
        raise InvalidArgumentError(
            "a context was given, but no block of the flow takes one; make one with "
            "InvertibleResidual(..., context_features=...). A pair (x, context) in place of x counts as well."
        )
