"""How a conditioning input enters a branch: as a translation, which leaves the Lipschitz constant alone."""

from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.slopes import Diagonal
from iresnet_core.common import Copyable
from iresnet_core.errors import ShapeError
from iresnet_core.operators import Convolution

__all__ = ["Shift", "conditioned", "of_samples", "without_condition"]


class Shift(Copyable):
    """``x + value``, with another value for every sample; its Jacobian is the identity.

    Parameters
    ----------
    value : array (batch, ...)
        The translations; axes of extent 1 are repeated, except for the first one, which counts the samples.

    Examples
    --------
    >>> import numpy as np
    >>> Shift(np.array([[1.0], [2.0]]))(np.zeros((2, 3)))
    array([[1., 1., 1.],
           [2., 2., 2.]])
    """

    name = "shift"
    lipschitz = 1.0
    slope_lipschitz = 0.0
    entrywise = True
    has_unit_slope = True

    def __init__(self, value: Array) -> None:
        get_backend(value)
        self.value = value

    def __repr__(self) -> str:
        return f"Shift({tuple(self.value.shape)})"

    def __call__(self, x: Array) -> Array:
        """Return x + value for x (batch, ...)."""
        if x.shape[0] != self.value.shape[0]:
            raise ShapeError(f"the conditioning has {self.value.shape[0]} samples, but the input has {x.shape[0]}.")
        return x + self.value

    def linearize(self, x: Array) -> tuple[Array, Diagonal]:
        """Return x + value and the identity."""
        return self(x), Diagonal(get_backend(x).xp.ones_like(x))

    def astype(self, dtype: Any) -> "Shift":
        """Return the translation in another dtype."""
        return Shift(get_backend(self.value).xp.astype(self.value, dtype))


def conditioned(layers: Sequence[Any], added: Array, *, single: bool = False) -> list[Any]:
    """Return the layers of a chain, with the values of a conditioning added after its first linear layer.

    Parameters
    ----------
    layers : sequence of Dense, Convolution and Activation
        One linear layer at least.
    added : array (batch, width)
        One number for each channel of that layer's output.
    single : bool
        Whether `added` is one row that stands for all samples: it then becomes part of the bias, which files can hold.
    """
    place = next(i for i, layer in enumerate(layers) if not isinstance(layer, Activation))
    first = layers[place]
    if single:
        bias = added[0, ...] if first.bias is None else first.bias + added[0, ...]
        return [*layers[:place], first.with_bias(bias), *layers[place + 1 :]]
    ones = (1,) * (len(first.output_shape) - 1)
    last = isinstance(first, Convolution) and first.data_format == "channels_last"
    batch, width = added.shape
    shape = (batch, *ones, width) if last else (batch, width, *ones)
    return [*layers[: place + 1], Shift(get_backend(added).xp.reshape(added, shape)), *layers[place + 1 :]]


def without_condition(g: Any) -> Any:
    """Return a chain without the translations that a conditioning added to it; other branches as they are."""
    layers = getattr(g, "layers", ())
    if not any(isinstance(layer, Shift) for layer in layers):
        return g
    return type(g)([layer for layer in layers if not isinstance(layer, Shift)])


def of_samples(g: Any, begin: int, end: int) -> Any:
    """Return a branch for the samples from `begin` to `end` of a batch, with their part of a conditioning."""
    layers = getattr(g, "layers", ())
    if not any(isinstance(layer, Shift) for layer in layers):
        return g
    return type(g)([Shift(layer.value[begin:end, ...]) if isinstance(layer, Shift) else layer for layer in layers])
