"""Linear operators that are no layers: stacks of matrices, transposes, and whatever has shape, matvec and rmatvec.

Every operator has ``shape`` (m, n), flat products ``matvec`` (..., n) -> (..., m) and ``rmatvec`` (..., m) -> (..., n);
a layer also acts on samples, ``layer(x)``, with ``apply`` as its linear part and ``adjoint`` as the transpose of that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from iresnet_core.backends import Array, backend, get_backend
from iresnet_core.common import require_finite, require_floating
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    IResNetError,
    MissingProductError,
    ShapeError,
    UnknownArrayError,
)
from iresnet_core.operators.base import LinearLayer, LinearOperator
from iresnet_core.operators.sparse import SparseMatrix, is_sparse

__all__ = [
    "ForeignOperator",
    "Matrices",
    "Products",
    "Scaled",
    "Transposed",
    "as_operator",
    "detached_operator",
    "is_operator",
]


class Matrices(LinearOperator):
    """One matrix (m, n) or a stack of matrices (..., m, n), each with its own vectors.

    `checked` says that the entries are known to be finite.
    """

    def __init__(self, array: Array, *, checked: bool = False) -> None:
        backend = get_backend(array)
        if len(array.shape) < 2 or 0 in array.shape[-2:] or None in tuple(array.shape):
            raise ShapeError(
                f"expected matrices of known shape (..., m, n), m and n positive, got {tuple(array.shape)}."
            )
        require_floating(backend, array, "the matrix")
        if not checked:
            require_finite(backend, array, "the matrix")
        self.backend, self.like, self.array = backend, array, array
        self.shape = (array.shape[-2], array.shape[-1])
        self.batch_shape = tuple(array.shape[:-2])

    @property
    def entries(self) -> Array:
        """The array."""
        return self.array

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n), one vector per matrix."""
        xp = self.backend.xp
        if self.batch_shape:
            return xp.matmul(self.array, v[..., None])[..., 0]
        if v.ndim == 1:
            return xp.matmul(self.array, v)
        return xp.matmul(v, xp.matrix_transpose(self.array))

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) by the transposes."""
        xp = self.backend.xp
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
        self.backend, self.like, self.batch_shape = operator.backend, operator.like, operator.batch_shape
        self.shape = (operator.shape[1], operator.shape[0])

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n) by the transpose of the operator (n, m)."""
        return self.operator.rmatvec(v)

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) by the operator."""
        return self.operator.matvec(u)


class Scaled(LinearOperator):
    """An operator divided by a number, such as a power of two."""

    def __init__(self, operator: LinearOperator, scale: Array) -> None:
        self.operator, self.scale = operator, scale
        self.backend, self.like, self.batch_shape = operator.backend, operator.like, operator.batch_shape
        self.shape = operator.shape

    def matvec(self, v: Array) -> Array:
        """Multiply v (..., n) / scale, so that a product of huge or tiny entries stays in range."""
        return self.operator.matvec(v / self.scale)

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (..., m) / scale by the transpose."""
        return self.operator.rmatvec(u / self.scale)


class Products(NamedTuple):
    """An operator by two functions of single vectors; `rmatvec` is None where the transpose is not known."""

    shape: tuple[int, int]
    matvec: Callable[[Array], Array]
    rmatvec: Callable[[Array], Array] | None = None


class ForeignOperator(LinearOperator):
    """An object with shape, matvec and, if it is known, rmatvec on single vectors, such as a SciPy LinearOperator."""

    def __init__(self, operator: Any, like: Array, pattern: Any = None) -> None:
        shape = tuple(operator.shape)
        if len(shape) != 2 or not all(int(n) > 0 for n in shape):
            raise ShapeError(f"an operator must have shape (m, n), both positive, got {shape}.")
        self.operator, self.like, self.pattern = operator, like, pattern
        self.backend = get_backend(like)
        require_floating(self.backend, like, "`like`")
        self.shape = (int(shape[0]), int(shape[1]))
        if pattern is not None and (not is_sparse(pattern) or tuple(pattern.shape) != self.shape):
            raise ShapeError(f"pattern must be a SciPy sparse matrix of shape {self.shape}, got {pattern!r}.")

    def __repr__(self) -> str:
        if isinstance(self.operator, Products):
            return f"operator of shape {self.shape} by products"
        return repr(self.operator)

    @property
    def has_transpose(self) -> bool:
        """Whether a product with the transpose is offered; one of SciPy may refuse it all the same."""
        return getattr(self.operator, "rmatvec", None) is not None

    def matvec(self, v: Array) -> Array:
        """Multiply v (n,) or every row of v (..., n)."""
        return self._product(self.operator.matvec, v, "matvec", self.shape[0])

    def rmatvec(self, u: Array) -> Array:
        """Multiply u (m,) or every row of u (..., m) by the transpose."""
        if not self.has_transpose:
            raise self._lacking("rmatvec")
        return self._product(self.operator.rmatvec, u, "rmatvec", self.shape[1])

    def _lacking(self, name: str) -> MissingProductError:
        return MissingProductError(
            f"{self!r} has no {name}, which is needed here; an operator needs shape, matvec and rmatvec. "
            "The log-determinant and the inverse do without rmatvec where lipschitz=, spectrum= or disc= is given."
        )

    def _product(self, product: Any, v: Array, name: str, length: int) -> Array:
        if v.ndim > 1:
            rows = [self._product(product, v[i, ...], name, length) for i in range(v.shape[0])]
            return self.backend.xp.stack(rows)
        try:
            out = product(1 * v)  # a copy, since a function may write into its argument
        except NotImplementedError:
            raise self._lacking(name) from None
        except ValueError as error:
            if isinstance(error, IResNetError):
                raise
            raise ShapeError(
                f"{name} of {self!r} failed on a vector of shape {tuple(v.shape)}, and should return one of shape "
                f"({length},): {error}"
            ) from error
        get_backend(self.like, out)
        if tuple(out.shape) != (length,):
            raise ShapeError(f"{name} of {self!r} returned shape {tuple(out.shape)}, expected ({length},).")
        if self.backend.xp.isdtype(out.dtype, "complex floating"):
            raise DtypeError(f"{name} of {self!r} returned complex numbers; real operators are supported.")
        require_finite(self.backend, out, f"{name} of {self!r}")
        return self.backend.xp.astype(out, self.like.dtype)


def as_operator(
    A: Any, *, like: Array | None = None, shape: tuple[int, int] | None = None, pattern: Any = None
) -> LinearOperator:
    """Return `A` as a linear operator: an object with ``shape`` (m, n), products A v and products A^T u.

    `spectral_norm`, `lipschitz_bound`, `normalize`, `invert` and `logdet` call it on what they are given.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, SciPy sparse matrix or LinearOperator, any object with
        ``shape`` (m, n), ``matvec`` and ``rmatvec`` on single vectors, or a pair of functions (matvec, rmatvec).
        Without ``rmatvec`` (or with None in its place) `logdet` and `invert` still answer, since
        det(I + A) = det(I + A^T), where something bounds A.
    like : array, optional
        For a foreign operator: an array with the backend, dtype and device of its vectors; default NumPy float64 (or
        float32, where ``A.dtype`` says so).
    shape : (int, int), optional
        For functions: their shape (m, n); default square, of the length of `like`. Others must have it.
    pattern : SciPy sparse matrix (m, n), optional
        For a foreign operator: where its entries may differ from zero, so that `logdet` can place its probes as it does
        for a sparse matrix.

    Raises
    ------
    UnknownArrayError
        If `A` is none of these.
    ShapeError, InvalidArgumentError
        If functions come without a size, or the pattern or `A` has another shape.
    DtypeError
        If `A` is complex.

    Examples
    --------
    >>> import numpy as np
    >>> shift = as_operator((lambda v: np.roll(v, 1), lambda u: np.roll(u, -1)), shape=(3, 3))
    >>> shift.matvec(np.array([1.0, 2.0, 3.0]))
    array([3., 1., 2.])
    """
    if shape is not None and (not isinstance(shape, tuple | list) or len(shape) != 2):
        raise ShapeError(f"shape must be a pair (m, n), got {shape!r}.")
    operator = _as_operator(A, like, shape, pattern)
    if shape is not None and operator.shape != tuple(shape):
        raise ShapeError(f"{operator!r} has shape {operator.shape}, and not {tuple(shape)}; shape= is for functions.")
    return operator


def _as_operator(A: Any, like: Array | None, shape: tuple[int, int] | None, pattern: Any) -> LinearOperator:
    if isinstance(A, LinearOperator):
        return A
    if hasattr(A, "operators") and hasattr(A, "lipschitz"):
        raise UnknownArrayError(
            f"a {type(A).__name__} is no linear operator: its linear layers are its `operators`, its certified "
            "constant is its `lipschitz`."
        )
    if is_sparse(A):
        host = _vector_like(A)
        if like is None or get_backend(like) is get_backend(host):
            return SparseMatrix(A, host if like is None else like)
        from scipy.sparse.linalg import aslinearoperator

        A, pattern = aslinearoperator(A), A
    if _are_functions(A):
        A = _by_products(A, like, shape)
    if all(hasattr(A, name) for name in ("shape", "matvec")):
        return ForeignOperator(A, _vector_like(A) if like is None else like, pattern)
    try:
        return Matrices(A)
    except UnknownArrayError as error:
        lacking = ", ".join(name for name in ("shape", "matvec", "rmatvec") if not hasattr(A, name))
        raise UnknownArrayError(
            f"{error} An operator needs shape, matvec and rmatvec; this {type(A).__name__} lacks {lacking}."
        ) from None


def is_operator(g: Any) -> bool:
    """Whether `g` is known as a linear operator, and is no branch, layer or function of samples."""
    if hasattr(g, "linearize") or hasattr(g, "operators") or isinstance(g, LinearLayer):
        return False
    return hasattr(g, "matvec") or (not callable(g) and (hasattr(g, "shape") or isinstance(g, tuple)))


def _are_functions(A: Any) -> bool:
    """Whether `A` is a pair (matvec, rmatvec), or one function that is no object with products of its own."""
    if isinstance(A, tuple) and not isinstance(A, Products):
        return 1 <= len(A) <= 2 and callable(A[0]) and all(one is None or callable(one) for one in A)
    return callable(A) and not hasattr(A, "matvec") and not hasattr(A, "shape")


def _by_products(A: Any, like: Array | None, shape: tuple[int, int] | None) -> Products:
    if shape is None:
        if like is None or len(like.shape) != 1:
            raise InvalidArgumentError(
                "functions do not say how long their vectors are: as_operator((matvec, rmatvec), shape=(d, d)), or "
                "like= with a vector of the right length, dtype and framework."
            )
        shape = (like.shape[0], like.shape[0])
    return Products((shape[0], shape[1]), *(A if isinstance(A, tuple) else (A,)))


def detached_operator(operator: LinearOperator) -> LinearOperator:
    """Return the operator with its entries as constants for differentiation."""
    backend = operator.backend
    if operator.entries is None or not backend.may_differentiate(operator.entries):
        return operator
    entries = backend.stop_gradient(operator.entries)
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
