"""Transposed convolution layers: the exact transpose of a convolution, with its norm."""

from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array
from iresnet_core.errors import ShapeError
from iresnet_core.operators.base import LinearLayer
from iresnet_core.operators.convolution import Convolution, DataFormat, Padding, PaddingMode

__all__ = ["ConvolutionTranspose"]


class ConvolutionTranspose(LinearLayer):
    """Transpose of the `Convolution` with the same kernel that takes `output_shape`; with a stride it enlarges images.

    Parameters
    ----------
    kernel : array
        (in, out / groups, *window) for ``data_format="channels_first"``, (*window, out / groups, in) for
        "channels_last", as the frameworks have it.
    bias : array (out,), optional
        Of the kernel's dtype.
    output_shape : tuple of int
        Shape of one sample behind the layer, which the convolution takes; that in front of it follows.
    stride, padding, dilation, groups, data_format, padding_mode, checked
        Those of the convolution.

    Raises
    ------
    ShapeError, InvalidArgumentError, DtypeError, NonFiniteError, MixedBackendsError
        As for `Convolution`.

    Notes
    -----
    The norm of a matrix is that of its transpose, so that `lipschitz` is certified as that of the convolution.

    Examples
    --------
    >>> import numpy as np
    >>> double = ConvolutionTranspose(np.ones((1, 1, 2)), output_shape=(1, 4), stride=2)
    >>> double(np.array([[[1.0, 5.0]]]))
    array([[[1., 1., 5., 5.]]])
    >>> round(double.lipschitz, 6)  # sqrt(2)
    1.414214
    """

    _geometry = ("backend", "shape", "input_shape", "output_shape", "data_format", "_convolution")

    def __init__(
        self,
        kernel: Array,
        bias: Array | None = None,
        *,
        output_shape: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        data_format: DataFormat = "channels_first",
        padding_mode: PaddingMode = "zeros",
        checked: bool = False,
    ) -> None:
        convolution = Convolution(
            kernel,
            input_shape=output_shape,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            data_format=data_format,
            padding_mode=padding_mode,
            checked=checked,
        )
        self._of(convolution, bias, checked)

    def _of(self, convolution: Convolution, bias: Array | None, checked: bool = False) -> None:
        self._convolution = convolution
        self.data_format = convolution.data_format
        self.input_shape, self.output_shape = convolution.output_shape, convolution.input_shape
        self.shape = (convolution.shape[1], convolution.shape[0])
        self._adopt(convolution.weight, bias, (convolution.channels,), checked)

    @classmethod
    def for_input(
        cls,
        kernel: Array,
        bias: Array | None = None,
        *,
        input_shape: Sequence[int],
        output_padding: Sequence[int],
        padding: Sequence[Sequence[int]],
        **options: Any,
    ) -> "ConvolutionTranspose":
        """Return the layer for samples of a shape in front of it; of the shapes behind that fit, one by its padding.

        The padding is that of the convolution, a pair for every axis, and `output_padding` says by how many positions
        the extents behind exceed the smallest ones.
        """
        first = options.get("data_format", "channels_first") == "channels_first"
        window = kernel.shape[2:] if first else kernel.shape[:-2]
        axes, shape = len(window), tuple(input_shape)
        stride, dilation = (_spread(options.get(name, 1), axes) for name in ("stride", "dilation"))
        channels = (kernel.shape[1] if first else kernel.shape[-2]) * options.get("groups", 1)
        if len(shape) != axes + 1 or shape[0 if first else -1] != kernel.shape[0 if first else -1]:
            raise ShapeError(f"a transposed convolution with a kernel {tuple(kernel.shape)} does not take {shape}.")
        spatial = tuple(
            (n - 1) * s - sum(pair) + d * (k - 1) + 1 + more
            for n, s, pair, d, k, more in zip(
                shape[1:] if first else shape[:-1], stride, padding, dilation, window, output_padding, strict=True
            )
        )
        behind = (channels, *spatial) if first else (*spatial, channels)
        layer = cls(kernel, bias, output_shape=behind, padding=padding, **options)
        if layer.input_shape != shape:
            raise ShapeError(
                f"no transposed convolution takes {shape} with the output padding {tuple(output_padding)}; it has to "
                "be smaller than the stride."
            )
        return layer

    def __repr__(self) -> str:
        return f"ConvolutionTranspose({self.input_shape} -> {self.output_shape}, window {self._convolution.window})"

    def __getattr__(self, name: str) -> Any:
        """Return what describes the convolution: stride, padding, dilation, groups, padding_mode, window."""
        if name in ("stride", "padding", "dilation", "groups", "padding_mode", "window"):
            return getattr(self._convolution, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in the shape of a sample."""
        return -1 if self.data_format == "channels_last" else 0

    @property
    def convolution(self) -> Convolution:
        """The convolution with the same kernel, without a bias: the transpose of this layer."""
        return self._convolution.with_parameters(self.weight, None, self._bound)

    def apply(self, v: Array) -> Array:
        """Apply the transpose of the convolution to arrays (..., *input_shape), without the bias."""
        return self.convolution.adjoint(v)

    def adjoint(self, u: Array) -> Array:
        """Convolve arrays (..., *output_shape)."""
        return self.convolution.apply(u)

    def matvec(self, v: Array) -> Array:
        """Multiply flat vectors (..., n)."""
        return self.convolution.rmatvec(v)

    def rmatvec(self, u: Array) -> Array:
        """Multiply flat vectors (..., m) by the transpose."""
        return self.convolution.matvec(u)

    def weight_gradient(self, x: Array, u: Array, total: Array | None = None) -> Array:
        """Return the derivative of ``sum(u * apply(x))`` by the kernel, which is that of the convolution of u."""
        return self.convolution.weight_gradient(u, x, total)

    def bias_gradient(self, u: Array) -> Array:
        """Return the sum of all u but for the channels."""
        channel = u.ndim - (1 if self.data_format == "channels_last" else len(self.output_shape))
        return self.backend.xp.sum(u, axis=tuple(axis for axis in range(u.ndim) if axis != channel))

    def biased(self, y: Array) -> Array:
        """Add the bias to y (..., *output_shape)."""
        if self.bias is None or self.data_format == "channels_last":
            return y if self.bias is None else y + self.bias
        return y + self.backend.xp.reshape(self.bias, (-1,) + (1,) * (len(self.output_shape) - 1))


def _spread(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if hasattr(value, "__iter__") else (value,) * axes
