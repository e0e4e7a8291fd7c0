"""Affine map per channel with numbers that are known beforehand: data to mean zero and variance one."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import unit_roundoff, widest
from iresnet_core.determinant import LogDetOptions
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError
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

__all__ = ["Standardize"]


class Standardize(Layer):
    """``z = (x - mean) / std`` per channel, in float64; log|det| is ``-pixels * sum(log std)``.

    It stands first in a flow of data that are far from zero or of small or large scale, so that everything behind it
    works on numbers of size one. Mean and standard deviation are no parameters: they are numbers of Python, exact in
    every dtype of the flow, and the difference is taken in float64 where the backend has it. Nothing is gained for
    samples that are float32 already and have lost their spread: give those in float64, to a flow in float64.

    Parameters
    ----------
    mean, std : sequence of float
        One number per channel; `std` is positive.
    axis : int
        The channel axis of a batch; 1 for vectors and images with the channels first, -1 for channels last.

    Raises
    ------
    ShapeError
        If they have different lengths, or none.
    NonFiniteError, InvalidArgumentError
        If a number is not finite, or a `std` is not positive or has no finite reciprocal.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Standardize([1e8], [2.0])
    >>> layer.forward(np.array([[1e8 + 1.0]])).value
    array([[0.5]])
    >>> layer.forward(np.array([[1e8 + 1.0]])).logdet.value.round(6)
    array([-0.693147])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int

    def __init__(self, mean: Iterable[float], std: Iterable[float], *, axis: int = 1) -> None:
        means, stds = tuple(map(float, mean)), tuple(map(float, std))
        if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
            raise InvalidArgumentError(f"axis must be a whole number other than 0, the batch axis, got {axis!r}.")
        if not means or len(means) != len(stds):
            raise ShapeError(f"mean and std must have one number per channel, got {len(means)} and {len(stds)}.")
        if not all(map(math.isfinite, (*means, *stds))):
            raise NonFiniteError("mean and std must be finite numbers.")
        if not all(std > 0 and math.isfinite(1 / std) for std in stds):
            raise InvalidArgumentError(f"std must be positive, and so that 1 / std is finite, got {min(stds):g}.")
        self._keep(mean=means, std=stds, axis=axis)

    def __repr__(self) -> str:
        return f"Standardize({len(self.mean)} channels, axis={self.axis})"

    @property
    def inverse_lipschitz(self) -> Any:
        """Largest standard deviation."""
        return max(self.std)

    @property
    def forward_lipschitz(self) -> Any:
        """Reciprocal of the smallest standard deviation."""
        return (1 + 1e-15) / min(self.std)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        position = channel_axis(self.axis, len(input_shape) + 1, repr(self)) - 1
        if input_shape[position] != len(self.mean):
            raise ShapeError(
                f"{self!r} does not fit samples of shape {tuple(input_shape)}: {input_shape[position]} channels."
            )
        return tuple(input_shape)

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        return self.output_shape(output_shape)

    def _per_channel(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        """Return mean and std in float64, in a shape that broadcasts against x."""
        shape = [1] * x.ndim
        shape[channel_axis(self.axis, x.ndim, repr(self))] = -1
        mean, std = (
            backend.xp.asarray(list(numbers), dtype=widest(backend), device=device_of(x))
            for numbers in (self.mean, self.std)
        )
        return backend.xp.reshape(mean, tuple(shape)), backend.xp.reshape(std, tuple(shape))

    def _map(self, backend: Backend, x: Array) -> Array:
        with backend.full_precision():
            mean, std = self._per_channel(backend, x)
            return backend.xp.astype((backend.xp.astype(x, widest(backend)) - mean) / std, x.dtype)

    def _forward(self, backend: Backend, x: Array, options: LogDetOptions) -> Transformed:
        xp, wide = backend.xp, widest(backend)
        logs = [math.log(std) for std in self.std]
        pixels = math.prod(x.shape[1:]) // len(logs)
        ones = xp.ones((x.shape[0],), dtype=wide, device=device_of(x))
        # The sum is right to one rounding of each logarithm.
        rounding = 2 * unit_roundoff(backend, wide) * pixels * math.fsum(map(abs, logs))
        logdet = closed_form_logdet(backend, -pixels * math.fsum(logs) * ones, rounding * ones, x.dtype)
        return Transformed(self._map(backend, x), logdet)

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        value = self._map(backend, x)
        info = backend.xp.finfo(x.dtype)
        # The difference and the quotient have one rounding each in float64, and the result one to the dtype of x.
        smallest = math.sqrt(math.prod(x.shape[1:])) * float(info.smallest_normal)
        return value, 2 * float(info.eps) * wide_norms(backend, value) + smallest

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        return error * self.forward_lipschitz, backend.xp.zeros_like(error)

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        xp = backend.xp
        mean, std = self._per_channel(backend, z)
        scaled = xp.astype(z, widest(backend)) * std
        x = xp.astype(scaled + mean, z.dtype)
        # One rounding of the product and one of the sum in float64, and one to the dtype of the samples.
        rounding = 2 * unit_roundoff(backend, widest(backend)) * (wide_norms(backend, scaled) + wide_norms(backend, x))
        own = unit_roundoff(backend, z.dtype) * wide_norms(backend, x) * (1 + float(xp.finfo(z.dtype).eps))
        smallest = math.sqrt(math.prod(z.shape[1:])) * float(xp.finfo(z.dtype).smallest_normal)
        return closed_form_inverse(backend, x, rounding + own + smallest)
