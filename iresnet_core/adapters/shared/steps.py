"""Steps of a branch that are neither linear layers with weights to cap nor activations of the core."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import iresnet_core as core
from iresnet_core.backends import Array, backend, device_of, get_backend
from iresnet_core.branches import BranchLayer, StatedLayer
from iresnet_core.errors import ShapeError
from iresnet_core.flows import Shape

__all__ = ["DeclaredStep", "FixedStep", "FlattenStep", "PoolingStep", "ReshapeStep", "Step", "WavesStep"]


# What rounding to single precision may add to a constant.
ROUNDED = 1 + 2.0**-21


class Step:
    """A layer of the framework that becomes a layer of the core once the shape of its samples is known.

    Attributes
    ----------
    lipschitz : float
        Its constant, which counts when the linear layers share what is left.
    input_shape : tuple of int or None
        The shape of the samples that it takes, where that is given.
    takes_any_shape : bool
        Whether the shape in front of the branch is not needed to make the layer.
    """

    lipschitz: float = 1.0
    input_shape: Shape | None = None
    takes_any_shape: bool = False

    def build(self, shape: Shape) -> None:
        """Make the weights of the framework's layer, where that needs the shape."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of one sample behind the layer."""
        raise NotImplementedError

    def layer(self, shape: Shape, like: Array) -> BranchLayer:
        """Return the core's layer for samples of this shape, with arrays like the one given."""
        raise NotImplementedError


class ReshapeStep(Step):
    """Samples in another shape, which is given."""

    def __init__(self, target: Sequence[int]) -> None:
        self.target = tuple(target)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the target, where one entry may be -1."""
        known = math.prod(n for n in self.target if n != -1)
        target = tuple(math.prod(shape) // known if n == -1 else n for n in self.target)
        if math.prod(target) != math.prod(shape):
            raise ShapeError(f"samples of shape {shape} cannot become samples of shape {self.target}.")
        return target

    def layer(self, shape: Shape, like: Array) -> BranchLayer:
        """Return the reshaping."""
        return core.Reshape(shape, self.output_shape(shape))


class FlattenStep(ReshapeStep):
    """Samples as vectors."""

    def __init__(self) -> None:
        super().__init__((-1,))


class PoolingStep(Step):
    """Means over windows side by side.

    Parameters
    ----------
    window : sequence of int
        One extent for each axis.
    data_format : {"channels_first", "channels_last"}
        Where the channels are.
    """

    def __init__(self, window: Sequence[int], data_format: str) -> None:
        self.window, self.data_format = tuple(window), data_format
        self.lipschitz = math.prod(self.window) ** -0.5 * ROUNDED

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape with every extent divided by that of the window."""
        if len(shape) != len(self.window) + 1:
            raise ShapeError(f"average pooling over windows {self.window} does not take samples of shape {shape}.")
        first = self.data_format == "channels_first"
        spatial = tuple(n // k for n, k in zip(shape[1:] if first else shape[:-1], self.window, strict=True))
        return (shape[0], *spatial) if first else (*spatial, shape[-1])

    def layer(self, shape: Shape, like: Array) -> BranchLayer:
        """Return the pooling."""
        self.output_shape(shape)
        return core.average_pooling(like, self.window, input_shape=shape, data_format=self.data_format)


class FixedStep(Step):
    """A layer of the core that nothing trains.

    Parameters
    ----------
    fixed : BranchLayer
        It states its shapes.
    """

    def __init__(self, fixed: BranchLayer) -> None:
        self.fixed, self.lipschitz, self.input_shape = fixed, fixed.lipschitz, fixed.input_shape

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape that the layer states."""
        if tuple(shape) != self.fixed.input_shape or self.fixed.output_shape is None:
            raise ShapeError(f"{self.fixed!r} does not take samples of shape {shape}.")
        return self.fixed.output_shape

    def layer(self, shape: Shape, like: Array) -> BranchLayer:
        """Return the layer in the dtype of the weights."""
        return self.fixed.astype(like.dtype)


class WavesStep(Step):
    """Cosine and sine of fixed frequencies.

    Parameters
    ----------
    frequencies : sequence of sequence of float
        The rows of the matrix.
    passed : sequence of int
        See `iresnet_core.FourierFeatures`.
    """

    def __init__(self, frequencies: Sequence[Sequence[float]], passed: Sequence[int]) -> None:
        xp = backend("numpy").xp
        self.frequencies, self.passed = frequencies, tuple(passed)
        known = core.FourierFeatures(xp.asarray(frequencies, dtype=xp.float64), self.passed)
        assert known.output_shape is not None
        self.lipschitz, self.input_shape, self.behind = known.lipschitz * ROUNDED, known.input_shape, known.output_shape

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the waves and of what is passed on."""
        if tuple(shape) != self.input_shape:
            raise ShapeError(f"Fourier features of samples of shape {self.input_shape} do not take shape {shape}.")
        return self.behind

    def layer(self, shape: Shape, like: Array) -> BranchLayer:
        """Return the embedding, with frequencies that are known also where a compiler is tracing."""
        framework = get_backend(like)

        def made() -> core.FourierFeatures:
            frequencies = framework.xp.asarray(self.frequencies, dtype=like.dtype, device=device_of(like))
            return core.FourierFeatures(frequencies, self.passed)

        return framework.concretely(made)  # type: ignore[no-any-return]


class DeclaredStep(Step):
    """A layer of the user's with a declared constant, as a layer of one's own of the core.

    Parameters
    ----------
    apply : callable
        x (batch, ...) -> the value.
    lipschitz : float
        The constant.
    shapes : pair of tuple of int, or None
        Shape of a sample before and after, where the layer changes it.
    astype : callable
        dtype -> the same step in another dtype.
    name : str
        What errors call it.
    """

    def __init__(
        self,
        apply: Callable[[Array], Array],
        lipschitz: float,
        shapes: tuple[Shape, Shape] | None,
        astype: Callable[[Any], "DeclaredStep"],
        name: str,
    ) -> None:
        self.apply, self.lipschitz, self.shapes, self.astype, self.name = apply, lipschitz, shapes, astype, name
        self.input_shape, self.takes_any_shape = (None if shapes is None else shapes[0]), shapes is None

    def output_shape(self, shape: Shape) -> Shape:
        """Return the declared shape, or the same."""
        return tuple(shape) if self.shapes is None else self.shapes[1]

    def layer(self, shape: Shape, like: Array) -> BranchLayer:
        """Return the layer of one's own."""
        return StatedLayer(_Declared(self))


class _Declared:
    """What the core asks of a layer of one's own."""

    def __init__(self, step: DeclaredStep) -> None:
        self._step, self.apply, self.lipschitz = step, step.apply, step.lipschitz
        if step.shapes is not None:
            self.input_shape, self.output_shape = step.shapes

    def __repr__(self) -> str:
        return self._step.name

    def astype(self, dtype: Any) -> "_Declared":
        return _Declared(self._step.astype(dtype))
