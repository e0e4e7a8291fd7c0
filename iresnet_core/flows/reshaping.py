"""Layers that move, rotate or add entries: space to depth, as pixels or as Haar wavelets, and zero channels."""

from collections.abc import Sequence
from typing import Any, Literal

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import gamma, require_positive_int, unit_roundoff, widest
from iresnet_core.determinant import LogDetOptions
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.layer import (
    InverseOptions,
    Layer,
    Shape,
    Transformed,
    channel_axis,
    closed_form_inverse,
    closed_form_logdet,
    wide_norms,
)
from iresnet_core.results import Inverse

__all__ = ["SQUEEZES", "InjectivePad", "Squeeze"]

# What the channels that a Squeeze makes of pixels hold.
SQUEEZES = ("pixels", "haar")


def _nothing(backend: Backend, x: Array) -> Array:
    return backend.xp.zeros((x.shape[0],), dtype=widest(backend), device=device_of(x))


class Squeeze(Layer):
    """(C, H, W) -> (C f^2, H / f, W / f): every block of f x f pixels becomes channels; log-determinant 0.

    A permutation of the entries, after which a convolution sees pixels further apart (Dinh, Sohl-Dickstein and Bengio
    2017, Sec. 3.6); or with ``basis="haar"`` an orthogonal map to their wavelets, ``(a + b) / sqrt(2)`` and
    ``(a - b) / sqrt(2)`` of neighbours a, b along each of the n axes (Haar 1910). The first channel of a block is then
    its mean times 2^(n / 2), the others are differences, which are small in images: an ActNorm behind it brings each to
    its own scale.

    Parameters
    ----------
    factor : int
        Extent of a block along every spatial axis: 1, 2 or 3 axes for sequences, images and volumes.
    data_format : {"channels_first", "channels_last"}
        (C, *spatial) becomes (C factor^n, *spatial / factor) with channel index ``c factor^n + offset``, as
        `torch.nn.functional.pixel_unshuffle`; (*spatial, C) gets the channel index ``offset C + c``, as
        `tf.nn.space_to_depth`. The offset within a block counts its last axis fastest; of wavelets it counts which
        axes a difference is taken along.
    basis : {"pixels", "haar"}
        What the channels hold; "haar" needs the factor 2.

    Raises
    ------
    ShapeError
        From `forward`, if the spatial extent is not divisible.

    Examples
    --------
    >>> import numpy as np
    >>> Squeeze()(np.arange(4.0).reshape(1, 1, 2, 2))[0, :, 0, 0]
    array([0., 1., 2., 3.])
    >>> Squeeze(basis="haar")(np.arange(4.0).reshape(1, 1, 2, 2))[0, :, 0, 0]
    array([ 3., -1., -2.,  0.])
    """

    factor: int
    data_format: str
    basis: str = "pixels"  # of layers that were pickled before they had one

    def __init__(
        self,
        factor: int = 2,
        data_format: Literal["channels_first", "channels_last"] | str = "channels_first",
        basis: Literal["pixels", "haar"] | str = "pixels",
    ) -> None:
        if data_format not in ("channels_first", "channels_last"):
            raise InvalidArgumentError(f"data_format must be 'channels_first' or 'channels_last', got {data_format!r}.")
        if basis not in SQUEEZES:
            raise InvalidArgumentError(f"basis must be 'pixels' or 'haar', got {basis!r}.")
        factor = require_positive_int(factor, "factor")
        if basis == "haar" and factor != 2:
            raise InvalidArgumentError(f"Haar's wavelets are those of two neighbours: factor must be 2, got {factor}.")
        self._keep(factor=factor, data_format=data_format, basis=basis)

    def __repr__(self) -> str:
        basis = "" if self.basis == "pixels" else f", {self.basis!r}"
        return f"Squeeze({self.factor}, {self.data_format!r}{basis})"

    @property
    def inverse_lipschitz(self) -> Any:
        """The layer is an orthogonal map."""
        return 1.0

    @property
    def forward_lipschitz(self) -> Any:
        """The layer is an orthogonal map."""
        return 1.0

    def _split(self, shape: Sequence[int]) -> tuple[int, Shape]:
        """Channels and spatial extent of one sample."""
        if not 2 <= len(shape) <= 4:
            raise ShapeError(f"{self!r} takes samples with 1 to 3 spatial axes and a channel axis, got {tuple(shape)}.")
        first = self.data_format == "channels_first"
        return (shape[0], tuple(shape[1:])) if first else (shape[-1], tuple(shape[:-1]))

    def _join(self, channels: int, spatial: Shape) -> Shape:
        return (channels, *spatial) if self.data_format == "channels_first" else (*spatial, channels)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape with factor^n times the channels and the spatial extent divided by the factor."""
        channels, spatial = self._split(input_shape)
        if any(n % self.factor for n in spatial):
            raise ShapeError(
                f"{self!r} needs a spatial extent divisible by {self.factor}, got {spatial} in samples of shape "
                f"{tuple(input_shape)}. Crop or pad them."
            )
        return self._join(channels * self.factor ** len(spatial), tuple(n // self.factor for n in spatial))

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the shape with the channels turned back into pixels."""
        channels, spatial = self._split(output_shape)
        block = self.factor ** len(spatial)
        if channels % block:
            raise ShapeError(
                f"the inverse of {self!r} needs a multiple of {block} channels, got {channels} in samples of shape "
                f"{tuple(output_shape)}."
            )
        return self._join(channels // block, tuple(n * self.factor for n in spatial))

    def _map(self, backend: Backend, x: Array) -> Array:
        channels, spatial = self._split(x.shape[1:])
        f, n = self.factor, len(spatial)
        blocks = tuple(extent for m in spatial for extent in (m // f, f))
        if self.data_format == "channels_first":
            split, outer, inner = (channels, *blocks), range(2, 2 + 2 * n, 2), range(3, 3 + 2 * n, 2)
            order = (0, 1, *inner, *outer)
        else:
            split, outer, inner = (*blocks, channels), range(1, 1 + 2 * n, 2), range(2, 2 + 2 * n, 2)
            order = (0, *outer, *inner, 1 + 2 * n)
        xp = backend.xp
        split_up = self._rotated(backend, xp.reshape(x, (x.shape[0], *split)), inner)
        return xp.reshape(xp.permute_dims(split_up, order), (x.shape[0], *self.output_shape(x.shape[1:])))

    def _rotated(self, backend: Backend, x: Array, axes: Sequence[int]) -> Array:
        """Return pixels along these axes, of extent 2, in the basis; the map is its own inverse."""
        if self.basis == "pixels":
            return x
        x = x * 0.5 ** (len(axes) / 2)
        for axis in axes:
            before = (slice(None),) * axis
            a, b = x[(*before, slice(0, 1), ...)], x[(*before, slice(1, 2), ...)]
            x = backend.xp.concat([a + b, a - b], axis=axis)
        return x

    def _rounding(self, backend: Backend, x: Array) -> Array:
        """Bound the rounding of a sample (batch,): each axis takes one sum, and sqrt(2) and the product with it two."""
        if self.basis == "pixels":
            return _nothing(backend, x)
        u = unit_roundoff(backend, x.dtype)
        return gamma(len(x.shape) + 1, u) * wide_norms(backend, x) * (1 + 2 * u)

    def _forward(self, backend: Backend, x: Array, options: LogDetOptions) -> Transformed:
        return Transformed(
            self._map(backend, x), closed_form_logdet(backend, _nothing(backend, x), _nothing(backend, x), x.dtype)
        )

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        return self._map(backend, x), self._rounding(backend, x)

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        return error, backend.xp.zeros_like(error)

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        shape = self.input_shape(z.shape[1:])
        channels, spatial = self._split(shape)
        f, n = self.factor, len(spatial)
        coarse = tuple(m // f for m in spatial)
        if self.data_format == "channels_first":
            split, inner = (channels, *(f,) * n, *coarse), range(2, 2 + n)
            order = (0, 1, *(a for k in range(n) for a in (2 + n + k, 2 + k)))
        else:
            split, inner = (*coarse, *(f,) * n, channels), range(1 + n, 1 + 2 * n)
            order = (0, *(a for k in range(n) for a in (1 + k, 1 + n + k)), 1 + 2 * n)
        xp = backend.xp
        moved = xp.permute_dims(self._rotated(backend, xp.reshape(z, (z.shape[0], *split)), inner), order)
        return closed_form_inverse(backend, xp.reshape(moved, (z.shape[0], *shape)), self._rounding(backend, z))


class InjectivePad(Layer):
    """``z = (x, 0)``: appends channels of zeros (Jacobsen, Smeulders and Oyallon 2018); log-determinant 0.

    For classifiers, which gain width by it. Not for densities: with this layer a flow's `log_prob` is the density of
    the padded variable at the padded sample, not a density of the data that integrates to one, and its samples are
    preimages of nearest points.

    Parameters
    ----------
    padding : int
        How many channels to append.
    axis : int
        The channel axis of a batch; -1 for channels last.

    Notes
    -----
    The layer is an isometry onto its range, injective and not surjective. ``inverse(z)`` drops the channels and so
    returns the preimage of the nearest point of the range. Its `residual` is the norm of the dropped channels, which is
    the distance of z to the range; its `error_bound`, zero, is the distance to that preimage.

    Examples
    --------
    >>> import numpy as np
    >>> pad = InjectivePad(1)
    >>> pad(np.array([[1.0, 2.0]]))
    array([[1., 2., 0.]])
    >>> pad.inverse(np.array([[1.0, 2.0, 0.5]])).residual
    array([0.5])
    """

    padding: int
    axis: int

    def __init__(self, padding: int, axis: int = 1) -> None:
        if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
            raise InvalidArgumentError(f"axis must be a whole number other than 0, the batch axis, got {axis!r}.")
        self._keep(padding=require_positive_int(padding, "padding"), axis=axis)

    def __repr__(self) -> str:
        return f"InjectivePad({self.padding}, axis={self.axis})"

    @property
    def inverse_lipschitz(self) -> Any:
        """Dropping entries moves no two points apart."""
        return 1.0

    @property
    def forward_lipschitz(self) -> Any:
        """The layer is an isometry."""
        return 1.0

    def _resized(self, shape: Sequence[int], change: int) -> Shape:
        position = channel_axis(self.axis, len(shape) + 1, repr(self)) - 1
        return tuple(n + change if a == position else n for a, n in enumerate(shape))

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape with the additional channels."""
        return self._resized(input_shape, self.padding)

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the shape without them."""
        shape = self._resized(output_shape, -self.padding)
        if min(shape) < 1:
            raise ShapeError(f"{self!r} leaves no channel in samples of shape {tuple(output_shape)}.")
        return shape

    def _map(self, backend: Backend, x: Array) -> Array:
        position = channel_axis(self.axis, x.ndim, repr(self))
        shape = tuple(self.padding if a == position else n for a, n in enumerate(x.shape))
        zeros = backend.xp.zeros(shape, dtype=x.dtype, device=device_of(x))
        return backend.xp.concat([x, zeros], axis=position)

    def _forward(self, backend: Backend, x: Array, options: LogDetOptions) -> Transformed:
        return Transformed(
            self._map(backend, x), closed_form_logdet(backend, _nothing(backend, x), _nothing(backend, x), x.dtype)
        )

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        return self._map(backend, x), _nothing(backend, x)

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        return error, backend.xp.zeros_like(error)

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        position = channel_axis(self.axis, z.ndim, repr(self))
        keep = z.shape[position] - self.padding
        before = (slice(None),) * position
        dropped = z[(*before, slice(keep, None), ...)]
        kept = z[(*before, slice(None, keep), ...)]
        return closed_form_inverse(backend, kept, _nothing(backend, z), wide_norms(backend, dropped))
