"""What each backend must compute."""

import importlib
import math

import numpy as np
import pytest
from capabilities import CAPABILITIES, missing, row

from iresnet_core.backends import backend as find_backend
from iresnet_core.backends import get_backend
from iresnet_core.errors import (
    DerivativeError,
    InvalidArgumentError,
)

# --- what the table of capabilities claims ---


def _can_differentiate(backend):
    x = backend.xp.ones(3)
    if not backend.differentiates:
        with pytest.raises(DerivativeError, match="linearize"):
            backend.vjp(lambda x: x * x, x)
        return False
    value, pullback = backend.vjp(lambda x: x * x, 3 * x)
    return bool(backend.xp.all(value == 9 * x)) and bool(backend.xp.all(pullback(x) == 6 * x))


def _can_compile(backend):
    def double(x):
        return x + x

    compiled = backend.jit(double)
    assert float(compiled(backend.xp.ones(1))[0]) == 2.0
    return compiled is not double


def _has_half_precision(backend):
    return hasattr(backend.xp, "float16") and backend.xp.ones(1, dtype=backend.xp.float16).dtype == backend.xp.float16


def _has_complex(backend):
    matrix = backend.from_numpy(np.array([[2.0, 1j], [-1j, 2.0]]))
    return backend.is_positive_definite(matrix)


def _has_fft(backend):
    xp = backend.xp
    if not hasattr(xp, "fft"):
        return False
    expected = xp.asarray([4, 0, 0, 0], dtype=xp.complex128)
    return bool(xp.all(xp.fft.fft(xp.ones(4, dtype=xp.complex128)) == expected))


def _draws_with_numpy(backend):
    before = np.random.get_state()
    np.random.seed(1)
    drawn = backend.to_numpy(backend.sample("gaussian", (3,), backend.xp.zeros(1), None))
    np.random.seed(1)
    expected = np.random.standard_normal(3).astype(drawn.dtype)
    np.random.set_state(before)
    return bool((drawn == expected).all())


def _keeps_private_copies(backend):
    x = backend.xp.ones(3)
    return backend.frozen(x) is not x


def _keeps_subnormals(backend):
    small = (np.array([5e-324, 1e-310]), np.array([1e-45, 1e-40], np.float32))
    return all(bool(backend.xp.all(backend.from_numpy(x) * 1.0 > 0)) for x in small)


def _can_transform(backend):
    return hasattr(importlib.import_module(row(backend.name).framework), "vmap")


PROBES = {
    "autodiff": _can_differentiate,
    "compile": _can_compile,
    "transforms": _can_transform,
    "float16": _has_half_precision,
    "complex": _has_complex,
    "fft": _has_fft,
    "numpy_rng": _draws_with_numpy,
    "subnormal": _keeps_subnormals,
    "frozen": _keeps_private_copies,
}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_table_of_capabilities_is_true(backend, capability):
    if backend.is_accelerated(backend.from_numpy(np.ones(1))) and (backend.name, capability) == ("jax", "subnormal"):
        pytest.skip("the table speaks of a CPU")
    assert PROBES[capability](backend) == (missing(backend.name, [capability]) is None)


# --- conversion ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_go_to_numpy_and_back(backend, dtype):
    host = np.arange(6, dtype=dtype).reshape(2, 3)
    x = backend.from_numpy(host)
    assert get_backend(x) is backend
    assert x.dtype == getattr(backend.xp, dtype)
    back = backend.to_numpy(x)
    assert type(back) is np.ndarray
    assert back.dtype == host.dtype
    np.testing.assert_array_equal(back, host)


def test_to_numpy_copies(backend):
    x = backend.xp.zeros(3)
    backend.to_numpy(x)[0] = 1.0
    assert float(x[0]) == 0.0


# --- noise ---


def noise(backend, kind, shape, rng, dtype="float64"):
    like = backend.xp.zeros(1, dtype=getattr(backend.xp, dtype))
    drawn = backend.sample(kind, shape, like, rng)
    assert get_backend(drawn) is backend
    assert drawn.dtype == like.dtype
    assert tuple(drawn.shape) == shape
    return backend.to_numpy(drawn)


KINDS = ["rademacher", "gaussian"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_noise(backend, kind):
    first = noise(backend, kind, (7, 5), 3)
    np.testing.assert_array_equal(first, noise(backend, kind, (7, 5), 3))
    np.testing.assert_array_equal(first, noise(backend, kind, (7, 5), np.int64(3)))
    assert (first != noise(backend, kind, (7, 5), 4)).any()
    # A float32 run sees the noise of the float64 run, rounded.
    np.testing.assert_array_equal(first.astype("float32"), noise(backend, kind, (7, 5), 3, "float32"))


@pytest.mark.needs("numpy_rng")
@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_goes_on_where_it_was(backend, kind):
    for make in (np.random.default_rng, np.random.RandomState):
        rng = make(5)
        first, second = (noise(backend, kind, (40,), rng) for _ in range(2))
        assert (first != second).any()
        rng = make(5)
        np.testing.assert_array_equal(first, noise(backend, kind, (40,), rng))


def test_moments_of_rademacher_noise(backend):
    n = 200_000
    v = noise(backend, "rademacher", (n // 2, 2), 11)
    assert set(np.unique(v)) == {-1.0, 1.0}
    assert abs(v.sum()) / math.sqrt(n) < 5
    # Independent of its neighbours, along both axes.
    assert abs((v[:, 0] * v[:, 1]).sum()) / math.sqrt(n / 2) < 5
    assert abs((v[1:] * v[:-1]).sum()) / math.sqrt(n) < 5


def test_moments_of_gaussian_noise(backend):
    n = 200_000
    v = noise(backend, "gaussian", (n // 2, 2), 12)
    # (power, mean, variance of the power) of a standard normal
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((v**power).sum() - n * mean) / math.sqrt(n * variance) < 5, power
    assert abs((v[:, 0] * v[:, 1]).sum()) / math.sqrt(n / 2) < 5
    assert abs((v[1:] * v[:-1]).sum()) / math.sqrt(n) < 5


@pytest.fixture
def global_numpy_state():
    state = np.random.get_state()
    yield
    np.random.set_state(state)


@pytest.mark.needs("numpy_rng")
@pytest.mark.usefixtures("global_numpy_state")
@pytest.mark.parametrize("kind", KINDS)
def test_without_rng_the_global_seed_governs(backend, kind):
    np.random.seed(8)
    first, second = (noise(backend, kind, (40,), None) for _ in range(2))
    assert (first != second).any()
    np.random.seed(8)
    np.testing.assert_array_equal(first, noise(backend, kind, (40,), None))


@pytest.mark.parametrize("kind", KINDS)
def test_with_rng_the_global_state_is_left_alone(backend, kind):
    before = np.random.get_state()
    noise(backend, kind, (40,), 3)
    backend.uniform((40,), 3)
    after = np.random.get_state()
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_uniform_numbers(backend):
    u = backend.uniform((1000, 50), 9)
    assert type(u) is np.ndarray
    assert u.dtype == np.float64
    assert u.shape == (1000, 50)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.sum() - u.size / 2) / math.sqrt(u.size / 12) < 5
    assert abs((u < 0.1).sum() - 0.1 * u.size) / math.sqrt(0.09 * u.size) < 5
    np.testing.assert_array_equal(u, backend.uniform((1000, 50), 9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_noise_of_any_shape(backend, kind, shape):
    noise(backend, kind, shape, 1)


@pytest.mark.parametrize("rng", [-1, True, "seed", 1.5], ids=repr)
def test_bad_rng_is_refused(backend, rng):
    with pytest.raises(InvalidArgumentError):
        noise(backend, "gaussian", (3,), rng)
    with pytest.raises(InvalidArgumentError):
        backend.uniform((3,), rng)


def test_unknown_kind_of_noise_is_refused(backend):
    with pytest.raises(InvalidArgumentError, match="'uniform'"):
        noise(backend, "uniform", (3,), 1)


# --- the Cholesky test of a matrix ---


@pytest.mark.parametrize("n", [1, 2, 30, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_definite_matrices(backend, n, dtype):
    factor = np.random.default_rng(n).standard_normal((n, n))
    matrix = factor @ factor.T / n + 0.1 * np.eye(n)
    largest = np.linalg.eigvalsh(matrix)[-1]
    for shift, definite in [(0.0, True), (-0.5 * largest, n == 1), (-1.1 * largest, False)]:
        shifted = (matrix + shift * np.eye(n)).astype(dtype)
        assert backend.is_positive_definite(backend.from_numpy(shifted)) is definite


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((2, 2)),
        np.diag([1.0, -1e-300]),
        np.full((2, 2), np.nan),
        np.diag([1.0, np.nan]),
        [[1.0, 2.0], [2.0, 1.0]],
    ],
    ids=["zero", "barely", "nan", "nan pivot", "indefinite"],
)
def test_indefinite_matrices(backend, matrix):
    assert backend.is_positive_definite(backend.from_numpy(np.asarray(matrix))) is False


def test_one_indefinite_matrix_spoils_the_stack(backend):
    stack = np.stack([np.eye(3)] * 4)
    assert backend.is_positive_definite(backend.from_numpy(stack)) is True
    stack[2, 1, 1] = -1.0
    assert backend.is_positive_definite(backend.from_numpy(stack)) is False


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels_above_a_matrix(backend, n, dtype):
    """One level, or one for every matrix of a stack; the matrix is left as it is."""
    factor = np.random.default_rng(n).standard_normal((n, n))
    matrix = (factor + factor.T).astype(dtype)
    kept, largest = matrix.copy(), float(np.linalg.eigvalsh(matrix)[-1])
    given = backend.from_numpy(matrix)
    below, above = largest - 1e-2 * abs(largest), largest + 1e-2 * abs(largest)
    assert backend.is_above(above, given) is True
    assert backend.is_above(below, given) is False
    np.testing.assert_array_equal(backend.to_numpy(given), kept)
    np.testing.assert_array_equal(matrix, kept)
    stack = backend.from_numpy(np.stack([matrix, 2 * matrix]))
    for second, expected in ((2 * above, True), (2 * below, False)):
        levels = backend.from_numpy(np.array([above, second], dtype=dtype))
        assert backend.is_above(levels, stack) is expected
    assert backend.is_above(1.0, backend.from_numpy(np.full((n, n), np.nan, dtype))) is False


@pytest.mark.needs("complex")
def test_hermitian_matrices(backend):
    for off_diagonal, definite in [(0.9j, True), (1.1j, False)]:
        matrix = np.array([[1.0, off_diagonal], [-off_diagonal, 1.0]])
        assert backend.is_positive_definite(backend.from_numpy(matrix)) is definite
        assert backend.is_above(1.0, backend.from_numpy(np.eye(2) - matrix)) is definite


# --- copies that nobody can change ---


@pytest.mark.needs("frozen")
def test_frozen_copy_cannot_be_changed_from_outside(backend):
    host = np.ones(3)
    x = backend.from_numpy(host)
    copy = backend.frozen(x)
    host[0] = 5.0
    assert float(copy[0]) == 1.0


def test_a_read_only_array_of_the_caller_is_copied_too():
    own = np.ones(3)
    own.flags.writeable = False
    copy = find_backend("numpy").frozen(own)
    own.flags.writeable = True  # which its owner can always do
    own[0] = 5.0
    assert copy[0] == 1.0


def test_frozen_numpy_arrays():
    backend = find_backend("numpy")
    x = np.ones((2, 3))
    copy = backend.frozen(x)
    with pytest.raises(ValueError, match="read-only"):
        copy[0, 0] = 2.0
    assert x.flags.writeable, "the caller's array stays as it was"
    # A read-only view of an array that its owner can still write to is copied.
    view = x.view()
    view.flags.writeable = False
    copy = backend.frozen(view)
    x[0, 0] = 7.0
    assert copy[0, 0] == 1.0
    assert backend.frozen(x[0]).base is None


# --- loops ---


def test_while_loop_counts(backend):
    xp = backend.xp

    def cond(k, x):
        return k < 5

    def body(k, x):  # leaves a state that is finished as it is, since not every backend looks after each step
        return xp.where(k < 5, k + 1, k), xp.where(k < 5, x + x, x)

    for limit, expected in [(0, 1.0), (3, 8.0), (9, 32.0)]:
        _, x = backend.while_loop(cond, body, (xp.asarray(0), xp.ones(1)), limit)
        assert float(x[0]) == expected


def test_gradient_hooks_return_the_value(backend):
    x = backend.xp.ones(3)
    for same in (backend.stop_gradient(x), backend.map_cotangent(x, lambda cotangent: 2 * cotangent)):
        assert bool(backend.xp.all(same == x))
    assert backend.is_tracing(x) is False


@pytest.mark.parametrize("descending", [False, True])
def test_places_in_order(backend, descending):
    """With the options that the standard gives to `argsort`."""
    x = np.array([[3.0, 1.0, 2.0, 1.0]])
    expected = [[0, 2, 1, 3]] if descending else [[1, 3, 2, 0]]
    found = backend.xp.argsort(backend.from_numpy(x), axis=-1, descending=descending, stable=True)
    assert backend.to_numpy(found).tolist() == expected
