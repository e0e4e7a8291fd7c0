"""Linear operators that are no layers: stacks of matrices, transposes, and whatever has shape, matvec and rmatvec.

Every operator has ``shape`` (m, n), flat products ``matvec`` (..., n) -> (..., m) and ``rmatvec`` (..., m) -> (..., n);
a layer also acts on samples, ``layer(x)``, with ``apply`` as its linear part and ``adjoint`` as the transpose of that.
"""

import sys
from typing import Any, cast

from iresnet_core.backends import Array, backend, get_backend
from iresnet_core.common import require_finite, require_floating
from iresnet_core.errors import DtypeError, ShapeError, UnknownArrayError
from iresnet_core.operators.base import LinearLayer, LinearOperator

__all__ = [
    "ForeignOperator",
    "Matrices",
    "Scaled",
    "Transposed",
    "as_operator",
    "detached_operator",
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
        """Multiply v (..., n), one vector a matrix."""
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
    """An operator divided by a power of two."""

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


class ForeignOperator(LinearOperator):
    """An object with shape, matvec and rmatvec on single vectors, such as a SciPy LinearOperator."""

    def __init__(self, operator: Any, like: Array) -> None:
        shape = tuple(operator.shape)
        if len(shape) != 2 or not all(int(n) > 0 for n in shape):
            raise ShapeError(f"an operator must have shape (m, n), both positive, got {shape}.")
        self.operator, self.like = operator, like
        self.backend = get_backend(like)
        require_floating(self.backend, like, "`like`")
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
            return self.backend.xp.stack(rows)
        try:
            out = product(v)
        except NotImplementedError:
            raise UnknownArrayError(
                f"{self.operator!r} has no {name}; an operator needs shape, matvec and rmatvec."
            ) from None
        get_backend(self.like, out)
        if tuple(out.shape) != (length,):
            raise ShapeError(f"{name} of {self.operator!r} returned shape {tuple(out.shape)}, expected ({length},).")
        if self.backend.xp.isdtype(out.dtype, "complex floating"):
            raise DtypeError(f"{name} of {self.operator!r} returned complex numbers; real operators are supported.")
        require_finite(self.backend, out, f"{name} of {self.operator!r}")
        return self.backend.xp.astype(out, self.like.dtype)


def as_operator(A: Any, *, like: Array | None = None) -> LinearOperator:
    """Return `A` as a linear operator: an object with ``shape`` (m, n), products A v and products A^T u.

    `spectral_norm`, `lipschitz_bound` and `normalize` call it on what they are given.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, SciPy sparse matrix or LinearOperator, or any object with
        ``shape`` (m, n), ``matvec`` and ``rmatvec`` on single vectors.
    like : array, optional
        For a foreign operator: an array with the backend, dtype and device of its vectors; default NumPy float64 (or
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
