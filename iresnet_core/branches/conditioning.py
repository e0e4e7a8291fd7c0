"""How a conditioning input enters a branch: as a translation, which leaves the Lipschitz constant alone."""

from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.slopes import Diagonal
from iresnet_core.common import Copyable
from iresnet_core.errors import ShapeError
from iresnet_core.operators import LinearLayer

__all__ = ["Shift", "conditioned", "entries", "of_samples", "without_condition"]


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
            raise ShapeError(
                f"the context has {self.value.shape[0]} rows, but there are {x.shape[0]} samples: give one row for "
                "each sample, or one condition for all."
            )
        return x + self.value

    def linearize(self, x: Array) -> tuple[Array, Diagonal]:
        """Return x + value and the identity."""
        return self(x), Diagonal(get_backend(x).xp.ones_like(x))

    def astype(self, dtype: Any) -> "Shift":
        """Return the translation in another dtype."""
        return Shift(get_backend(self.value).xp.astype(self.value, dtype))


def entries(layers: Sequence[Any]) -> tuple[int, ...]:
    """Return the channels of each place where a condition may enter: behind every linear layer but the last one.

    Behind the only one, where there is one.
    """
    linear = [layer for layer in layers if isinstance(layer, LinearLayer)]
    return tuple(layer.output_shape[_channel_axis(layer)] for layer in linear[: max(1, len(linear) - 1)])


def _channel_axis(layer: Any) -> int:
    return -1 if getattr(layer, "data_format", None) == "channels_last" else 0


def conditioned(layers: Sequence[Any], added: Array, *, single: bool = False) -> list[Any]:
    """Return the layers of a chain, with the values of a condition added behind linear layers.

    Parameters
    ----------
    layers : sequence of Dense, Convolution and Activation
        One linear layer at least.
    added : array (batch, width)
        One number for each channel of the first linear layer's output, or those of all `entries` side by side.
    single : bool
        Whether `added` is one row that stands for all samples: it then becomes part of the bias, which files can hold.
    """
    widths = list(entries(layers))
    if added.shape[1] == widths[0]:
        widths = widths[:1]
    out: list[Any] = []
    begin = 0
    for layer in layers:
        if not isinstance(layer, LinearLayer) or not widths:
            out.append(layer)
            continue
        width = widths.pop(0)
        own = added[:, begin : begin + width]
        if width < added.shape[1]:  # a view of what others are views of too, which loops of torch.compile do not take
            own = get_backend(own).xp.astype(own, own.dtype, copy=True)
        begin += width
        if single:
            out.append(layer.with_bias(own[0, ...] if layer.bias is None else layer.bias + own[0, ...]))
        else:
            out.extend([layer, Shift(_over_pixels(layer, own))])
    return out


def _over_pixels(layer: Any, own: Array) -> Array:
    """Return values (batch, channels) in a shape that broadcasts over the pixels of a layer's output."""
    ones = (1,) * (len(layer.output_shape) - 1)
    batch, width = own.shape
    shape = (batch, *ones, width) if _channel_axis(layer) == -1 else (batch, width, *ones)
    return get_backend(own).xp.reshape(own, shape)


def without_condition(g: Any) -> Any:
    """Return a chain without the translations that a conditioning added to it; other branches as they are."""
    layers = getattr(g, "layers", ())
    if not any(isinstance(layer, Shift) for layer in layers):
        return g
    return g.with_layers([layer for layer in layers if not isinstance(layer, Shift)])


def of_samples(g: Any, begin: int, end: int) -> Any:
    """Return a branch for the samples from `begin` to `end` of a batch, with their part of a conditioning."""
    layers = getattr(g, "layers", ())
    if not any(isinstance(layer, Shift) for layer in layers):
        return g
    return g.with_layers([Shift(a.value[begin:end, ...]) if isinstance(a, Shift) else a for a in layers])
