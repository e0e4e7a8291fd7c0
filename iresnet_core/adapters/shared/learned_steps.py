"""Steps of a branch with parameters of their own: trained slopes and widths, and concatenations with layers inside."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import iresnet_core as core
from iresnet_core.adapters.shared.steps import ROUNDED, Step
from iresnet_core.backends import Array
from iresnet_core.branches import Activation, BranchLayer
from iresnet_core.flows import Shape
from iresnet_core.lipschitz import cap_share

__all__ = ["ConcatenationStep", "LearnedStep", "caps_of", "learned_arrays", "linear_layers", "with_core_layers"]


class LearnedStep(Step):
    """An entrywise layer with one array of parameters.

    Parameters
    ----------
    make : callable
        The array -> the core's layer.
    parameter : callable
        Returns the array with its present values.
    lipschitz : float
        The constant, whatever the values are.
    build : callable, optional
        Shape of a sample -> None; makes the array.
    """

    takes_any_shape = True

    def __init__(
        self,
        make: Callable[[Array], BranchLayer],
        parameter: Callable[[], Array],
        lipschitz: float = 1.0,
        build: Callable[[Shape], None] | None = None,
    ) -> None:
        self._make, self.parameter, self.lipschitz, self._build = make, parameter, lipschitz, build

    def build(self, shape: Shape) -> None:
        """Make the array."""
        if self._build is not None:
            self._build(shape)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the same shape."""
        return tuple(shape)

    def layer(self, shape: Shape, like: Array) -> BranchLayer:
        """Return the core's layer with the present values."""
        return self._make(self.parameter()).astype(like.dtype)


class ConcatenationStep(Step):
    """The input beside what further steps make of it.

    Parameters
    ----------
    steps : sequence
        Those of the branch inside.
    angle : callable
        Returns the array with its present value.
    axis : int
        The axis of the channels in a batch.
    shape_behind : callable
        A step of any kind and the shape of a sample -> the shape behind.
    build : callable, optional
        Shape of a sample -> None; makes the angle.
    """

    lipschitz = ROUNDED
    takes_any_shape = True  # but for the channels

    def __init__(
        self,
        steps: Sequence[Any],
        angle: Callable[[], Array],
        axis: int,
        shape_behind: Callable[[Any, Shape], Shape],
        build: Callable[[Shape], None] | None = None,
    ) -> None:
        self.steps, self.angle, self.axis, self._shape_behind = list(steps), angle, axis, shape_behind
        self._build = build

    def build(self, shape: Shape) -> None:
        """Make the angle."""
        if self._build is not None:
            self._build(shape)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape with the channels of both."""
        inside = tuple(shape)
        for step in self.steps:
            inside = self._shape_behind(step, inside)
        place = self.axis - 1 if self.axis > 0 else self.axis
        channels = list(shape)
        channels[place] += inside[place]
        return tuple(channels)

    def around(self, layers: Sequence[Any], like: Array) -> BranchLayer:
        """Return the core's layer around the layers of the branch inside."""
        chain, angle = core.Chain(layers), self.angle()
        angle = chain.operators[0].backend.xp.astype(angle, like.dtype, copy=False)
        return core.DenseConcatenation(chain, angle, axis=self.axis)


def linear_layers(steps: Sequence[Any]) -> list[Any]:
    """Return the linear layers of the framework among the steps, also those inside of concatenations."""
    return [layer for layer, _ in _with_caps(steps, 1.0)]


def caps_of(steps: Sequence[Any], cap: float) -> list[float]:
    """Return the caps on the `linear_layers`: `cap`, and inside of concatenations what makes the constant there 1."""
    return [own for _, own in _with_caps(steps, cap)]


def learned_arrays(steps: Sequence[Any]) -> list[Array]:
    """Return the arrays of parameters that are no weights of linear layers."""
    found: list[Array] = []
    for step in steps:
        if isinstance(step, LearnedStep):
            found.append(step.parameter())
        elif isinstance(step, ConcatenationStep):
            found += [step.angle(), *learned_arrays(step.steps)]
    return found


def with_core_layers(steps: Sequence[Any], like: Array) -> list[Any]:
    """Return the steps with the core's layers in place of those with trained parameters, for vectors."""
    return [step.layer((), like) if isinstance(step, LearnedStep) else step for step in steps]


def _with_caps(steps: Sequence[Any], cap: float) -> Iterator[tuple[Any, float]]:
    for step in steps:
        if isinstance(step, ConcatenationStep):
            yield from _with_caps(step.steps, cap_share(step.steps, 1.0))
        elif not isinstance(step, Step | Activation):
            yield step, cap
