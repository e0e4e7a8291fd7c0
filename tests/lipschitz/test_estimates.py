"""Spectral norm from below: power iteration, Golub-Kahan-Lanczos and SVD."""

import itertools

import numpy as np
import pytest
from branches_for_tests import HomeMadeOperator, of_another
from capabilities import missing
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import (
    SEEDS,
    as_seen_by,
    convolution_matrix,
    convolutions,
    make_matrix,
    matrices,
    norm_from_below,
    stacks,
)

from iresnet_core import Convolution, Dense, as_operator, spectral_norm
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    MixedBackendsError,
    NonFiniteError,
    ShapeError,
    UnknownArrayError,
)
from iresnet_core.lipschitz.estimates import ESTIMATES
from iresnet_core.lipschitz.lanczos import FILL, bidiagonalize, unit

METHODS = ("power", "lanczos", "svd")
every_method = pytest.mark.parametrize("method", METHODS)


def on_host(backend, result):
    return type(result)(*(backend.to_numpy(part) for part in result))


def separated(m, n, ratio=0.5, seed=0):
    """A matrix whose largest singular value is 1 and whose others are at most `ratio`."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, min(m, n))))[0] for size in (m, n))
    return U @ np.diag([1.0, *np.linspace(ratio, 0, min(m, n) - 1)]) @ V.T


# --- what the result promises ---


@given(A=matrices(max_side=16), method=st.sampled_from(METHODS), rtol=st.sampled_from([1e-1, 1e-3, 1e-6]))
def test_value_is_never_above_the_norm_and_its_residual_tells_the_truth(backend, A, method, rtol):
    A = as_seen_by(backend, A)
    m, n = A.shape
    result = on_host(backend, spectral_norm(backend.from_numpy(A), method=method, rtol=rtol, max_iter=40))
    norm = norm_from_below(A)
    eps, tiny = np.finfo(A.dtype).eps, np.finfo(A.dtype).smallest_subnormal
    allowance = (m + n) * eps * norm + tiny
    value, residual = np.longdouble(result.value), np.longdouble(result.residual)
    assert result.value.dtype == result.left.dtype == result.right.dtype == result.residual.dtype == A.dtype
    assert 0 <= value <= norm + allowance
    # Some singular value lies within the residual; unless m = n, zero is one.
    exponent = np.frexp(float(abs(A).max()))[1]
    scaled = np.ldexp(A.astype(np.longdouble), -exponent)
    values = np.linalg.svd(scaled.astype(float), compute_uv=False)
    values = np.append(values, np.zeros(1 if m != n else 0)).astype(np.longdouble)
    distance = np.min(abs(np.ldexp(values, exponent) - value))
    assert distance <= residual + allowance
    # Unit vectors, which belong to the value.
    for vector, size in ((result.left, m), (result.right, n)):
        assert vector.shape == (size,)
        length = np.linalg.norm(vector.astype(float))
        assert abs(length - 1) <= 100 * eps or (length == 0 and norm == 0)
    product = np.ldexp(result.left.astype(np.longdouble) @ scaled @ result.right, exponent)
    assert abs(product - value) <= allowance
    # Converged means what it says.
    assert result.converged.dtype == bool
    if result.converged:
        assert residual <= max(rtol, (m + n) * 8 * eps) * value + 2 * tiny
    else:
        assert residual > rtol * value * (1 - 1e-3) - allowance
    assert (method == "svd") == (result.iterations == 0)
    assert result.iterations <= 40


@given(A=matrices(max_side=16), method=st.sampled_from(["lanczos", "svd"]))
def test_lanczos_and_svd_reach_the_norm(backend, A, method):
    A = as_seen_by(backend, A)
    rtol = 1e-6 if A.dtype == np.float64 else 1e-4
    result = spectral_norm(backend.from_numpy(A), method=method, rtol=rtol)
    norm = norm_from_below(A)
    assert bool(result.converged)
    assert np.longdouble(backend.to_numpy(result.value)) >= norm * (1 - rtol) - np.finfo(A.dtype).smallest_subnormal


@every_method
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 9), (9, 5), (40, 40)])
def test_methods_agree_where_the_norm_is_separated(backend, method, shape):
    A = separated(*shape)
    result = on_host(backend, spectral_norm(backend.from_numpy(3 * A), method=method, rtol=1e-9, max_iter=200))
    assert result.converged
    np.testing.assert_allclose(result.value, 3, rtol=1e-12)
    assert result.residual <= 3e-9
    np.testing.assert_allclose(A @ result.right, result.left, atol=1e-8)
    np.testing.assert_allclose(A.T @ result.left, result.right, atol=1e-8)


def test_iterations_are_not_called_converged_too_early(backend):
    slow = np.diag(np.linspace(1, 0.9, 60))
    for method in ("power", "lanczos"):
        for steps in (1, 2, 5):
            result = spectral_norm(backend.from_numpy(slow), method=method, rtol=1e-8, max_iter=steps)
            assert not bool(result.converged)
            assert int(result.iterations) == steps
            assert float(result.residual) > 1e-8


def test_lanczos_takes_fewer_steps(backend):
    A = backend.from_numpy(separated(60, 60, ratio=0.99))
    power, lanczos = (spectral_norm(A, method=method, rtol=1e-4, max_iter=2000) for method in ("power", "lanczos"))
    assert bool(power.converged)
    assert bool(lanczos.converged)
    assert 5 * int(lanczos.iterations) <= int(power.iterations)


@every_method
def test_zero_matrix(backend, method):
    result = on_host(backend, spectral_norm(backend.from_numpy(np.zeros((3, 4))), method=method))
    assert result.value == result.residual == 0
    assert result.converged


@every_method
@pytest.mark.parametrize("kind", ["gaussian", "jordan", "rank one", "spread"])
def test_a_power_of_two_changes_nothing_but_the_scale(backend, method, kind):
    for dtype, exponents in ((np.float64, (-960, 960)), (np.float32, (-90, 90))):
        A = make_matrix(kind, 6, 5, dtype=dtype)
        A[abs(A) < 1e-6] = 0  # else it becomes subnormal
        one = on_host(backend, spectral_norm(backend.from_numpy(A), method=method))
        for exponent in exponents:
            other = on_host(backend, spectral_norm(backend.from_numpy(np.ldexp(A, exponent)), method=method))
            assert other.value == np.ldexp(one.value, exponent)
            np.testing.assert_array_equal(other.left, one.left)
            assert other.iterations == one.iterations


@every_method
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_ends_of_the_range(backend, method, dtype):
    info = np.finfo(dtype)
    for entry in (info.max, np.nextafter(info.max, dtype(0)), info.smallest_normal, info.smallest_subnormal):
        if entry < info.smallest_normal and missing(backend.name, ["subnormal"]):
            continue
        result = spectral_norm(backend.from_numpy(np.array([[entry]], dtype)), method=method)
        assert float(result.value) == entry
        assert bool(result.converged)


def test_auto_takes_the_svd_of_small_matrices_only(backend):
    assert int(spectral_norm(backend.from_numpy(make_matrix("gaussian", 128, 130))).iterations) == 0
    assert int(spectral_norm(backend.from_numpy(make_matrix("gaussian", 129, 130))).iterations) > 0


@pytest.mark.needs("float16")
def test_half_precision(backend):
    A = np.array([[3.0, 1.0], [1.0, 3.0]], np.float16)
    for method in METHODS:
        result = spectral_norm(backend.from_numpy(A), method=method)
        assert result.value.dtype == backend.xp.float16
        assert abs(float(result.value) - 4) < 0.01


# --- stacks ---


@given(A=stacks(max_side=6), method=st.sampled_from(METHODS))
def test_stack_gives_what_single_matrices_give(backend, A, method):
    together = on_host(backend, spectral_norm(backend.from_numpy(A), method=method, rtol=1e-4))
    shape = A.shape[:-2]
    assert together.value.shape == together.converged.shape == together.iterations.shape == shape
    assert together.left.shape == (*shape, A.shape[-2])
    assert together.right.shape == (*shape, A.shape[-1])
    for index in np.ndindex(*shape):
        alone = on_host(backend, spectral_norm(backend.from_numpy(A[index].copy()), method=method, rtol=1e-4))
        np.testing.assert_allclose(together.value[index], alone.value, rtol=2e-4)
        assert together.residual[index] <= max(alone.residual, 1e-4 * alone.value) * (1 + 1e-3)
        if method != "power" or alone.iterations < 20:
            assert abs(int(together.iterations[index]) - int(alone.iterations)) <= 1
        assert together.converged[index] == alone.converged or method == "power"


def test_empty_stack(backend):
    for method in METHODS:
        assert spectral_norm(backend.from_numpy(np.zeros((0, 3, 2))), method=method).value.shape == (0,)


# --- where to begin ---


@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_warm_start_needs_fewer_iterations(backend, method):
    rng = np.random.default_rng(0)
    A = separated(60, 50, ratio=0.95)
    cold = spectral_norm(backend.from_numpy(A), method=method, rtol=1e-3, max_iter=500)
    moved = backend.from_numpy(A + 1e-4 * rng.standard_normal(A.shape))
    for start in (cold, cold.left):
        warm = spectral_norm(moved, method=method, start=start, rtol=1e-3, max_iter=500)
        assert bool(warm.converged)
        assert 2 * int(warm.iterations) <= int(cold.iterations)
        np.testing.assert_allclose(float(warm.value), norm_from_below(backend.to_numpy(moved)).astype(float), rtol=1e-3)


@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_warm_start_of_a_stack(backend, method):
    A = np.stack([separated(12, 10, 0.9, seed) for seed in range(3)])
    cold = spectral_norm(backend.from_numpy(A), method=method, rtol=1e-6, max_iter=500)
    warm = spectral_norm(backend.from_numpy(A), method=method, rtol=1e-6, max_iter=500, start=cold)
    assert (backend.to_numpy(warm.iterations) <= 2).all()
    np.testing.assert_allclose(backend.to_numpy(warm.value), 1, rtol=1e-6)


@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_a_useless_start_is_replaced(backend, method):
    A = np.array([[3.0, 1.0], [1.0, 3.0], [0.0, 0.0]])
    of_zero = spectral_norm(backend.from_numpy(np.zeros((3, 2))), method=method)
    for start in (of_zero, backend.from_numpy(np.zeros(3)), backend.from_numpy(np.array([0.0, 0.0, 1.0]))):
        result = spectral_norm(backend.from_numpy(A), method=method, start=start, rtol=1e-6)
        np.testing.assert_allclose(float(result.value), 4, rtol=1e-6)
    both = np.stack([np.zeros((3, 2)), A])
    start = spectral_norm(backend.from_numpy(np.stack([A, np.zeros((3, 2))])), method=method)
    result = spectral_norm(backend.from_numpy(both), method=method, start=start, rtol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(result.value), [0, 4], rtol=1e-6)


@pytest.mark.parametrize("length", [1e-200, 1e200])
def test_length_of_the_start_does_not_matter(backend, length):
    for method in ("power", "lanczos"):
        start = backend.from_numpy(np.array([length, 0.0]))
        result = spectral_norm(backend.from_numpy(np.array([[3.0, 1.0], [1.0, 3.0]])), method=method, start=start)
        np.testing.assert_allclose(float(result.value), 4, rtol=1e-3)


def test_every_backend_begins_from_the_same_vector(backend):
    A = separated(150, 140, ratio=0.99)
    results = [
        on_host(found, spectral_norm(found.from_numpy(A), method="power", max_iter=7))
        for found in (backend, find_backend("numpy"))
    ]
    np.testing.assert_allclose(results[0].left, results[1].left, atol=1e-12)


# --- operators ---


@given(case=convolutions(max_extent=4, max_channels=2), method=st.sampled_from(METHODS))
def test_norm_of_a_convolution(backend, case, method):
    kernel, input_shape, options = case
    layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
    result = on_host(backend, spectral_norm(layer, method=method, rtol=1e-6, max_iter=300))
    norm = float(norm_from_below(convolution_matrix(kernel, input_shape, options)))
    assert result.value <= norm * (1 + 1e-12)
    if method != "power":
        np.testing.assert_allclose(result.value, norm, rtol=2e-6)


@every_method
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e-310, 1e200, 1e300])
def test_norm_of_a_foreign_operator(method, scale):
    A = separated(6, 8) * scale
    result = spectral_norm(aslinearoperator(A), method=method, rtol=1e-7)
    np.testing.assert_allclose(result.value / scale, 1, rtol=1e-6)
    assert result.converged
    assert spectral_norm(aslinearoperator(0 * A), method=method).value == 0


@every_method
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e300])
def test_norm_of_a_home_made_operator(backend, method, scale):
    A = separated(6, 8) * scale
    like = backend.from_numpy(np.ones(1))
    result = on_host(
        backend, spectral_norm(as_operator(HomeMadeOperator(backend, A), like=like), method=method, rtol=1e-7)
    )
    np.testing.assert_allclose(result.value / scale, 1, rtol=1e-6)
    assert result.converged
    assert result.left.shape == (6,)
    zero = as_operator(HomeMadeOperator(backend, 0 * A), like=like)
    assert float(spectral_norm(zero, method=method).value) == 0


def test_bias_does_not_count(backend):
    layer = Dense(backend.from_numpy(np.eye(2)), backend.from_numpy(np.array([100.0, 0.0])))
    assert float(spectral_norm(layer, method="power").value) == pytest.approx(1)


# --- the bidiagonalisation itself ---


@given(A=matrices(max_side=12, scales=(1.0,)), seed=SEEDS)
def test_bidiagonalization(backend, A, seed):
    m, n = A.shape
    start = backend.from_numpy(np.random.default_rng(seed).standard_normal(n).astype(A.dtype))
    for state in itertools.islice(bidiagonalize(as_operator(backend.from_numpy(A)), start, min(m, n)), 100):
        k = len(state.alpha)
        U, V = (
            np.stack([backend.to_numpy(v) for v in vectors], -1).astype(float) for vectors in (state.left, state.right)
        )
        B = backend.to_numpy(state.matrix(backend.xp)).astype(float)
        alpha, beta = (np.array([float(entry) for entry in entries]) for entries in (state.alpha, state.beta))
        assert B.shape[0] % FILL == 0
        expected = np.zeros_like(B)
        expected[:k, :k] = np.diag(alpha) + np.diag(beta[:-1], 1)
        np.testing.assert_array_equal(B, expected)
        B = B[:k, :k]
        tolerance = 100 * (m + n) * np.finfo(A.dtype).eps
        size = tolerance * (1 + np.linalg.norm(A))
        last = np.zeros((n, k))
        last[:, -1] = beta[-1] * V[:, -1]
        np.testing.assert_allclose(A.astype(float) @ V[:, :k], U @ B, atol=size)
        np.testing.assert_allclose(A.astype(float).T @ U, V[:, :k] @ B.T + last, atol=size)
        for basis in (U, V):
            gram = basis.T @ basis
            np.testing.assert_allclose(gram, np.diag(np.rint(np.diag(gram))), atol=tolerance)  # orthonormal, or zero
            assert set(np.rint(np.diag(gram))) <= {0, 1}


def test_unit_of_zero_is_zero(backend):
    vectors, lengths = unit(backend.xp, backend.from_numpy(np.array([[3.0, 4.0], [0.0, 0.0]])))
    np.testing.assert_allclose(backend.to_numpy(vectors), [[0.6, 0.8], [0, 0]], rtol=4e-16, atol=0)
    np.testing.assert_array_equal(backend.to_numpy(lengths), [5, 0])


# --- errors ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "arpack"}, InvalidArgumentError, f"auto, {', '.join(ESTIMATES)}; got 'arpack'"),
        ({"rtol": -1e-3}, InvalidArgumentError, r"rtol.*-0\.001"),
        ({"rtol": float("nan")}, InvalidArgumentError, "rtol.*nan"),
        ({"max_iter": 0}, InvalidArgumentError, "max_iter.*0"),
        ({"max_iter": 2.5}, InvalidArgumentError, r"max_iter.*2\.5"),
        ({"start": np.ones(3)}, ShapeError, r"left vector of shape \(2,\), got \(3,\)"),
        ({"start": np.ones((1, 2))}, ShapeError, r"\(1, 2\)"),
        ({"start": np.ones(2, int)}, DtypeError, "start.*int64"),
        ({"start": np.array([1, np.nan])}, NonFiniteError, "start.*NaN"),
    ],
)
def test_bad_options(backend, options, error, message):
    if "start" in options:
        options = {"start": backend.from_numpy(options["start"])}
    with pytest.raises(error, match=message):
        spectral_norm(backend.from_numpy(np.ones((2, 3))), **options)


def test_bad_operators(backend):
    for A, error in (
        (np.ones(2), ShapeError),
        (np.ones((2, 2), int), DtypeError),
        (np.ones((2, 2), complex), DtypeError),
        (np.full((2, 2), np.nan), NonFiniteError),
    ):
        with pytest.raises(error):
            spectral_norm(backend.from_numpy(A))
    with pytest.raises(UnknownArrayError, match="list"):
        spectral_norm([[1.0]])


def test_start_of_another_framework(backend):
    with pytest.raises(MixedBackendsError, match=rf"\({backend.name}\)"):
        spectral_norm(backend.from_numpy(np.eye(2)), start=of_another(backend, np.ones(2)))
