"""What a layer of a branch is that has no weights to scale and is no activation of the table."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

from iresnet_core.backends import Array, get_backend
from iresnet_core.common import Copyable, safe_sample_norms, unit_roundoff
from iresnet_core.errors import ShapeError
from iresnet_core.operators import LinearLayer

__all__ = ["BranchLayer", "LayerJacobian"]


class LayerJacobian(Protocol):
    """Jacobian of a layer at one batch."""

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch or 1, *input_shape)."""

    def adjoint(self, u: Array) -> Array:
        """Multiply u (..., batch or 1, *output_shape) by the transpose."""

    def of_samples(self, begin: int, end: int) -> Any:
        """Return the Jacobian of a part of the batch."""


class BranchLayer(Copyable, ABC):
    """A layer of a `Chain` that is no `Dense`, `Convolution` or `Activation`; `normalize` leaves it as it is.

    Attributes
    ----------
    input_shape, output_shape : tuple of int or None
        Shape of one sample before and after; None where every shape is taken, and kept.
    arrays : tuple
        Its parameters.
    certificate : str
        Where its constant comes from: "certified" or "stated".
    slope_lipschitz : float
        Lipschitz constant of its Jacobian.
    entrywise, has_unit_slope : bool
        Whether the Jacobian is a `Diagonal`, and the identity.
    linear : LinearLayer or None
        The linear layer that it is, if it is one.
    """

    entrywise: ClassVar[bool] = False
    has_unit_slope: ClassVar[bool] = False
    has_constant: ClassVar[bool] = True
    has_products: bool = True
    certificate: ClassVar[str] = "certified"
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    arrays: tuple[Array, ...] = ()
    linear: LinearLayer | None = None

    @property
    def name(self) -> str:
        """The name of the class in lower case."""
        return type(self).__name__.lower()

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        """Lipschitz constant: the supremum of the norm of the Jacobian."""

    @property
    def slope_lipschitz(self) -> float:
        """Infinity, where nothing better is known."""
        return math.inf

    @abstractmethod
    def linearize(self, x: Array) -> tuple[Array, Any]:
        """Return the value at x (batch, ...) and the Jacobian there, a `LayerJacobian`."""

    def __call__(self, x: Array) -> Array:
        """Return the value at x (batch, ...)."""
        return self.linearize(x)[0]

    def with_rounding(self, x: Array) -> tuple[Array, Array]:
        """Return the value, and a bound (batch,) on its rounding error: eight units of what comes in and goes out."""
        backend, value = get_backend(x), self(x)
        sizes = [safe_sample_norms(backend.xp, backend.stop_gradient(a)) for a in (x, value)]
        return value, 8 * unit_roundoff(backend, x.dtype) * (self.lipschitz * sizes[0] + sizes[1])

    def absolute_norm(self) -> Any:
        """Bound the norm of the Jacobian with all entries replaced by their absolute values."""
        return self.lipschitz

    def terms(self) -> int:
        """Longest path through the sums of one product with the Jacobian."""
        return 8

    def astype(self, dtype: Any) -> "BranchLayer":
        """Return the layer in another dtype."""
        return self

    def with_arrays(self, arrays: Sequence[Array]) -> Self:
        """Return the layer with other arrays of the same values in place of `arrays`."""
        return self

    def _require_shape(self, x: Array) -> None:
        if self.input_shape is not None and tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"{self!r} takes samples of shape {self.input_shape}, got an array of shape {tuple(x.shape)}."
            )
