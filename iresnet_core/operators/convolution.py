"""Convolution layers in one, two and three dimensions, with exact adjoints."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.common import require_positive_int, require_shape
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.operators.base import LinearLayer

__all__ = ["Convolution", "wrapped"]

DataFormat = Literal["channels_first", "channels_last"]
PaddingMode = Literal["zeros", "circular"]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


class Convolution(LinearLayer):
    """Convolution layer on inputs of one size: y[o, p] = b[o] + sum over i, t of K[o, i, t] x[i, s p + d t - padding].

    This is the cross-correlation of every deep-learning framework, with stride s and dilation d. Input channels i are
    those of the group of the output channel o.

    Parameters
    ----------
    kernel : array
        (out, in / groups, *window) for ``data_format="channels_first"``, (*window, in / groups, out) for
        "channels_last"; 1, 2 or 3 window axes.
    bias : array (out,), optional
        Of the kernel's dtype.
    input_shape : tuple of int
        Shape of one sample: (in, *spatial), or (*spatial, in) for "channels_last". The norm depends on it.
    stride, dilation : int or one int per axis
        Step of the window, and distance of its taps.
    padding : int, one int per axis, one (before, after) pair per axis, "same" or "valid"
        "same" (stride 1) keeps the spatial extent; with an even window the extra row goes after.
    groups : int
        Number of channel groups.
    data_format : {"channels_first", "channels_last"}
        Where the channel axis is.
    checked : bool
        As for `Dense`.
    padding_mode : {"zeros", "circular"}
        What the padding holds. Circular padding may not be wider than the window needs, else rows repeat.

    Raises
    ------
    ShapeError
        If the shapes of kernel, bias and input do not fit, or the window is larger than the padded input.
    InvalidArgumentError
        If an option has no meaning.
    DtypeError, NonFiniteError, MixedBackendsError
        As for `Dense`.

    Examples
    --------
    >>> import numpy as np
    >>> blur = Convolution(np.ones((1, 1, 3)) / 3, input_shape=(1, 5), padding="same")
    >>> blur(np.array([[[0.0, 0.0, 3.0, 0.0, 0.0]]]))
    array([[[0., 1., 1., 1., 0.]]])
    >>> blur.lipschitz < 1
    True
    """

    _geometry = (
        *("backend", "shape", "input_shape", "output_shape", "data_format", "padding_mode", "groups", "window"),
        *("spatial", "out_spatial", "channels", "out_channels", "stride", "dilation", "reach", "padding"),
    )

    def __init__(
        self,
        kernel: Array,
        bias: Array | None = None,
        *,
        input_shape: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        data_format: DataFormat = "channels_first",
        padding_mode: PaddingMode = "zeros",
        checked: bool = False,
    ) -> None:
        get_backend(kernel)
        if len(kernel.shape) not in (3, 4, 5) or 0 in kernel.shape:
            raise ShapeError(
                f"a kernel has 1, 2 or 3 window axes and 2 channel axes, none empty, got shape {tuple(kernel.shape)}."
            )
        if data_format not in ("channels_first", "channels_last"):
            raise InvalidArgumentError(f"data_format must be 'channels_first' or 'channels_last', got {data_format!r}.")
        if padding_mode not in ("zeros", "circular"):
            raise InvalidArgumentError(f"padding_mode must be 'zeros' or 'circular', got {padding_mode!r}.")
        self.data_format, self.padding_mode = data_format, padding_mode
        self.groups = require_positive_int(groups, "groups")
        axes = len(kernel.shape) - 2
        first = data_format == "channels_first"
        self.window = tuple(kernel.shape[2:] if first else kernel.shape[:-2])
        out_channels, group_channels = (
            (kernel.shape[0], kernel.shape[1]) if first else (kernel.shape[-1], kernel.shape[-2])
        )
        self.input_shape = require_shape(input_shape, "input_shape")
        if len(self.input_shape) != axes + 1:
            raise ShapeError(
                f"input_shape {self.input_shape} does not fit a kernel with {axes} window axes: it is the shape of one "
                f"sample, {'(channels, *spatial)' if first else '(*spatial, channels)'}."
            )
        channels = self.input_shape[0] if first else self.input_shape[-1]
        self.spatial = self.input_shape[1:] if first else self.input_shape[:-1]
        if channels != group_channels * self.groups or out_channels % self.groups:
            raise ShapeError(
                f"{self.groups} groups, a kernel of shape {tuple(kernel.shape)} and {channels} input channels do not "
                f"fit: the kernel takes {group_channels} channels per group and gives {out_channels}."
            )
        self.channels, self.out_channels = channels, out_channels
        self.stride = _per_axis(stride, axes, "stride")
        self.dilation = _per_axis(dilation, axes, "dilation")
        self.reach = tuple((k - 1) * d for k, d in zip(self.window, self.dilation, strict=True))
        self.padding = self._pairs(padding)
        out_spatial = tuple(
            (n + sum(p) - r - 1) // s + 1
            for n, p, r, s in zip(self.spatial, self.padding, self.reach, self.stride, strict=True)
        )
        if min(out_spatial) < 1:
            raise ShapeError(
                f"the window {self.window} (dilation {self.dilation}) is larger than the padded input: "
                f"spatial extent {self.spatial}, padding {self.padding}."
            )
        self.out_spatial = out_spatial
        self.output_shape = (out_channels, *out_spatial) if first else (*out_spatial, out_channels)
        self.shape = (math.prod(self.output_shape), math.prod(self.input_shape))
        self._adopt(kernel, bias, (out_channels,), checked)

    def __repr__(self) -> str:
        return f"Convolution({self.input_shape} -> {self.output_shape}, window {self.window})"

    def _pairs(self, padding: Padding) -> tuple[tuple[int, int], ...]:
        """Padding before and after, per axis."""
        axes = len(self.window)
        if isinstance(padding, str):
            if padding == "valid":
                return ((0, 0),) * axes
            if padding != "same":
                raise InvalidArgumentError(f"padding must be 'same', 'valid' or numbers, got {padding!r}.")
            if any(s != 1 for s in self.stride):
                raise InvalidArgumentError("padding='same' needs stride 1; give the padding in numbers.")
            pairs = tuple((r // 2, r - r // 2) for r in self.reach)
        else:
            entries: list[Any] = list(padding) if hasattr(padding, "__iter__") else [padding] * axes
            pairs = tuple(tuple(e) if hasattr(e, "__iter__") else (e, e) for e in entries)
            if len(pairs) != axes or any(len(p) != 2 or not all(_is_count(e) for e in p) for p in pairs):
                raise InvalidArgumentError(
                    f"padding must be one number >= 0 or one pair for each of the {axes} axes, got {padding!r}."
                )
            pairs = tuple((int(before), int(after)) for before, after in pairs)
        if self.padding_mode == "circular":
            for p, r, n in zip(pairs, self.reach, self.spatial, strict=True):
                if sum(p) > r or max(p) > n:
                    raise InvalidArgumentError(
                        f"circular padding {p} on extent {n} is wider than the window needs ({r} in all); the output "
                        "would repeat rows. Use padding='same'."
                    )
        return pairs

    @property
    def kernel(self) -> Array:
        """The kernel, as it was given."""
        return self.weight

    @property
    def standard_kernel(self) -> Array:
        """The kernel as (out, in / groups, *window)."""
        if self.data_format == "channels_first":
            return self.weight
        axes = len(self.window)
        return self.backend.xp.permute_dims(self.weight, (axes + 1, axes, *range(axes)))

    def channels_first(self, x: Array) -> Array:
        """Bring samples (batch, ...) of the layer's data format to (batch, channels, *spatial)."""
        if self.data_format == "channels_first":
            return x
        return self.backend.xp.moveaxis(x, -1, 1)

    def given_format(self, x: Array) -> Array:
        """Bring samples (batch, channels, *spatial) to the layer's data format."""
        if self.data_format == "channels_first":
            return x
        return self.backend.xp.moveaxis(x, 1, -1)

    @property
    def _zero_padding(self) -> tuple[tuple[int, int], ...]:
        return self.padding if self.padding_mode == "zeros" else ((0, 0),) * len(self.window)

    def apply(self, v: Array) -> Array:
        """Convolve arrays (..., *input_shape), without the bias."""
        xp = self.backend.xp
        leading = v.shape[: v.ndim - len(self.input_shape)]
        y = self.backend.conv(
            self._standard_input(v),
            self.standard_kernel,
            stride=self.stride,
            padding=self._zero_padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return xp.reshape(self.given_format(y), (*leading, *self.output_shape))

    def adjoint(self, u: Array) -> Array:
        """Apply the exact transpose to arrays (..., *output_shape)."""
        xp = self.backend.xp
        leading = u.shape[: u.ndim - len(self.output_shape)]
        y = self.channels_first(xp.reshape(u, (-1, *self.output_shape)))
        circular = self.padding_mode == "circular"
        spatial = [n + sum(p) if circular else n for n, p in zip(self.spatial, self.padding, strict=True)]
        x = self.backend.conv_transpose(
            y,
            self.standard_kernel,
            spatial=spatial,
            stride=self.stride,
            padding=self._zero_padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if circular:
            for axis, (before, after) in enumerate(self.padding, start=2):
                x = _unwrap(xp, x, axis, before, after)
        return xp.reshape(self.given_format(x), (*leading, *self.input_shape))

    def _standard_input(self, v: Array) -> Array:
        """Return arrays (..., *input_shape) as (batch, channels, *spatial), with circular padding put on."""
        xp = self.backend.xp
        x = self.channels_first(xp.reshape(v, (-1, *self.input_shape)))
        if self.padding_mode == "circular":
            for axis, (before, after) in enumerate(self.padding, start=2):
                x = wrapped(xp, x, axis, before, after)
        return x

    def weight_gradient(self, x: Array, u: Array, total: Array | None = None) -> Array:
        """Return the derivative of ``sum(u * apply(x))`` by the kernel, added to `total`."""
        xp, axes = self.backend.xp, len(self.window)
        kernel = self.backend.conv_kernel_gradient(
            self._standard_input(x),
            self.channels_first(xp.reshape(u, (-1, *self.output_shape))),
            self.standard_kernel,
            stride=self.stride,
            padding=self._zero_padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.data_format == "channels_last":
            kernel = xp.permute_dims(kernel, (*range(2, axes + 2), 1, 0))
        return kernel if total is None else total + kernel

    def bias_gradient(self, u: Array) -> Array:
        """Return the sum of all u but for the channels."""
        channel = u.ndim - 1 - (len(self.window) if self.data_format == "channels_first" else 0)
        return self.backend.xp.sum(u, axis=tuple(axis for axis in range(u.ndim) if axis != channel))

    def biased(self, y: Array) -> Array:
        """Add the bias to y (..., *output_shape)."""
        if self.bias is None:
            return y
        if self.data_format == "channels_last":
            return y + self.bias
        return y + self.backend.xp.reshape(self.bias, (self.out_channels,) + (1,) * len(self.window))

    def matvec(self, v: Array) -> Array:
        """Multiply flat vectors (..., n)."""
        leading = v.shape[:-1]
        xp = self.backend.xp
        return xp.reshape(self.apply(xp.reshape(v, (*leading, *self.input_shape))), (*leading, self.shape[0]))

    def rmatvec(self, u: Array) -> Array:
        """Multiply flat vectors (..., m) by the transpose."""
        leading = u.shape[:-1]
        xp = self.backend.xp
        return xp.reshape(self.adjoint(xp.reshape(u, (*leading, *self.output_shape))), (*leading, self.shape[1]))

    def group_matrices(self) -> Array:
        """Return the explicit matrices (groups, m / groups, n / groups) of the groups, which see no other's channels.

        All groups are multiplied at once, by as many images as the smaller extent of one matrix.
        """
        xp, groups = self.backend.xp, self.groups
        m, n = (extent // groups for extent in self.shape)
        forward = n <= m
        shapes = (self.input_shape, self.output_shape) if forward else (self.output_shape, self.input_shape)
        axis = 0 if self.data_format == "channels_first" else len(self.window)
        given, seen = ([*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]] for shape in shapes)
        unit = xp.eye(min(m, n), dtype=self.weight.dtype, device=device_of(self.weight))
        images = xp.reshape(unit, (-1, *given[:axis], 1, *given[axis + 1 :]))
        images = xp.reshape(xp.broadcast_to(images, (min(m, n), *given)), (-1, *shapes[0]))
        products = xp.reshape((self.apply if forward else self.adjoint)(images), (-1, *seen))
        products = xp.reshape(xp.moveaxis(products, axis + 1, 0), (groups, -1, max(m, n)))
        return xp.matrix_transpose(products) if forward else products

    def at_size(
        self, input_shape: Sequence[int], weight: Array | None = None, bias: Array | None = None
    ) -> "Convolution":
        """Return the layer for inputs of another size; its norm differs, so its bound is certified anew."""
        return Convolution(
            self.weight if weight is None else weight,
            self.bias if weight is None else bias,
            input_shape=input_shape,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            data_format=self.data_format,
            padding_mode=self.padding_mode,
        )


def _is_count(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and int(value) >= 0


def _per_axis(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    entries = tuple(value) if hasattr(value, "__iter__") else (value,) * axes
    if len(entries) != axes:
        raise InvalidArgumentError(f"{name} must be one number or {axes}, got {value!r}.")
    return tuple(require_positive_int(entry, name) for entry in entries)


def _slice(x: Array, axis: int, start: int, stop: int) -> Array:
    return x[tuple(slice(start, stop) if a == axis else slice(None) for a in range(x.ndim))]


def wrapped(xp: Any, x: Array, axis: int, before: int, after: int) -> Array:
    """Pad one axis with the other end of itself."""
    n = x.shape[axis]
    parts = [_slice(x, axis, n - before, n), x, _slice(x, axis, 0, after)]
    return xp.concat([p for p in parts if p.shape[axis]], axis=axis)


def _unwrap(xp: Any, x: Array, axis: int, before: int, after: int) -> Array:
    """Adjoint of `wrapped`: add the padding back to where it was taken from."""
    n = x.shape[axis] - before - after
    total = _slice(x, axis, before, before + n)
    for part, offset in (
        (_slice(x, axis, 0, before), n - before),
        (_slice(x, axis, before + n, n + before + after), 0),
    ):
        width = part.shape[axis]
        if width:
            zeros = [
                xp.zeros(
                    tuple(k if a == axis else m for a, m in enumerate(part.shape)), dtype=x.dtype, device=device_of(x)
                )
                for k in (offset, n - offset - width)
            ]
            total = total + xp.concat([zeros[0], part, zeros[1]], axis=axis)
    return total
