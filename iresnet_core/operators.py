"""Linear operators: dense layers, stacks of matrices, and whatever has shape, matvec and rmatvec.

Every operator has ``shape`` (m, n), flat products ``matvec`` (..., n) -> (..., m) and ``rmatvec`` (..., m) -> (..., n);
a layer also acts on samples, ``layer(x)``, with ``apply`` as its linear part and ``adjoint`` as the transpose of that.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any, cast

from iresnet_core.backends import Array, Backend, backend, device_of, get_backend
from iresnet_core.checks import require_finite, require_floating, require_same_device, require_same_dtype
from iresnet_core.copying import Copyable
from iresnet_core.errors import DtypeError, ShapeError, UnknownArrayError, UnknownLipschitzError
from iresnet_core.results import LipschitzBound

__all__ = [
    "Dense",
    "ForeignOperator",
    "LinearLayer",
    "LinearOperator",
    "Matrices",
    "Scaled",
    "Transposed",
    "as_operator",
    "constant_operator",
]


class LinearOperator(Copyable, ABC):
    """A linear map, or a stack of them, known by its products with vectors.

    Attributes
    ----------
    engine : Backend
        The engine whose arrays the products take and return.
    like : array
        Gives the dtype and device of those arrays.
    shape : (int, int)
        Rows m and columns n.
    batch_shape : tuple of int
        Shape of the stack; () for a single operator.
    """

    engine: Backend
    like: Array
    shape: tuple[int, int]
    batch_shape: tuple[int, ...] = ()

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
        xp = self.engine.xp
        if n <= m:
            return xp.matrix_transpose(self.matvec(_identity(self, n)))
        return self.rmatvec(_identity(self, m))


def _identity(operator: LinearOperator, n: int) -> Array:
    return operator.engine.xp.eye(n, dtype=operator.like.dtype, device=device_of(operator.like))


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
    def with_parameters(self, weight: Array, bias: Array | None, bound: LipschitzBound | None = None) -> "LinearLayer":
        """Return the same layer with other parameters (and, if known, their certified bound)."""

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
        require_same_device(self.engine, x, "the input", self.weight, "the weight")
        return self._affine(x)

    def _affine(self, x: Array) -> Array:
        return self.biased(self.apply(x))

    @property
    def bound(self) -> LipschitzBound:
        """Certified bound on the operator norm, computed once (`lipschitz_bound` with method "auto")."""
        if self._bound is None:
            from iresnet_core.bounds import lipschitz_bound

            engine = self.engine
            if engine.is_constant(self.weight) and (engine.is_tracing() or not engine.may_differentiate(self.weight)):
                self._bound = engine.at_compile_time(lambda: lipschitz_bound(self))
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
            engine = self.engine
            if not self.has_constant:
                raise UnknownLipschitzError(
                    f"the constant of {self!r} has no value while the program is compiled or its weights are batched "
                    "by vmap. Normalise the weights, whose cap is then known, or pass lipschitz=; for a layer that is "
                    "made before, evaluate its `lipschitz` once before compiling."
                )
            value = self.bound.value
            self._constant = engine.at_compile_time(lambda: float(engine.stop_gradient(value)))
        return self._constant

    @property
    def has_constant(self) -> bool:
        """Whether `lipschitz` has a value here."""
        engine = self.engine
        return self._constant is not None or not engine.is_tracing(self.weight) or engine.is_constant(self.weight)

    def capped(self, constant: float) -> "LinearLayer":
        """Return the layer itself, noting a constant that its weights have by construction."""
        self._constant = constant
        return self

    def astype(self, dtype: Any) -> "LinearLayer":
        """Return the layer in another dtype; its bound is certified anew, unless the weights stay what they are."""
        xp = self.engine.xp
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

    def _replace_parameters(self, weight: Array, bias: Array | None, bound: LipschitzBound | None) -> None:
        """Take parameters that were computed from this layer's own: nobody else has them, and they are finite."""
        self.weight = self.like = weight
        self.bias, self._bound, self._constant = bias, bound, None

    def _adopt(self, weight: Array, bias: Array | None, bias_shape: tuple[int, ...], checked: bool = False) -> None:
        """Check and keep the parameters."""
        engine = get_backend(weight) if bias is None else get_backend(weight, bias)
        if checked:
            self.engine, self.bias = engine, bias
            self.weight = self.like = weight
            return
        require_floating(engine, weight, "weight")
        require_finite(engine, weight, "weight")
        if bias is not None:
            require_floating(engine, bias, "bias")
            require_finite(engine, bias, "bias")
            require_same_dtype(bias, "the bias", weight, "the weight")
            require_same_device(engine, bias, "the bias", weight, "the weight")
            if tuple(bias.shape) != bias_shape:
                raise ShapeError(f"bias must have shape {bias_shape}, got {tuple(bias.shape)}.")
            bias = engine.frozen(bias)
        self.engine = engine
        self.weight = self.like = engine.frozen(weight)
        self.bias = bias


class Dense(LinearLayer):
    """Dense layer x W^T + b.

    Parameters
    ----------
    weight : array (out, in)
        Real floating point.
    bias : array (out,), optional
        Of the weight's dtype.
    checked : bool
        Whether the parameters are known to be finite, and nobody changes them while the layer is in use: then they are
        taken as they are, as in a training step.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, MixedBackendsError
        If the parameters have the wrong shape or dtype, are not finite, or come from two frameworks.

    Notes
    -----
    The parameters are taken over as constants: NumPy arrays are copied, so that a certificate, once computed, stays
    true whatever happens to the caller's array.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Dense(np.array([[0.0, 2.0], [1.0, 0.0]]))
    >>> layer(np.array([[1.0, 3.0]]))
    array([[6., 1.]])
    >>> round(layer.lipschitz, 6)
    2.0
    """

    def __init__(self, weight: Array, bias: Array | None = None, *, checked: bool = False) -> None:
        get_backend(weight)
        if len(weight.shape) != 2 or 0 in weight.shape:
            raise ShapeError(f"a dense weight must have shape (out, in), both positive, got {tuple(weight.shape)}.")
        self._adopt(weight, bias, (weight.shape[0],), checked)
        self.shape = (weight.shape[0], weight.shape[1])
        self.output_shape, self.input_shape = (self.shape[0],), (self.shape[1],)

    def __repr__(self) -> str:
        return f"Dense({self.shape[1]} -> {self.shape[0]})"

    def _affine(self, x: Array) -> Array:
        return self.engine.affine(x, self.weight, self.bias)

    def apply(self, v: Array) -> Array:
        """Return v W^T for v (..., in)."""
        return _by_rows(self.engine.xp, v, self.shape[0], lambda rows: self.engine.affine(rows, self.weight))

    def adjoint(self, u: Array) -> Array:
        """Return u W for u (..., out)."""
        return _by_rows(self.engine.xp, u, self.shape[1], lambda rows: self.engine.xp.matmul(rows, self.weight))

    matvec = apply
    rmatvec = adjoint

    def biased(self, y: Array) -> Array:
        """Add the bias to y (..., out)."""
        return y if self.bias is None else y + self.bias

    def matrix(self) -> Array:
        """Return the weight (out, in)."""
        return self.weight

    def with_parameters(self, weight: Array, bias: Array | None, bound: LipschitzBound | None = None) -> "Dense":
        """Return a layer with other parameters."""
        layer = copy(self)
        layer._replace_parameters(weight, bias, bound)
        return layer


def _by_rows(xp: Any, v: Array, width: int, product: Callable[[Array], Array]) -> Array:
    """Multiply the last axis of v; as one matrix product, which stacks of small ones would not be."""
    if v.ndim <= 2:
        return product(v)
    return xp.reshape(product(xp.reshape(v, (-1, v.shape[-1]))), (*v.shape[:-1], width))


class Matrices(LinearOperator):
    """One matrix (m, n) or a stack of matrices (..., m, n), each with its own vectors.

    `checked` says that the entries are known to be finite.
    """

    def __init__(self, array: Array, *, checked: bool = False) -> None:
        engine = get_backend(array)
        if len(array.shape) < 2 or 0 in array.shape[-2:] or None in tuple(array.shape):
            raise ShapeError(
                f"expected matrices of known shape (..., m, n), m and n positive, got {tuple(array.shape)}."
            )
        require_floating(engine, array, "the matrix")
        if not checked:
            require_finite(engine, array, "the matrix")
        self.engine, self.like, self.array = engine, array, array
        self.shape = (array.shape[-2], array.shape[-1])
        self.batch_shape = tuple(array.shape[:-2])

    @property
    def entries(self) -> Array:
        """The array."""
        return self.array

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n), one vector a matrix."""
        xp = self.engine.xp
        if self.batch_shape:
            return xp.matmul(self.array, v[..., None])[..., 0]
        if v.ndim == 1:
            return xp.matmul(self.array, v)
        return xp.matmul(v, xp.matrix_transpose(self.array))

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) by the transposes."""
        xp = self.engine.xp
        if self.batch_shape:
            return xp.matmul(xp.matrix_transpose(self.array), u[..., None])[..., 0]
        return xp.matmul(u, self.array)

    def matrix(self) -> Array:
        """Return the array itself."""
        return self.array


class Transposed(LinearOperator):
    """The transpose of an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.engine, self.like, self.batch_shape = operator.engine, operator.like, operator.batch_shape
        self.shape = (operator.shape[1], operator.shape[0])

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n) by the transpose of the operator (n, m)."""
        return self.operator.rmatvec(v)

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) by the operator."""
        return self.operator.matvec(u)


class Scaled(LinearOperator):
    """An operator divided by a power of two."""

    def __init__(self, operator: LinearOperator, scale: Array) -> None:
        self.operator, self.scale = operator, scale
        self.engine, self.like, self.batch_shape = operator.engine, operator.like, operator.batch_shape
        self.shape = operator.shape

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n) / scale, so that a product of huge or tiny entries stays in range."""
        return self.operator.matvec(v / self.scale)

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) / scale by the transpose."""
        return self.operator.rmatvec(u / self.scale)


class ForeignOperator(LinearOperator):
    """An object with shape, matvec and rmatvec on single vectors, such as a SciPy LinearOperator."""

    def __init__(self, operator: Any, like: Array) -> None:
        shape = tuple(operator.shape)
        if len(shape) != 2 or not all(int(n) > 0 for n in shape):
            raise ShapeError(f"an operator must have shape (m, n), both positive, got {shape}.")
        self.operator, self.like = operator, like
        self.engine = get_backend(like)
        require_floating(self.engine, like, "`like`")
        self.shape = (int(shape[0]), int(shape[1]))

    def matvec(self, v: Array) -> Array:
        """Multiply v (n,) or every row of v (k, n)."""
        return self._product(self.operator.matvec, v, "matvec", self.shape[0])

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (m,) or every row of u (k, m) by the transpose."""
        return self._product(self.operator.rmatvec, u, "rmatvec", self.shape[1])

    def _product(self, product: Any, v: Array, name: str, length: int) -> Array:
        if v.ndim > 1:
            rows = [self._product(product, v[i, ...], name, length) for i in range(v.shape[0])]
            return self.engine.xp.stack(rows)
        try:
            out = product(v)
        except NotImplementedError:
            raise UnknownArrayError(
                f"{self.operator!r} has no {name}; an operator needs shape, matvec and rmatvec."
            ) from None
        get_backend(self.like, out)
        if tuple(out.shape) != (length,):
            raise ShapeError(f"{name} of {self.operator!r} returned shape {tuple(out.shape)}, expected ({length},).")
        if self.engine.xp.isdtype(out.dtype, "complex floating"):
            raise DtypeError(f"{name} of {self.operator!r} returned complex numbers; real operators are supported.")
        require_finite(self.engine, out, f"{name} of {self.operator!r}")
        return self.engine.xp.astype(out, self.like.dtype)


def as_operator(A: Any, *, like: Array | None = None) -> LinearOperator:
    """Return `A` as a linear operator.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, SciPy sparse matrix or LinearOperator, or any object with
        ``shape`` (m, n), ``matvec`` and ``rmatvec`` on single vectors.
    like : array, optional
        For a foreign operator: an array with the engine, dtype and device of its vectors; default NumPy float64 (or
        float32, where ``A.dtype`` says so).

    Raises
    ------
    UnknownArrayError
        If `A` is none of these.
    DtypeError
        If `A` is complex.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import LinearOperator
    >>> shift = LinearOperator((3, 3), matvec=lambda v: np.roll(v, 1), rmatvec=lambda v: np.roll(v, -1), dtype=float)
    >>> as_operator(shift).matvec(np.array([1.0, 2.0, 3.0]))
    array([3., 1., 2.])
    """
    if isinstance(A, LinearOperator):
        return A
    if hasattr(A, "operators") and hasattr(A, "lipschitz"):
        raise UnknownArrayError(
            f"a {type(A).__name__} is no linear operator: its linear layers are its `operators`, its certified "
            "constant is its `lipschitz`."
        )
    if "scipy.sparse" in sys.modules and sys.modules["scipy.sparse"].issparse(A):
        from scipy.sparse.linalg import aslinearoperator

        A = aslinearoperator(A)
    if all(hasattr(A, name) for name in ("shape", "matvec", "rmatvec")):
        return ForeignOperator(A, _vector_like(A) if like is None else like)
    try:
        return Matrices(A)
    except UnknownArrayError as error:
        lacking = ", ".join(name for name in ("shape", "matvec", "rmatvec") if not hasattr(A, name))
        raise UnknownArrayError(
            f"{error} An operator needs shape, matvec and rmatvec; this {type(A).__name__} lacks {lacking}."
        ) from None


def constant_operator(operator: LinearOperator) -> LinearOperator:
    """Return the operator with its entries as constants for differentiation."""
    engine = operator.engine
    if operator.entries is None or not engine.may_differentiate(operator.entries):
        return operator
    entries = engine.stop_gradient(operator.entries)
    if isinstance(operator, LinearLayer):
        return operator.with_parameters(entries, None)
    return Matrices(entries)


def _vector_like(A: Any) -> Array:
    """A NumPy array with the dtype that a foreign operator states; float64 where it states none."""
    xp = cast(Any, backend("numpy").xp)
    kind = str(getattr(A, "dtype", None))
    if "complex" in kind:
        raise DtypeError(f"the operator has dtype {kind}; real operators are supported.")
    return xp.zeros((1,), dtype=xp.float32 if kind == "float32" else xp.float64)
