"""Layers of a branch that nothing trains: linear maps that stay as they are, other shapes, waves of the input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.common import gamma, require_positive_int, require_shape, safe_sample_norms, unit_roundoff
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.operators import Convolution, Dense, LinearLayer

__all__ = ["Fixed", "FourierFeatures", "Reshape", "average_pooling"]


class Fixed(BranchLayer):
    """A linear layer that stays as it is: its certified constant counts, but `normalize` does not scale it.

    Parameters
    ----------
    linear : LinearLayer
        Such as a `Dense` or a `Convolution`.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Dense
    >>> Fixed(Dense(np.array([[0.0, 2.0]])))(np.array([[1.0, 3.0]]))
    array([[6.]])
    """

    def __init__(self, linear: LinearLayer) -> None:
        if not isinstance(linear, LinearLayer):
            raise InvalidArgumentError(f"Fixed takes a linear layer such as Dense, got {type(linear).__name__}.")
        self.linear: LinearLayer = linear
        self.input_shape, self.output_shape = linear.input_shape, linear.output_shape

    def __repr__(self) -> str:
        return f"Fixed({self.linear!r})"

    @property
    def lipschitz(self) -> float:
        """Certified norm of the linear layer."""
        return self.linear.lipschitz

    @property
    def slope_lipschitz(self) -> float:
        """The Jacobian is constant."""
        return 0.0

    def linearize(self, x: Array) -> tuple[Array, LinearLayer]:
        """Return the value at x and the linear layer itself."""
        return self.linear(x), self.linear

    def astype(self, dtype: Any) -> "Fixed":
        """Return the layer in another dtype."""
        return Fixed(self.linear.astype(dtype))


def average_pooling(
    like: Array,
    window: int | Sequence[int],
    *,
    input_shape: Sequence[int],
    stride: int | Sequence[int] | None = None,
    data_format: Any = "channels_first",
) -> Fixed:
    """Return the layer of the means over windows, by default side by side: its norm is 1 / sqrt(entries of a window).

    Parameters
    ----------
    like : array
        Gives the framework, the dtype and the device.
    window, stride : int or one int per axis
        Size of the window, and its step; default the window itself.
    input_shape : tuple of int
        Shape of one sample, (channels, *spatial) or (*spatial, channels).
    data_format : {"channels_first", "channels_last"}
        Where the channel axis is.

    Examples
    --------
    >>> import numpy as np
    >>> pool = average_pooling(np.zeros(1), 2, input_shape=(1, 4))
    >>> pool(np.array([[[1.0, 3.0, 5.0, 9.0]]]))
    array([[[2., 7.]]])
    >>> round(pool.lipschitz, 6)
    0.707107
    """
    backend, shape = get_backend(like), require_shape(input_shape, "input_shape")
    axes = len(shape) - 1
    sizes = tuple(window) if hasattr(window, "__iter__") else (window,) * axes
    sizes = tuple(require_positive_int(size, "window") for size in sizes)
    first = data_format == "channels_first"
    channels = shape[0] if first else shape[-1]
    kernel = backend.xp.full(
        (channels, 1, *sizes) if first else (*sizes, 1, channels),
        1 / math.prod(sizes),
        dtype=like.dtype,
        device=device_of(like),
    )
    layer: LinearLayer = Convolution(
        kernel,
        input_shape=shape,
        stride=sizes if stride is None else stride,
        groups=channels,
        data_format=data_format,
    )
    if stride is None:  # side by side: known, but for the rounding of the entries
        layer = layer.capped(math.prod(sizes) ** -0.5 * (1 + 4 * unit_roundoff(backend, like.dtype)))
    return Fixed(layer)


class Reshape(BranchLayer):
    """Samples in another shape, such as an image as a vector, in the order of the rows.

    Parameters
    ----------
    input_shape, output_shape : tuple of int
        Shape of one sample before and after.

    Examples
    --------
    >>> import numpy as np
    >>> Reshape((2, 2), (4,))(np.array([[[1.0, 2.0], [3.0, 4.0]]]))
    array([[1., 2., 3., 4.]])
    """

    def __init__(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> None:
        before, after = require_shape(input_shape, "input_shape"), require_shape(output_shape, "output_shape")
        if math.prod(before) != math.prod(after):
            raise ShapeError(f"samples of shape {before} cannot become samples of shape {after}: the sizes differ.")
        self.input_shape: tuple[int, ...] = before
        self.output_shape: tuple[int, ...] = after

    def __repr__(self) -> str:
        return f"Reshape({self.input_shape} -> {self.output_shape})"

    @property
    def lipschitz(self) -> float:
        """Nothing but the order of the entries changes."""
        return 1.0

    @property
    def slope_lipschitz(self) -> float:
        """The Jacobian is constant."""
        return 0.0

    def linearize(self, x: Array) -> tuple[Array, "Reshape"]:
        """Return the value at x and the layer itself, which is linear."""
        self._require_shape(x)
        return self.apply(x), self

    def apply(self, v: Array) -> Array:
        """Reshape v (..., *input_shape)."""
        return get_backend(v).xp.reshape(v, (*v.shape[: v.ndim - len(self.input_shape)], *self.output_shape))

    def adjoint(self, u: Array) -> Array:
        """Reshape u (..., *output_shape)."""
        return get_backend(u).xp.reshape(u, (*u.shape[: u.ndim - len(self.output_shape)], *self.input_shape))

    def of_samples(self, begin: int, end: int) -> "Reshape":
        """Return the layer itself."""
        return self

    def with_rounding(self, x: Array) -> tuple[Array, Array]:
        """Return the value, which has no rounding error."""
        xp = get_backend(x).xp
        return self(x), xp.zeros((x.shape[0],), dtype=x.dtype, device=device_of(x))


class FourierFeatures(BranchLayer):
    """``x -> (cos(W x), sin(W x), some entries of x)`` with fixed frequencies W; periodic where W holds whole numbers.

    With an angle in every entry and W the identity it embeds a torus: for x that differ by whole turns the values are
    the same.

    Parameters
    ----------
    frequencies : array (waves, d)
        The matrix W, which nothing trains.
    passed : sequence of int
        The entries of x that are passed on as they are, such as those that are no angles.

    Notes
    -----
    Of the waves J^T J is W^T W at every x, so that the constant is the certified norm of W, with a row of the identity
    for every passed entry: for one angle of the frequencies k it is sqrt(sum of k^2).

    Examples
    --------
    >>> import numpy as np
    >>> embedding = FourierFeatures(np.eye(2))
    >>> embedding(np.array([[0.0, np.pi]])).round(6)
    array([[ 1., -1.,  0.,  0.]])
    >>> round(embedding.lipschitz, 6), round(FourierFeatures(np.array([[1.0], [2.0]])).lipschitz**2, 6)
    (1.0, 5.0)
    """

    def __init__(self, frequencies: Array, passed: Sequence[int] = ()) -> None:
        self.waves = Dense(frequencies)
        backend, xp, d = self.waves.backend, self.waves.backend.xp, self.waves.shape[1]
        self.passed = tuple(int(index) for index in passed)
        if len(set(self.passed)) < len(self.passed) or any(not 0 <= index < d for index in self.passed):
            raise InvalidArgumentError(f"passed must be different entries from 0 to {d - 1}, got {list(passed)}.")
        rows = self.waves.weight
        if self.passed:
            unit = backend.xp.eye(d, dtype=rows.dtype, device=device_of(rows))
            rows = xp.concat([rows, *(unit[index : index + 1, :] for index in self.passed)], axis=0)
        self._gram = Dense(rows)
        self.input_shape: tuple[int, ...] = (d,)
        self.output_shape: tuple[int, ...] = (2 * self.waves.shape[0] + len(self.passed),)

    def __repr__(self) -> str:
        return f"FourierFeatures({self.input_shape[0]} -> {self.output_shape[0]})"

    @staticmethod
    def of_angles(
        like: Array, d: int, angles: Sequence[int] | None = None, frequencies: Sequence[int] = (1,)
    ) -> "FourierFeatures":
        """Return cosine and sine of whole multiples of some entries of x (batch, d); the others are passed on.

        Parameters
        ----------
        like : array
            Gives the framework, the dtype and the device.
        d : int
            Number of entries.
        angles : sequence of int, optional
            The entries that are angles in radians; default all.
        frequencies : sequence of int
            The multiples, the same for every angle.
        """
        xp = get_backend(like).xp
        chosen = tuple(range(d)) if angles is None else tuple(angles)
        if not chosen or any(not 0 <= index < d for index in chosen):
            raise InvalidArgumentError(f"angles must be some entries from 0 to {d - 1}, got {list(chosen)}.")
        multiples = [require_positive_int(k, "a frequency of angles") for k in frequencies]
        if not multiples:
            raise InvalidArgumentError("angles need at least one frequency, such as (1,).")
        unit = xp.eye(d, dtype=like.dtype, device=device_of(like))
        rows = [k * unit[index : index + 1, :] for k in multiples for index in chosen]
        return FourierFeatures(xp.concat(rows, axis=0), [index for index in range(d) if index not in chosen])

    @property
    def frequencies(self) -> Array:
        """The matrix W."""
        return self.waves.weight

    @property
    def lipschitz(self) -> float:
        """Certified norm of W and of the rows for passed entries."""
        return self._gram.lipschitz

    @property
    def slope_lipschitz(self) -> float:
        """At most the norm of W times that of its longest row."""
        return self._gram.lipschitz**2 * (1 + 1e-15)

    def linearize(self, x: Array) -> tuple[Array, "WaveJacobian"]:
        """Return the value at x and the Jacobian there."""
        self._require_shape(x)
        xp = get_backend(x).xp
        phase = self.waves(x)
        cosine, sine = xp.cos(phase), xp.sin(phase)
        return xp.concat([cosine, sine, *self.passed_on(x)], axis=-1), WaveJacobian(self, cosine, sine)

    def passed_on(self, v: Array) -> list[Array]:
        """Return the passed entries of v (..., d), one by one."""
        return [v[..., index : index + 1] for index in self.passed]

    def absolute_norm(self) -> Any:
        """Bound by the Frobenius norm: a number, or an array () where the frequencies are those of a program."""
        backend, weight = self.waves.backend, self._gram.weight

        def bound() -> Array:
            xp = backend.xp
            return xp.sqrt(2 * xp.sum(xp.astype(backend.stop_gradient(weight), xp.float64) ** 2)) * (1 + 1e-12)

        with backend.full_precision():
            norm = backend.concretely(bound) if backend.is_constant(weight) else bound()
        return norm if backend.is_tracing(norm) else float(norm)

    def terms(self) -> int:
        """Entries of x, and the waves."""
        return 2 * self.waves.shape[0] + self.waves.shape[1] + 12

    def with_rounding(self, x: Array) -> tuple[Array, Array]:
        """Return the value, and a bound (batch,) on its rounding error, which grows with the phases."""
        backend, value = get_backend(x), self(x)
        u = unit_roundoff(backend, x.dtype)
        sizes = [safe_sample_norms(backend.xp, backend.stop_gradient(a)) for a in (x, value)]
        norm = self.absolute_norm()
        norm = norm if isinstance(norm, float) else backend.xp.astype(norm, x.dtype)
        return value, gamma(self.waves.shape[1] + 2, u) * norm * sizes[0] + 8 * u * sizes[1]

    def astype(self, dtype: Any) -> "FourierFeatures":
        """Return the layer in another dtype."""
        if dtype == self.frequencies.dtype:
            return self
        return FourierFeatures(self.waves.backend.xp.astype(self.frequencies, dtype), self.passed)


@dataclass(frozen=True)
class WaveJacobian:
    """Jacobian of `FourierFeatures` at one batch."""

    layer: FourierFeatures
    cosine: Array
    sine: Array

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch or 1, d)."""
        layer, xp = self.layer, get_backend(v).xp
        phase = layer.waves.apply(v)
        waves = [-self.sine * phase, self.cosine * phase]
        passed = [xp.broadcast_to(p, (*waves[0].shape[:-1], 1)) for p in layer.passed_on(v)]
        return xp.concat([*waves, *passed], axis=-1)

    def adjoint(self, u: Array) -> Array:
        """Multiply u (..., batch or 1, 2 waves + passed) by the transpose."""
        layer, xp, m = self.layer, get_backend(u).xp, self.layer.waves.shape[0]
        given = layer.waves.adjoint(self.cosine * u[..., m : 2 * m] - self.sine * u[..., :m])
        if not layer.passed:
            return given
        columns, none = dict(zip(layer.passed, range(2 * m, 2 * m + len(layer.passed)), strict=True)), u[..., :1] * 0
        added = [u[..., c : c + 1] if (c := columns.get(i)) is not None else none for i in range(layer.input_shape[0])]
        return given + xp.concat(added, axis=-1)

    def of_samples(self, begin: int, end: int) -> "WaveJacobian":
        """Return the Jacobian of a part of the batch."""
        return WaveJacobian(self.layer, self.cosine[begin:end, ...], self.sine[begin:end, ...])
