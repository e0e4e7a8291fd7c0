"""Linear algebra of the array API standard (its extension ``linalg``), from TensorFlow's own functions."""

import math
from typing import Any, Literal, NamedTuple

import tensorflow as tf

__all__ = [
    "cholesky",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "inv",
    "matmul",
    "matrix_norm",
    "matrix_transpose",
    "outer",
    "qr",
    "slogdet",
    "solve",
    "svd",
    "svdvals",
    "tensordot",
    "trace",
    "vecdot",
    "vector_norm",
]

Array = Any
Axis = int | tuple[int, ...] | None


class EighResult(NamedTuple):
    """Eigenvalues in ascending order and eigenvectors, one per column."""

    eigenvalues: Array
    eigenvectors: Array


class QRResult(NamedTuple):
    """Orthonormal columns and the triangle."""

    Q: Array
    R: Array


class SlogdetResult(NamedTuple):
    """Sign (or phase) and logarithm of the modulus of a determinant."""

    sign: Array
    logabsdet: Array


class SVDResult(NamedTuple):
    """Singular vectors and values; the right ones are the rows of `Vh`."""

    U: Array
    S: Array
    Vh: Array


def matmul(x1: Array, x2: Array, /) -> Array:
    """Multiply matrices, or a matrix and a vector, or two vectors."""
    left, right = len(x1.shape) == 1, len(x2.shape) == 1
    if not (left or right):
        return _product(x1, x2)
    product = _product(x1[None, :] if left else x1, x2[:, None] if right else x2)
    return tf.squeeze(product, [-2] * left + [-1] * right)


def _product(x1: Array, x2: Array) -> Array:
    """Multiply matrices; where one stands against many, TensorFlow 2.21 with oneDNN crashed in float32."""
    if len(x1.shape) < 4:
        return tf.matmul(x1, x2)
    sizes1, sizes2 = tf.shape(x1), tf.shape(x2)
    if set(x2.shape[:-2]) <= {1}:  # the rows of all matrices by that one
        rows = tf.reshape(x1, tf.stack([tf.reduce_prod(sizes1[:-1]), sizes1[-1]]))
        product = tf.matmul(rows, tf.reshape(x2, sizes2[-2:]))
        more = [1] * max(0, len(x2.shape) - len(x1.shape))
        return tf.reshape(product, tf.concat([more, sizes1[:-1], sizes2[-1:]], 0))
    if None in x2.shape[:-2]:  # it may be one
        batch = tf.broadcast_dynamic_shape(sizes1[:-2], sizes2[:-2])
        x2 = tf.broadcast_to(x2, tf.concat([batch, sizes2[-2:]], 0))
    return tf.matmul(x1, x2)


def matrix_transpose(x: Array, /) -> Array:
    """Exchange the last two axes."""
    return tf.linalg.matrix_transpose(x)


def tensordot(x1: Array, x2: Array, /, *, axes: Any = 2) -> Array:
    """Sum of products over pairs of axes."""
    return tf.tensordot(x1, x2, axes)


def outer(x1: Array, x2: Array, /) -> Array:
    """Products of every entry of a vector with every entry of another."""
    return x1[:, None] * x2[None, :]


def vecdot(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    """Inner products of vectors; the first ones are conjugated."""
    first = tf.math.conj(x1) if x1.dtype.is_complex else x1
    return tf.reduce_sum(first * x2, axis=axis)


def vector_norm(x: Array, /, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Array:
    """Norm of vectors; the derivative of the Euclidean one at 0 is taken to be 0."""
    size = tf.abs(x) if x.dtype.is_complex or ord != 2 else x
    if ord == 2:
        square = tf.reduce_sum(size * size, axis=axis, keepdims=keepdims)
        positive = square > 0
        return tf.where(positive, tf.sqrt(tf.where(positive, square, tf.ones_like(square))), square)
    if ord == math.inf:
        return tf.reduce_max(size, axis=axis, keepdims=keepdims)
    if ord == -math.inf:
        return tf.reduce_min(size, axis=axis, keepdims=keepdims)
    if ord == 0:
        return tf.reduce_sum(tf.cast(size != 0, size.dtype), axis=axis, keepdims=keepdims)
    return tf.reduce_sum(size**ord, axis=axis, keepdims=keepdims) ** (1 / ord)


def matrix_norm(x: Array, /, *, keepdims: bool = False, ord: float | Literal["fro", "nuc"] = "fro") -> Array:
    """Norm of matrices: Frobenius, nuclear, spectral (2), or the largest sum of a column (1) or row (inf)."""
    if ord == "fro":
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord in (1, math.inf):
        value = tf.reduce_max(tf.reduce_sum(tf.abs(x), axis=-2 if ord == 1 else -1), axis=-1)
    elif ord in (2, "nuc"):
        values = svdvals(x)
        value = tf.reduce_max(values, axis=-1) if ord == 2 else tf.reduce_sum(values, axis=-1)
    else:
        raise ValueError(f"matrix_norm has the orders 'fro', 'nuc', 1, 2 and inf here, got {ord!r}.")
    return value[..., None, None] if keepdims else value


def svd(x: Array, /, *, full_matrices: bool = True) -> SVDResult:
    """Singular value decomposition x = U diag(S) Vh, with the values in descending order."""
    S, U, V = tf.linalg.svd(x, full_matrices=full_matrices)
    return SVDResult(U, S, tf.linalg.adjoint(V))


def svdvals(x: Array, /) -> Array:
    """Singular values in descending order."""
    return tf.linalg.svd(x, compute_uv=False)


def slogdet(x: Array, /) -> SlogdetResult:
    """Sign and log|det|; in a traced program of real matrices by elimination, since XLA has no determinant."""
    if tf.executing_eagerly() or x.dtype.is_complex:
        sign, value = tf.linalg.slogdet(x)
        return SlogdetResult(sign, tf.math.real(value))
    return SlogdetResult(*_eliminated(x))


@tf.custom_gradient
def _eliminated(x: Array) -> tuple[tuple[Array, Array], Any]:
    """Sign and log|det| of real matrices (..., n, n) by Gaussian elimination with partial pivoting."""
    stack, n = tuple(x.shape[:-2]), x.shape[-1]
    rows = tf.reshape(tf.range(n), (1,) * len(stack) + (n,))

    def step(k: Array, matrix: Array, sign: Array, value: Array) -> tuple[Array, ...]:
        column = tf.abs(tf.gather(matrix, k, axis=-1))
        pivot_row = tf.argmax(tf.where(rows >= k, column, -tf.ones_like(column)), axis=-1, output_type=tf.int32)[
            ..., None
        ]
        order = tf.where(rows == k, pivot_row, tf.where(rows == pivot_row, k, rows))
        matrix = tf.gather(matrix, order, axis=-2, batch_dims=len(stack))
        column, row = tf.gather(matrix, k, axis=-1), tf.gather(matrix, k, axis=-2)
        pivot = tf.gather(row, k, axis=-1)
        divisor = tf.where(pivot == 0, tf.ones_like(pivot), pivot)[..., None]
        factors = tf.where(rows > k, column / divisor, tf.zeros_like(column))
        matrix = matrix - factors[..., :, None] * row[..., None, :]
        sign = sign * tf.sign(pivot) * tf.cast(tf.where(pivot_row[..., 0] == k, 1, -1), x.dtype)
        return k + 1, matrix, sign, value + tf.math.log(tf.abs(pivot))

    corner = x[..., 0, 0]
    start = (tf.constant(0), x, tf.ones_like(corner), tf.zeros_like(corner))
    _, _, sign, value = tf.while_loop(lambda k, *_: k < n, step, start, maximum_iterations=n)

    def gradient(_: Array, cotangent: Array) -> Array:
        return cotangent[..., None, None] * tf.linalg.matrix_transpose(tf.linalg.inv(x))

    return (sign, value), gradient


def det(x: Array, /) -> Array:
    """Determinant."""
    sign, value = slogdet(x)
    return sign * tf.cast(tf.exp(value), sign.dtype)


def inv(x: Array, /) -> Array:
    """Inverse matrix."""
    return tf.linalg.inv(x)


def solve(x1: Array, x2: Array, /) -> Array:
    """Solve x1 z = x2; x2 is a vector or holds matrices."""
    vector = len(x2.shape) == 1
    right = x2[:, None] if vector else x2
    if tuple(x1.shape[:-2]) != tuple(right.shape[:-2]):
        stack = tf.broadcast_dynamic_shape(tf.shape(x1)[:-2], tf.shape(right)[:-2])
        x1, right = (tf.broadcast_to(x, tf.concat([stack, tf.shape(x)[-2:]], 0)) for x in (x1, right))
    solution = tf.linalg.solve(x1, right)
    return solution[..., 0] if vector else solution


def cholesky(x: Array, /, *, upper: bool = False) -> Array:
    """Triangular factor of positive definite matrices."""
    factor = tf.linalg.cholesky(x)
    return tf.linalg.adjoint(factor) if upper else factor


def qr(x: Array, /, *, mode: Literal["reduced", "complete"] = "reduced") -> QRResult:
    """Orthonormal columns times a triangle."""
    return QRResult(*tf.linalg.qr(x, full_matrices=mode == "complete"))


def eigh(x: Array, /) -> EighResult:
    """Eigenvalues and eigenvectors of symmetric or Hermitian matrices."""
    return EighResult(*tf.linalg.eigh(x))


def eigvalsh(x: Array, /) -> Array:
    """Eigenvalues of symmetric or Hermitian matrices, in ascending order; real."""
    return tf.math.real(tf.linalg.eigvalsh(x))


def diagonal(x: Array, /, *, offset: int = 0) -> Array:
    """Diagonals of matrices."""
    return tf.linalg.diag_part(x, k=offset)


def trace(x: Array, /, *, offset: int = 0, dtype: Any = None) -> Array:
    """Sums of diagonals."""
    diagonals = diagonal(x, offset=offset)
    return tf.reduce_sum(diagonals if dtype is None else tf.cast(diagonals, dtype), axis=-1)
