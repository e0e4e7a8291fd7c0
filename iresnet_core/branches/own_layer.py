"""A layer of one's own inside a chain: the constant that it states, and what is checked of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.common import fixed_start, require_nonnegative, require_shape, safe_sample_norms, unit_roundoff
from iresnet_core.errors import DerivativeError, DtypeError, InvalidArgumentError, NotContractiveError, ShapeError

__all__ = ["OwnLayer", "StatedLayer", "is_own_layer"]


@runtime_checkable
class OwnLayer(Protocol):
    """What a `Chain` takes as a layer of one's own: any object with these two; the rest is optional.

    Attributes
    ----------
    lipschitz : float
        Its Lipschitz constant in the Euclidean norm, positive. It is taken as it is stated: the constant of the chain
        and all error bounds rest on it. A Jacobian product that contradicts it raises `NotContractiveError`.
    linearize : callable, optional
        x (batch, ...) -> (value, jvp, vjp), with v -> J v and u -> J^T u, sample by sample, for arrays of the shapes of
        x and of the value. Without it the backend differentiates `apply`, and the chain has no product J v, hence no
        explicit Jacobian.
    input_shape, output_shape : tuple of int, optional
        Shape of one sample before and after; needed where the layer changes it.
    slope_lipschitz : float, optional
        Lipschitz constant of the Jacobian, for certificates of the inverse beyond those of a contraction; default
        infinity.
    astype : callable, optional
        dtype -> the layer in another dtype; needed where it holds arrays, since some answers are computed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Chain, Dense, logdet
    >>> class Arctan:
    ...     lipschitz = 1.0
    ...
    ...     def apply(self, x):
    ...         return np.arctan(x)
    ...
    ...     def linearize(self, x):
    ...         slope = 1 / (1 + x * x)
    ...         return np.arctan(x), lambda v: slope * v, lambda u: slope * u
    >>> g = Chain([Dense(np.diag([0.5, 0.5])), Arctan()])
    >>> g.certificate, round(g.lipschitz, 6)
    ('stated', 0.5)
    >>> logdet(g, np.zeros((1, 2))).value.round(6)  # 2 log 1.5
    array([0.81093])
    """

    lipschitz: Any

    def apply(self, x: Array) -> Array:
        """Return the value at x (batch, ...)."""


def is_own_layer(layer: Any) -> bool:
    """Say whether an object has what a layer of one's own must have."""
    return callable(getattr(layer, "apply", None)) and hasattr(layer, "lipschitz")


class StatedLayer(BranchLayer):
    """A layer of one's own as a layer of a chain.

    Parameters
    ----------
    layer : OwnLayer
        See there.

    Attributes
    ----------
    layer : OwnLayer
        The argument.
    """

    certificate: ClassVar[str] = "stated"

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        name = type(layer).__name__
        constant = require_nonnegative(layer.lipschitz, f"{name}.lipschitz")
        if constant == 0:
            raise InvalidArgumentError(f"{name}.lipschitz must be positive, since linear layers share what is left.")
        self._constant = constant
        bend = getattr(layer, "slope_lipschitz", None)
        self._bend = float("inf") if bend is None else _bend(bend, f"{name}.slope_lipschitz")
        before, after = getattr(layer, "input_shape", None), getattr(layer, "output_shape", None)
        if after is not None and before is None:
            raise ShapeError(f"{name} states its output_shape {after!r}, and needs its input_shape with it.")
        if before is not None:
            self.input_shape = require_shape(before, f"{name}.input_shape")
            self.output_shape = self.input_shape if after is None else require_shape(after, f"{name}.output_shape")
        self.has_products = hasattr(layer, "linearize")
        self._is_compared = False  # its two products with each other

    def __repr__(self) -> str:
        return f"{type(self.layer).__name__}(lipschitz={self._constant:g})"

    @property
    def name(self) -> str:
        """The name of the class of the layer."""
        return type(self.layer).__name__

    @property
    def lipschitz(self) -> float:
        """The constant that the layer states."""
        return self._constant

    @property
    def slope_lipschitz(self) -> float:
        """The constant of the Jacobian that the layer states."""
        return self._bend

    def __call__(self, x: Array) -> Array:
        """Return the value at x (batch, ...)."""
        self._require_shape(x)
        return self._checked(x, self._own(self.layer.apply, x))

    def linearize(self, x: Array) -> tuple[Array, "StatedJacobian"]:
        """Return the value at x (batch, ...) and the Jacobian there."""
        self._require_shape(x)
        if self.has_products:
            found = self._own(self.layer.linearize, x)
            if not (isinstance(found, tuple) and len(found) == 3 and callable(found[1]) and callable(found[2])):
                raise DerivativeError(
                    f"{self.name}.linearize(x) must return the tuple (value, jvp, vjp) of an array and two functions, "
                    f"got {type(found).__name__}."
                )
            value, jvp, vjp = found
            jacobian = StatedJacobian(self, x, self._checked(x, value), jvp, vjp)
            if not self._is_compared and x.shape[0] and not get_backend(x).is_tracing(x, value):
                jacobian.refuse_other_transpose()
                self._is_compared = True  # of the same class, products elsewhere are taken to be alike
            return value, jacobian
        value, vjp = get_backend(x).vjp(lambda x: self._own(self.layer.apply, x), x)
        return self._checked(x, value), StatedJacobian(self, x, value, None, vjp)

    def astype(self, dtype: Any) -> "StatedLayer":
        """Return the layer in another dtype; itself where it has no `astype`."""
        return StatedLayer(self.layer.astype(dtype)) if hasattr(self.layer, "astype") else self

    def _own(self, fn: Callable[[Array], Any], x: Array) -> Any:
        if hasattr(self.layer, "astype") or get_backend(x).is_tracing(x):
            return fn(x)
        try:
            return fn(x)
        except Exception as error:
            error.add_note(
                f"This was in {self.name}, a layer of your own without a method astype(dtype), for an input of "
                f"{x.dtype}: some answers are computed in float64. A layer that holds arrays needs that method."
            )
            raise

    def _checked(self, x: Array, value: Array) -> Array:
        get_backend(x, value)
        expected = x.shape[1:] if self.output_shape is None else self.output_shape
        if tuple(value.shape[1:]) != tuple(expected) or value.shape[0] != x.shape[0]:
            raise ShapeError(
                f"{self!r} returned shape {tuple(value.shape)} for an input of shape {tuple(x.shape)}; expected are "
                f"samples of shape {tuple(expected)}. A layer that changes the shape states input_shape and "
                "output_shape."
            )
        if value.dtype != x.dtype:
            raise DtypeError(
                f"{self!r} returned {value.dtype} for an input of {x.dtype}. A layer that holds arrays has a method "
                "astype(dtype)."
            )
        return value


@dataclass(frozen=True)
class StatedJacobian:
    """Jacobian of a layer of one's own at one batch, whose products are compared with the constant."""

    layer: StatedLayer
    x: Array
    value: Array
    jvp: Callable[[Array], Array] | None
    vjp: Callable[[Array], Array]

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch or 1, *input_shape)."""
        if self.jvp is None:
            raise DerivativeError(f"{self.layer.name} has no product J v; give it linearize(x) -> (value, jvp, vjp).")
        return self._product(self.jvp, v, self.x, self.value, "jvp")

    def adjoint(self, u: Array) -> Array:
        """Multiply u (..., batch or 1, *output_shape) by the transpose."""
        return self._product(self.vjp, u, self.value, self.x, "vjp")

    def of_samples(self, begin: int, end: int) -> "StatedJacobian":
        """Return the Jacobian of a part of the batch, for one evaluation."""
        return self.layer.linearize(self.x[begin:end, ...])[1]

    def refuse_other_transpose(self) -> None:
        """Refuse products J v and J^T u of which one is not the transpose of the other, by one product with each."""
        backend, xp = get_backend(self.x), get_backend(self.x).xp
        with backend.no_grad():
            v = fixed_start(backend, (2, *self.x.shape), self.x)[1, ...]  # another one than u, also of the same shape
            u = fixed_start(backend, tuple(self.value.shape), self.value)
            image, back = self.apply(v), self.adjoint(u)
            n = self.x.shape[0]
            forms = [xp.reshape(xp.sum(xp.reshape(a * b, (n, -1)), axis=1), (n,)) for a, b in ((u, image), (back, v))]
            sizes = safe_sample_norms(xp, u) * safe_sample_norms(xp, v)
            allowed = self.layer.lipschitz * sizes * max(1e-5, 1e4 * unit_roundoff(backend, self.x.dtype))
            gap = xp.abs(forms[0] - forms[1])
            if bool(xp.any(gap > allowed)):
                at = int(xp.argmax(gap - allowed))
                raise DerivativeError(
                    f"the products of {self.layer!r} contradict each other: for the same two vectors u^T (J v) is "
                    f"{float(forms[0][at]):.6g} and (J^T u)^T v is {float(forms[1][at]):.6g}. One of jvp and vjp that "
                    "linearize(x) returns is not that of the transpose."
                )

    def _product(self, fn: Callable[[Array], Array], v: Array, given: Array, made: Array, name: str) -> Array:
        """Call the function once for each of the leading axes, as it is written for a batch."""
        xp = get_backend(v).xp
        leading = v.shape[: v.ndim - given.ndim]
        stack = xp.reshape(xp.broadcast_to(v, (*leading, *given.shape)), (-1, *given.shape))
        images = [self._one(fn, stack[i, ...], made, name) for i in range(stack.shape[0])]
        return images[0] if not leading else xp.reshape(xp.stack(images), (*leading, *made.shape))

    def _one(self, fn: Callable[[Array], Array], v: Array, made: Array, name: str) -> Array:
        image = fn(v)
        backend = get_backend(v, image)
        if tuple(image.shape) != tuple(made.shape):
            raise ShapeError(
                f"{name} of {self.layer!r} returned shape {tuple(image.shape)}, expected {tuple(made.shape)}."
            )
        if not backend.is_tracing(v, image) and v.shape[0]:
            self._refuse_contradiction(v, image, name)
        return image

    def _refuse_contradiction(self, v: Array, image: Array, name: str) -> None:
        backend, constant = get_backend(v), self.layer.lipschitz
        xp = backend.xp
        before, after = (safe_sample_norms(xp, backend.stop_gradient(a)) for a in (v, image))
        allowed = constant * (1 + max(1e-6, 1e3 * unit_roundoff(backend, v.dtype)))
        beyond = after > allowed * before + float(xp.finfo(v.dtype).smallest_normal)
        if bool(xp.any(beyond)):
            ratio = float(xp.max(xp.where(beyond, after / xp.where(before > 0, before, after), xp.zeros_like(after))))
            raise NotContractiveError(
                f"a product of {name} of {self.layer!r} expanded by {ratio:.4g}, more than the constant {constant:.4g} "
                "that the layer states. State a larger one, or divide the layer by the excess."
            )


def _bend(value: Any, name: str) -> float:
    """Return the constant of a Jacobian; infinity says that there is none."""
    try:
        bend = float(value)
    except (TypeError, ValueError):
        bend = math.nan
    if not bend >= 0:
        raise InvalidArgumentError(f"{name} must be a number that is not negative, or infinite, got {value!r}.")
    return bend
