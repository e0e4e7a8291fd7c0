"""Linear operators, known by their products with vectors, and linear layers, which add a bias and act on samples."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import Copyable, require_finite, require_floating, require_same_device, require_same_dtype
from iresnet_core.errors import ShapeError, UnknownLipschitzError
from iresnet_core.results import LipschitzBound

__all__ = ["LinearLayer", "LinearOperator"]


class LinearOperator(Copyable, ABC):
    """A linear map, or a stack of them, known by its products with vectors.

    Attributes
    ----------
    backend : Backend
        The backend whose arrays the products take and return.
    like : array
        Gives the dtype and device of those arrays.
    shape : (int, int)
        Rows m and columns n.
    batch_shape : tuple of int
        Shape of the stack; () for a single operator.
    """

    backend: Backend
    like: Array
    shape: tuple[int, int]
    batch_shape: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__} of shape {(*self.batch_shape, *self.shape)}"

    @property
    def entries(self) -> Array | None:
        """The array that the operator is made of, if there is one."""
        return None

    @abstractmethod
    def matvec(self, v: Array) -> Array:
        """Multiply vectors v (..., n); returns (..., m)."""

    @abstractmethod
    def rmatvec(self, u: Array) -> Array:
        """Multiply vectors u (..., m) by the transpose; returns (..., n)."""

    def matrix(self) -> Array:
        """Return the explicit matrix (m, n), from min(m, n) products unless it is at hand."""
        m, n = self.shape
        xp = self.backend.xp
        if n <= m:
            return xp.matrix_transpose(self.matvec(_identity(self, n)))
        return self.rmatvec(_identity(self, m))


def _identity(operator: LinearOperator, n: int) -> Array:
    return operator.backend.xp.eye(n, dtype=operator.like.dtype, device=device_of(operator.like))


class LinearLayer(LinearOperator):
    """A linear operator with a bias that acts on samples; what a branch is made of.

    Attributes
    ----------
    weight : array
        Dense weight or convolution kernel.
    bias : array or None
        Added to the product.
    input_shape, output_shape : tuple of int
        Shape of one sample before and after, without the batch axis.
    """

    weight: Array
    bias: Array | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    _geometry: ClassVar[tuple[str, ...]]
    """Names of the attributes that do not depend on the parameters."""
    _bound: LipschitzBound | None = None
    _constant: float | None = None

    @property
    def entries(self) -> Array:
        """The weight."""
        return self.weight

    @abstractmethod
    def apply(self, v: Array) -> Array:
        """Linear part on arrays (..., *input_shape)."""

    @abstractmethod
    def adjoint(self, u: Array) -> Array:
        """Transpose of `apply` on arrays (..., *output_shape)."""

    @abstractmethod
    def weight_gradient(self, x: Array, u: Array, total: Array | None = None) -> Array:
        """Return the derivative of ``sum(u * apply(x))`` by the weight, added to `total`.

        x (..., *input_shape) and u (..., *output_shape), where axes in front are summed over.
        """

    @abstractmethod
    def bias_gradient(self, u: Array) -> Array:
        """Return the derivative of ``sum(u * biased(y))`` by the bias, for u (..., *output_shape)."""

    def with_parameters(self, weight: Array, bias: Array | None, bound: LipschitzBound | None = None) -> Self:
        """Return the same layer with other parameters and, if known, their certified bound.

        They are not checked: computed from this layer's own, they are finite, and nobody else has them.
        """
        layer = object.__new__(type(self))
        # By name, because the compiler of older PyTorch cannot follow `__dict__`.
        for name in self._geometry:
            setattr(layer, name, getattr(self, name))
        layer.weight = layer.like = weight
        layer.bias, layer._bound, layer._constant = bias, bound, None
        return layer

    def with_bias(self, bias: Array | None) -> Self:
        """Return the same layer with another bias; its bound and constant are the same."""
        return self.with_arrays(self.weight, bias)

    def with_arrays(self, weight: Array, bias: Array | None) -> Self:
        """Return the same layer with other arrays of the same weight, and so of the same bound and constant."""
        layer = self.with_parameters(weight, bias, self._bound)
        layer._constant = self._constant
        return layer

    @abstractmethod
    def biased(self, y: Array) -> Array:
        """Add the bias to ``y`` (..., *output_shape)."""

    def __call__(self, x: Array) -> Array:
        """Map samples ``x`` (batch, *input_shape) to (batch, *output_shape)."""
        get_backend(self.weight, x)
        if tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"{self!r} takes samples of shape {self.input_shape}, got an array of shape {tuple(x.shape)}."
            )
        require_same_dtype(x, "the input", self.weight, "the weight")
        require_same_device(self.backend, x, "the input", self.weight, "the weight")
        return self._affine(x)

    def _affine(self, x: Array) -> Array:
        return self.biased(self.apply(x))

    @property
    def bound(self) -> LipschitzBound:
        """Certified bound on the operator norm, computed once (`lipschitz_bound` with method "auto")."""
        if self._bound is None:
            from iresnet_core.lipschitz import lipschitz_bound

            backend = self.backend
            if backend.is_constant(self.weight) and (
                backend.is_tracing() or not backend.may_differentiate(self.weight)
            ):
                self._bound = backend.concretely(lambda: lipschitz_bound(self))
            else:
                self._bound = lipschitz_bound(self)
        return self._bound

    @property
    def lipschitz(self) -> float:
        """Certified Lipschitz constant: `bound` as a float.

        Raises
        ------
        UnknownLipschitzError
            In a program that is being compiled, for weights that are computed there and were not normalised.
        """
        if self._constant is None:
            backend = self.backend
            if not self.has_constant:
                raise UnknownLipschitzError(
                    f"the constant of {self!r} has no value while the program is compiled or its weights are batched "
                    "by vmap. Normalise the weights, whose cap is then known, or pass lipschitz=; for a layer that is "
                    "made before, evaluate its `lipschitz` once before compiling."
                )
            value = self.bound.value
            self._constant = backend.concretely(lambda: float(backend.stop_gradient(value)))
        return self._constant

    @property
    def has_constant(self) -> bool:
        """Whether `lipschitz` has a value here."""
        backend = self.backend
        return self._constant is not None or not backend.is_tracing(self.weight) or backend.is_constant(self.weight)

    def capped(self, constant: float) -> "LinearLayer":
        """Return the layer itself, noting a constant that its weights have by construction."""
        self._constant = constant
        return self

    def astype(self, dtype: Any) -> "LinearLayer":
        """Return the layer in another dtype; its bound is certified anew, unless the weights stay what they are."""
        xp = self.backend.xp
        if dtype == self.weight.dtype:
            return self
        bound = self._bound
        if bound is not None:
            wider = xp.finfo(dtype).bits > xp.finfo(self.weight.dtype).bits
            bound = bound._replace(value=xp.astype(bound.value, dtype)) if wider else None
        bias = None if self.bias is None else xp.astype(self.bias, dtype)
        layer = self.with_parameters(xp.astype(self.weight, dtype), bias, bound)
        if bound is not None:
            layer._constant = self._constant
        return layer

    def _adopt(self, weight: Array, bias: Array | None, bias_shape: tuple[int, ...], checked: bool = False) -> None:
        """Check and keep the parameters."""
        backend = get_backend(weight) if bias is None else get_backend(weight, bias)
        if checked:
            self.backend, self.bias = backend, bias
            self.weight = self.like = weight
            return
        require_floating(backend, weight, "weight")
        require_finite(backend, weight, "weight")
        if bias is not None:
            require_floating(backend, bias, "bias")
            require_finite(backend, bias, "bias")
            require_same_dtype(bias, "the bias", weight, "the weight")
            require_same_device(backend, bias, "the bias", weight, "the weight")
            if tuple(bias.shape) != bias_shape:
                raise ShapeError(f"bias must have shape {bias_shape}, got {tuple(bias.shape)}.")
            bias = backend.frozen(bias)
        self.backend = backend
        self.weight = self.like = backend.frozen(weight)
        self.bias = bias
