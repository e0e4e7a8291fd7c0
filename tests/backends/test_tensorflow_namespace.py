"""The functions of TensorFlow under the names of the array API standard, against NumPy's."""

import math

import numpy as np
import pytest
import scipy.special

from iresnet_core.backends import backend as find_backend

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

backend = find_backend("tensorflow")
xp = backend.xp

MODES = {
    "eager": lambda fn: fn,
    "graph": lambda fn: tf.function(fn, autograph=False),
    "xla": lambda fn: tf.function(fn, autograph=False, jit_compile=True),
}
every_mode = pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)


def numbers(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    np.testing.assert_allclose(backend.to_numpy(actual), expected, rtol=rtol, atol=atol)


A = numbers(2, 4, 3)
SQUARE = numbers(4, 4, seed=1)
SPD = SQUARE @ SQUARE.T + np.eye(4)

SAME = {
    "sum": (lambda xp, x: xp.sum(x, axis=(0, -1)), A),
    "sum of truth values": (lambda xp, x: xp.sum(x > 0), A),
    "mean": (lambda xp, x: xp.mean(x, axis=1, keepdims=True), A),
    "max": (lambda xp, x: xp.max(x, axis=-1), A),
    "min": (lambda xp, x: xp.min(x), A),
    "std": (lambda xp, x: xp.std(x, axis=0, correction=1), A),
    "prod": (lambda xp, x: xp.prod(x, axis=0), A),
    "any": (lambda xp, x: xp.any(x > 1, axis=-1), A),
    "all": (lambda xp, x: xp.all(x > -1, axis=0, keepdims=True), A),
    "argmax": (lambda xp, x: xp.argmax(x), A),
    "argmin of an axis": (lambda xp, x: xp.argmin(x, axis=1, keepdims=True), A),
    "argsort": (lambda xp, x: xp.argsort(x, axis=1), A),
    "argsort, descending": (lambda xp, x: xp.argsort(x, descending=True), A),
    "sort": (lambda xp, x: xp.sort(x, axis=0), A),
    "take": (lambda xp, x: xp.take(x, xp.asarray([2, 0]), axis=1), A),
    "cumulative_sum": (lambda xp, x: xp.cumulative_sum(x, axis=1), A),
    "where": (lambda xp, x: xp.where(x > 0, x, 0.0), A),
    "maximum": (lambda xp, x: xp.maximum(x, 0.5), A),
    "minimum": (lambda xp, x: xp.minimum(0.5, x), A),
    "clip": (lambda xp, x: xp.clip(x, -0.5, 0.5), A),
    "pow": (lambda xp, x: xp.pow(xp.abs(x), 1.5), A),
    "log2": (lambda xp, x: xp.log2(xp.abs(x)), A),
    "logaddexp": (lambda xp, x: xp.logaddexp(x, 30 * x), A),
    "concat": (lambda xp, x: xp.concat([x, 2 * x], axis=-1), A),
    "concat, flat": (lambda xp, x: xp.concat([x, x], axis=None), A),
    "stack": (lambda xp, x: xp.stack([x, -x], axis=1), A),
    "unstack": (lambda xp, x: xp.unstack(x, axis=1)[2], A),
    "flip": (lambda xp, x: xp.flip(x), A),
    "flip an axis": (lambda xp, x: xp.flip(x, axis=-2), A),
    "roll": (lambda xp, x: xp.roll(x, 5), A),
    "roll along an axis": (lambda xp, x: xp.roll(x, -1, axis=1), A),
    "moveaxis": (lambda xp, x: xp.moveaxis(x, 0, -1), A),
    "moveaxis of two": (lambda xp, x: xp.moveaxis(x, (0, 1), (2, 0)), A),
    "permute_dims": (lambda xp, x: xp.permute_dims(x, (2, 0, 1)), A),
    "reshape": (lambda xp, x: xp.reshape(x, (-1, 6)), A),
    "broadcast_to": (lambda xp, x: xp.broadcast_to(x[:, :1, :], (5, 2, 4, 3)), A),
    "expand_dims": (lambda xp, x: xp.expand_dims(x, axis=2), A),
    "squeeze": (lambda xp, x: xp.squeeze(x[:, :1], axis=1), A),
    "tile": (lambda xp, x: xp.tile(x, (2, 1, 1, 2)), A),
    "repeat": (lambda xp, x: xp.repeat(x, 2, axis=1), A),
    "tril": (lambda xp, x: xp.tril(x, k=-1), A),
    "triu": (lambda xp, x: xp.triu(x), A),
    "full_like": (lambda xp, x: xp.full_like(x, 3), A),
    "eye": (lambda xp, x: xp.eye(4, 3, k=-1, dtype=x.dtype) * x, A),
    "arange": (lambda xp, x: xp.arange(1, 7, 2) % 2, A),
    "linspace": (lambda xp, x: xp.linspace(0, 1, 5, dtype=xp.float64), A),
    "matmul": (lambda xp, x: xp.matmul(x, xp.matrix_transpose(x)), A),
    "matrix times vector": (lambda xp, x: xp.matmul(x, x[0, 0, :]), A),
    "vector times matrix": (lambda xp, x: xp.matmul(x[0, :, 0], x), A),
    "vector times vector": (lambda xp, x: xp.matmul(x[0, :, 0], x[1, :, 0]), A),
    "tensordot": (lambda xp, x: xp.tensordot(x, x, axes=((0, 1), (0, 1))), A),
    "vecdot": (lambda xp, x: xp.linalg.vecdot(x, 2 * x), A),
    "vector_norm": (lambda xp, x: xp.linalg.vector_norm(x, axis=(0, 2), keepdims=True), A),
    "vector_norm, 1": (lambda xp, x: xp.linalg.vector_norm(x, axis=-1, ord=1), A),
    "vector_norm, inf": (lambda xp, x: xp.linalg.vector_norm(x, axis=-1, ord=math.inf), A),
    "vector_norm, 3": (lambda xp, x: xp.linalg.vector_norm(x, axis=-1, ord=3), A),
    "matrix_norm": (lambda xp, x: xp.linalg.matrix_norm(x), A),
    "matrix_norm, 2": (lambda xp, x: xp.linalg.matrix_norm(x, ord=2, keepdims=True), A),
    "matrix_norm, 1": (lambda xp, x: xp.linalg.matrix_norm(x, ord=1), A),
    "svdvals": (lambda xp, x: xp.linalg.svdvals(x), A),
    "svd": (lambda xp, x: _product_of_svd(xp, x), A),
    "trace": (lambda xp, x: xp.linalg.trace(x), A),
    "diagonal": (lambda xp, x: xp.linalg.diagonal(x, offset=1), A),
    "outer": (lambda xp, x: xp.linalg.outer(x[0, 0, :], x[1, :, 0]), A),
    "slogdet": (lambda xp, x: xp.linalg.slogdet(x)[0] * xp.linalg.slogdet(x)[1], SQUARE),
    "det": (lambda xp, x: xp.linalg.det(x), SQUARE),
    "inv": (lambda xp, x: xp.linalg.inv(x), SQUARE),
    "solve": (lambda xp, x: xp.linalg.solve(x, x[:, :2] ** 2), SQUARE),
    "solve a vector": (lambda xp, x: xp.linalg.solve(x, x[:, 0] ** 2), SQUARE),
    "cholesky": (lambda xp, x: xp.linalg.cholesky(x), SPD),
    "eigvalsh": (lambda xp, x: xp.linalg.eigvalsh(x), SPD),
    "qr": (lambda xp, x: xp.abs(xp.linalg.qr(x)[1]), SQUARE),
    "complex": (lambda xp, x: xp.abs(xp.matmul(xp.conj(x), x)), SQUARE * (1 + 2j)),
    "real": (lambda xp, x: xp.real(x) - xp.imag(x), SQUARE * (1 + 2j)),
    "vecdot, complex": (lambda xp, x: xp.linalg.vecdot(x, x), SQUARE * (1 + 2j)),
}


def _product_of_svd(xp, x):
    U, S, Vh = xp.linalg.svd(x, full_matrices=False)
    return xp.matmul(U * S[..., None, :], Vh)


@every_mode
@pytest.mark.parametrize("case", SAME)
def test_namespace_agrees_with_numpy(compiled, case):
    function, x = SAME[case]
    expected = function(find_backend("numpy").xp, x)
    actual = compiled(lambda x: function(xp, x))(tf.constant(x))
    assert actual.dtype.as_numpy_dtype == expected.dtype
    assert tuple(actual.shape) == expected.shape
    # XLA's decomposition stops at this accuracy, in float64 too.
    room = 1e-6 if compiled is MODES["xla"] and case == "svd" else 1e-12
    close(actual, expected, rtol=room, atol=room)


ELEMENTWISE = [
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "exp", "expm1", "floor"),
    *("isfinite", "isinf", "isnan", "log", "log1p", "negative", "positive", "reciprocal", "round", "sign", "sin"),
    *("sinh", "sqrt", "square", "tan", "tanh"),
]


@every_mode
def test_functions_of_every_entry(compiled, recwarn):
    host = find_backend("numpy").xp
    for name in ELEMENTWISE:
        x = np.array([1.5, 2.5, 40.0] if name == "acosh" else [-0.9, -1e-9, 0.3, 0.5] if name[:2] != "lo" else [0.3, 7])
        with np.errstate(invalid="ignore"):
            expected = getattr(host, name)(x)
        close(compiled(getattr(xp, name))(tf.constant(x)), expected, rtol=1e-14, atol=0)


def test_powers_of_two_are_exact():
    exponents = np.arange(-1022.0, 1024)
    powers = xp.pow(xp.full_like(tf.constant(exponents), 2.0), tf.constant(exponents))
    np.testing.assert_array_equal(backend.to_numpy(powers), np.ldexp(1.0, exponents.astype(int)))
    np.testing.assert_array_equal(backend.to_numpy(xp.log2(powers)), exponents)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
def test_limits_of_dtypes(name):
    dtype = getattr(xp, name)
    info = xp.finfo(dtype)
    assert info.bits == 8 * dtype.size // (2 if dtype.is_complex else 1)
    one = tf.constant(1, info.dtype)
    assert bool(one + info.eps > one)
    assert not bool(one + info.eps / 2 > one)
    assert bool(xp.isfinite(tf.constant(info.max, info.dtype)))
    assert bool(tf.constant(info.smallest_normal, info.dtype) > 0)
    assert xp.isdtype(dtype, "complex floating" if dtype.is_complex else "real floating")
    assert xp.isdtype(dtype, ("bool", "numeric"))
    assert not xp.isdtype(dtype, ("bool", "integral"))


def test_numbers_take_the_dtype_of_the_array_and_dtypes_are_not_mixed():
    x = xp.ones(3, dtype=xp.float16)
    for y in (x + 1, 2.5 * x, xp.maximum(x, 0.3), xp.where(x > 0, 1.0, x), xp.full_like(x, math.pi)):
        assert y.dtype == xp.float16
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError)):
        x + xp.ones(3, dtype=xp.float32)


@every_mode
def test_norm_has_a_derivative_at_zero(compiled):
    def gradient(x):
        return backend.vjp(lambda x: xp.linalg.vector_norm(x, axis=-1), x)[1](xp.ones(2, dtype=x.dtype))

    close(compiled(gradient)(tf.constant([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0.6, 0.8]], rtol=1e-6)


@every_mode
def test_logaddexp_has_its_derivative_where_both_are_equal(compiled):
    def gradient(x):
        return backend.vjp(lambda x: xp.logaddexp(x, xp.zeros_like(x)), x)[1](xp.ones_like(x))

    x = np.array([-800.0, -1.0, 0.0, 1.0, 800.0])
    close(compiled(gradient)(tf.constant(x)), scipy.special.expit(x))


def test_fourier_transforms():
    x = numbers(3, 4, seed=5)
    for options in ({}, {"n": 3}, {"n": 6, "axis": 0}, {"norm": "ortho"}, {"axis": 0, "norm": "forward"}):
        for name, array in (("fft", x + 1j), ("ifft", x + 1j), ("rfft", x), ("irfft", x + 1j)):
            close(getattr(xp.fft, name)(tf.constant(array), **options), getattr(np.fft, name)(array, **options))


@every_mode
@pytest.mark.parametrize("one", [(8,), (8, 3), (1, 1, 8, 3), (1, 1, 1, 8, 3)])
def test_many_matrices_times_one(compiled, one):
    """TensorFlow's own broadcasting product wrote over memory in float32."""
    many, matrix = numbers(5, 1, 6, 8, dtype=np.float32), numbers(*one, seed=1, dtype=np.float32)
    product = compiled(lambda x: xp.matmul(x, tf.constant(matrix)))
    for _ in range(20):
        close(product(tf.constant(many)), many @ matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [((5, 1, 6, None), (8, 3)), ((None, 1, 6, 8), (None, 3)), ((5, 1, 6, 8), (8, None)), ((5, 1, 6, 8), (None, 8, 3))],
)
def test_many_matrices_times_one_of_unknown_size(first, second):
    signature = [tf.TensorSpec(shape, tf.float32) for shape in (first, second)]
    product = tf.function(xp.matmul, input_signature=signature)
    many, one = numbers(5, 1, 6, 8, dtype=np.float32), numbers(8, 3, seed=1, dtype=np.float32)
    one = one if len(second) == 2 else one[None]
    for _ in range(20):
        close(product(tf.constant(many), tf.constant(one)), many @ one, rtol=1e-4, atol=1e-5)


def test_no_matrices_times_one():
    assert xp.matmul(tf.zeros((2, 0, 4, 0)), tf.zeros((0, 5))).shape == (2, 0, 4, 5)
