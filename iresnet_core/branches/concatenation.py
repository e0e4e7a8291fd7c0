"""The layer of dense blocks: its input beside what a branch makes of it, with trained weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.branches.chain import Chain
from iresnet_core.branches.linearization import Linearization
from iresnet_core.common import (
    require_finite,
    require_floating,
    require_same_device,
    require_same_dtype,
    safe_sample_norms,
    unit_roundoff,
)
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["DenseConcatenation"]


class DenseConcatenation(BranchLayer):
    """``x -> (cos(a) x, sin(a) f(x))``, one beside the other along the channels, with a trained angle a.

    With Lip(f) = L the Lipschitz constant is sqrt(cos(a)^2 + sin(a)^2 L^2), hence 1 for every angle if L = 1, which is
    what `normalize` makes of the linear layers inside. A linear layer behind some of these brings the channels back.

    Parameters
    ----------
    branch : Chain or sequence of layers
        The branch f, which keeps all axes but that of the channels.
    angle : array (1,)
        Where both weights are equal, it is pi/4.
    axis : int
        The axis of the channels, where 0 is that of the samples.

    Attributes
    ----------
    branch, angle, axis
        As given.

    Raises
    ------
    ShapeError
        If the branch changes another axis, or the angle is no array (1,).
    InvalidArgumentError, DtypeError, NonFiniteError
        For another axis or angle.

    Notes
    -----
    Source: Perugachi-Diaz, Tomczak and Bhulai (2021), Sec. 3.2, whose two weights are divided by the root of the sum of
    their squares.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Activation, Dense, normalize
    >>> layer = DenseConcatenation([Dense(np.array([[3.0, 0.0]])), Activation("elu")], np.array([np.pi / 4]))
    >>> layer.output_shape, round(layer.lipschitz, 6)  # sqrt((1 + 9) / 2)
    ((3,), 2.236068)
    >>> g = normalize(Chain([layer, Dense(np.ones((2, 3)))]), 0.9)
    >>> round(g.layers[0].lipschitz, 6), round(g.lipschitz, 6)
    (1.0, 0.9)
    """

    def __init__(self, branch: Chain | Sequence[Any], angle: Array, *, axis: int = 1) -> None:
        if not isinstance(branch, Chain | Sequence):
            raise InvalidArgumentError(f"DenseConcatenation takes a Chain or a sequence of layers, got {branch!r}.")
        self.branch = branch if isinstance(branch, Chain) else Chain(branch)
        if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
            raise InvalidArgumentError(f"axis must be a whole number other than 0, the batch axis, got {axis!r}.")
        weight = self.branch.operators[0].weight
        backend = get_backend(angle, weight)
        require_floating(backend, angle, "angle")
        require_finite(backend, angle, "angle")
        require_same_dtype(angle, "angle", weight, "the weight of the branch")
        require_same_device(backend, angle, "angle", weight, "the weight of the branch")
        if tuple(angle.shape) != (1,):
            raise ShapeError(f"angle must have shape (1,), got {tuple(angle.shape)}.")
        self._take(backend.frozen(angle), axis)

    def _take(self, angle: Array, axis: int) -> None:
        """Set everything that follows from the branch."""
        before, after = self.branch.input_shape, self.branch.output_shape
        self.axis, self.angle, self.input_shape = axis, angle, before
        rank = len(before) + 1
        place = axis % rank
        if not -rank < axis < rank or len(after) != len(before):
            raise ShapeError(f"the branch makes {after} of {before}, which has no channels along axis {axis}.")
        channels = before[place - 1] + after[place - 1]
        self.output_shape = (*before[: place - 1], channels, *before[place:])
        if (*before[: place - 1], after[place - 1], *before[place:]) != tuple(after):
            raise ShapeError(
                f"the branch makes {after} of {before}; it may change nothing but the channels along axis {axis}."
            )
        self.arrays: tuple[Array, ...] = (angle, *self.branch.arrays)
        self.has_products = not any(isinstance(n, BranchLayer) and not n.has_products for n in self.branch.layers)
        self.certificate = self.branch.certificate  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"DenseConcatenation({self.branch!r}, axis={self.axis})"

    def with_branch(self, branch: Chain, angle: Array | None = None) -> "DenseConcatenation":
        """Return the layer with another branch of the same shapes, and another angle where one is given."""
        layer = object.__new__(type(self))
        layer.branch = branch
        layer._take(self.angle if angle is None else angle, self.axis)
        return layer

    def with_arrays(self, arrays: Sequence[Array]) -> "DenseConcatenation":
        """Return the layer with other arrays of the same values in place of `arrays`."""
        angle, *others = arrays
        return self.with_branch(self.branch.with_arrays(others), angle)

    def astype(self, dtype: Any) -> "DenseConcatenation":
        """Return the layer in another dtype."""
        if self.angle.dtype == dtype:
            return self
        return self.with_branch(self.branch.astype(dtype), get_backend(self.angle).xp.astype(self.angle, dtype))

    @property
    def has_constant(self) -> bool:  # type: ignore[override]
        """Whether the norms of the linear layers inside have values."""
        return all(operator.has_constant for operator in self.branch.operators)

    @property
    def lipschitz(self) -> float:
        """sqrt(cos(a)^2 + sin(a)^2 L^2) rounded up; the larger one of 1 and L while a program is compiled."""
        inner, backend = float(self.branch.lipschitz), get_backend(self.angle)
        if backend.is_tracing(self.angle):
            return max(1.0, inner)
        cosine, sine = self._known_weights()
        return min(math.hypot(cosine, sine * inner) * (1 + self._slack()), max(1.0, inner) * (1 + self._slack()))

    @property
    def slope_lipschitz(self) -> float:
        """That of the branch times |sin(a)|; infinity where it is not known yet."""
        curvature, backend = self.branch.curvature, get_backend(self.angle)
        if curvature is None or not math.isfinite(curvature.lipschitz) or backend.is_tracing(self.angle):
            return math.inf
        return self._known_weights()[1] * float(curvature.lipschitz) * (1 + self._slack())

    def absolute_norm(self) -> float:
        """That of the branch and 1, one beside the other."""
        curvature = self.branch.curvature
        return math.inf if curvature is None else math.hypot(1.0, curvature.absolute_norm)

    def terms(self) -> int:
        """Those of the branch, and the product with a weight."""
        curvature = self.branch.curvature
        return 8 if curvature is None else curvature.terms + 8

    def _slack(self) -> float:
        """What rounding the two weights may add: a few units of the dtype."""
        return 8.0 * unit_roundoff(get_backend(self.angle), self.angle.dtype)

    def _known_weights(self) -> tuple[float, float]:
        angle = float(get_backend(self.angle).stop_gradient(self.angle)[0])
        return abs(math.cos(angle)), abs(math.sin(angle))

    def _weights(self) -> tuple[Array, Array]:
        xp = get_backend(self.angle).xp
        return xp.cos(self.angle[0]), xp.sin(self.angle[0])

    def _from_end(self) -> int:
        return self.axis if self.axis < 0 else self.axis - len(self.branch.input_shape) - 1

    def __call__(self, x: Array) -> Array:
        """Return the value at x (batch, *input_shape)."""
        cosine, sine = self._weights()
        return get_backend(x).xp.concat([cosine * x, sine * self.branch(x)], axis=self._from_end())

    def linearize(self, x: Array) -> tuple[Array, "ConcatenationJacobian"]:
        """Return the value at x (batch, *input_shape) and the Jacobian there."""
        inner, (cosine, sine) = self.branch.linearize(x), self._weights()
        value = get_backend(x).xp.concat([cosine * x, sine * inner.value], axis=self._from_end())
        return value, ConcatenationJacobian(self, x, inner, cosine, sine)

    def with_rounding(self, x: Array) -> tuple[Array, Array]:
        """Return the value, and a bound (batch,) on its rounding error."""
        backend, (cosine, sine) = get_backend(x), self._weights()
        inner, error = self.branch.with_rounding(x)
        value = backend.xp.concat([cosine * x, sine * inner], axis=self._from_end())
        size = safe_sample_norms(backend.xp, backend.stop_gradient(value))
        return value, error + 8 * unit_roundoff(backend, x.dtype) * (size + error)


@dataclass(frozen=True)
class ConcatenationJacobian:
    """Jacobian of `DenseConcatenation` at one batch."""

    layer: DenseConcatenation
    x: Array
    inner: Linearization
    cosine: Array
    sine: Array

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch or 1, *input_shape)."""
        assert self.inner.jvp is not None  # asked of layers with products only
        image, xp = self.inner.jvp(v), get_backend(v).xp
        v = xp.broadcast_to(v, (*image.shape[: image.ndim - self.x.ndim + 1], *v.shape[v.ndim - self.x.ndim + 1 :]))
        return xp.concat([self.cosine * v, self.sine * image], axis=self.layer._from_end())

    def adjoint(self, u: Array) -> Array:
        """Multiply u (..., batch or 1, *output_shape) by the transpose."""
        axis, channels = self.layer._from_end(), self.x.shape[self.layer._from_end()]
        behind = (slice(None),) * (-axis - 1)
        first, second = u[(..., slice(0, channels), *behind)], u[(..., slice(channels, u.shape[axis]), *behind)]
        return self.cosine * first + self.inner.vjp(self.sine * second)

    def of_samples(self, begin: int, end: int) -> "ConcatenationJacobian":
        """Return the Jacobian of a part of the batch."""
        return self.layer.linearize(self.x[begin:end, ...])[1]
