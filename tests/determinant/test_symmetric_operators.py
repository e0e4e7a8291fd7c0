"""Lanczos' quadrature and coloured probes: certified bounds hold, error bars cover the exact value."""

import numpy as np
import pytest
import scipy.sparse
from branches_for_tests import array, host
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import SEEDS

from iresnet_core import as_operator, logdet
from iresnet_core.determinant.coloring import colorings
from iresnet_core.errors import InvalidArgumentError, NotContractiveError


def exact(A):
    return np.linalg.slogdet(np.eye(A.shape[-1]) + A)[1]


def symmetric(seed, d, low, high):
    """A symmetric matrix with eigenvalues in [low, high], some of them at the ends or equal."""
    rng = np.random.default_rng(seed)
    values = rng.choice([low, high, 0.5 * (low + high), *rng.uniform(low, high, 3)], d)
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    A = (Q * values) @ Q.T
    return 0.5 * (A + A.T)


def laplacian(*extents):
    """The second differences on a grid, of norm below 4 for each axis."""
    A = scipy.sparse.csr_array((1, 1))
    for n in extents:
        L = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n))
        A = scipy.sparse.kron(A, scipy.sparse.eye_array(n)) + scipy.sparse.kron(scipy.sparse.eye_array(A.shape[0]), L)
    return A.tocsr()


@given(
    seed=SEEDS,
    interval=st.sampled_from([(-0.9, 0.9), (0.0, 50.0), (-0.99, 3.0), (0.2, 0.2)]),
    terms=st.sampled_from([1, 3, 6]),
)
def test_the_bound_of_the_quadrature_holds(backend, seed, interval, terms):
    """A full set of probes has no noise, so that all that is left is the truncation."""
    A = symmetric(seed, 8, *interval)
    result = logdet(array(backend, A), method="lanczos", spectrum=interval, probes=8, terms=terms, rng=0)
    assert result.method == "lanczos"
    assert float(result.std_error) == 0
    assert abs(float(result.value) - exact(A)) <= float(result.bias_bound)


def test_the_bound_is_sharp():
    A = symmetric(0, 16, 0.0, 50.0)
    bounds = [
        float(logdet(A, method="lanczos", spectrum=(0, 50), probes=16, terms=n, rng=0).bias_bound) for n in (1, 2, 4, 8)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 1e-10  # six eigenvalues: the Krylov space is complete


def test_a_wrong_interval_is_seen(backend):
    A = symmetric(1, 8, 0.0, 50.0)
    with pytest.raises(NotContractiveError, match="outside of the interval"):
        logdet(array(backend, A), method="lanczos", spectrum=(0, 20), rng=0)
    with pytest.raises(InvalidArgumentError, match="symmetric operators"):
        logdet(array(backend, np.triu(A)), method="lanczos", disc=(100, 100), rng=0)
    with pytest.raises(InvalidArgumentError, match="unbiased"):
        logdet(array(backend, A), method="lanczos", spectrum=(0, 50), unbiased=True, rng=0)


def test_an_end_of_the_interval_is_found():
    A = laplacian(40) * 10
    result = logdet(aslinearoperator(A), spectrum=(0, None), method="lanczos", probes=64, rng=0)
    assert abs(float(result.value) - exact(A.toarray())) <= float(result.bias_bound)


@pytest.mark.needs("autodiff")
def test_gradient(backend):
    A = symmetric(2, 8, 0.0, 20.0)
    value, pullback = backend.vjp(
        lambda W: logdet(W, method="lanczos", spectrum=(0, 20), probes=8, rng=0).value, array(backend, A)
    )
    expected = np.linalg.inv(np.eye(8) + A)
    np.testing.assert_allclose(host(backend, pullback(backend.xp.ones_like(value))), expected, atol=2e-3)


def test_single_precision(backend):
    A = symmetric(3, 8, 0.0, 20.0).astype(np.float32)
    A = 0.5 * (A + A.T)
    result = logdet(array(backend, A, "float32"), method="lanczos", spectrum=(0, 20.001), probes=8, rng=0)
    assert result.value.dtype == backend.xp.float32
    assert abs(float(result.value) - exact(A.astype(float))) <= float(result.bias_bound) < 0.05


# --- a half-plane ---


@given(seed=SEEDS, low=st.sampled_from([-0.9, 0.0, 3.0]), terms=st.sampled_from([2, 5]))
def test_an_operator_in_a_half_plane(backend, seed, low, terms):
    """Far from symmetric, and of norms for which no disc around a multiple of the identity is of use."""
    rng = np.random.default_rng(seed)
    K = 30 * rng.standard_normal((8, 8))
    A = symmetric(seed, 8, low, 5.0) + K - K.T
    matrix = array(backend, A)
    products = (lambda v: backend.xp.matmul(matrix, v), lambda u: backend.xp.matmul(u, matrix))
    operator = as_operator(products, like=array(backend, np.zeros(8)))
    for form in (matrix, operator):
        result = logdet(form, half_plane=low - 1e-9, method="lanczos", probes=8, terms=terms, rng=0)
        assert abs(float(result.value) - exact(A)) <= float(result.bias_bound)


def test_a_half_plane_is_found_from_entries():
    A = scipy.sparse.diags_array([-20.0, 0.5, 20.0], offsets=[-1, 0, 1], shape=(200, 200))
    with pytest.raises(NotContractiveError, match="half_plane="):
        logdet(aslinearoperator(A), rng=0)
    result = logdet(A, exact_up_to=0, probes=40, rng=0)
    assert "(I + A)^T (I + A)" in result.reason
    assert abs(float(result.value) - exact(A.toarray())) <= 5 * float(result.std_error) + float(result.bias_bound)
    with pytest.raises(NotContractiveError, match="-1"):
        logdet(A, method="lanczos", half_plane=-1)


# --- sparse factors ---


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "A",
    [
        6.0 * laplacian(12, 15),
        6.0 * laplacian(12, 15) + 2.0 * scipy.sparse.eye_array(180, k=1),
        scipy.sparse.diags_array([-20.0, 0.5, 20.0], offsets=[-1, 0, 1], shape=(200, 200)),
        scipy.sparse.random_array((150, 150), density=0.02, rng=np.random.default_rng(0)) * 0.2,
        scipy.sparse.csr_array((7, 7)),
    ],
    ids=["grid", "advection", "half-plane", "random", "zero"],
)
def test_sparse_factors(A, dtype):
    A = A.astype(dtype)
    result = logdet(A)
    assert (result.method, result.value.dtype) == ("exact", dtype)
    assert "sparse factors" in result.reason
    assert abs(float(result.value) - exact(A.toarray().astype(float))) <= float(result.bias_bound) + 1e-12
    assert float(result.bias_bound) < (1e-6 if dtype == "float64" else 1e-3)


def test_sparse_matrices_that_are_unstable():
    """An even number of eigenvalues below -1 has a positive determinant, and no logarithm that means anything."""
    for d in (200, 2000):
        with pytest.raises(NotContractiveError, match="shorter"):
            logdet(-12.0 * laplacian(d))


# --- coloured probes ---


@given(seed=SEEDS, d=st.integers(1, 30), density=st.floats(0.01, 0.3))
def test_entries_of_one_colour_are_far_apart(seed, d, density):
    pattern = scipy.sparse.random_array((d, d), density=density, rng=np.random.default_rng(seed))
    near = (np.abs(pattern.toarray()) + np.abs(pattern.toarray()).T + np.eye(d)) != 0
    reached, last, complete = near, None, False
    for order, colors, complete in colorings(pattern):  # noqa: B007
        assert last is None or order == last + 1
        same = colors[:, None] == colors[None, :]
        assert not np.any(same & reached & ~np.eye(d, dtype=bool))
        reached, last = (reached.astype(int) @ near) > 0, order
    assert complete
    assert np.array_equal(reached, (np.linalg.matrix_power(near.astype(float), d) > 0))


@pytest.mark.parametrize(
    ("A", "method"),
    [
        (12.0 * laplacian(200), "lanczos"),
        (6.0 * laplacian(12, 15), "lanczos"),
        (6.0 * laplacian(12, 15) + 2.0 * scipy.sparse.eye_array(180, k=1), "arnoldi"),
    ],
    ids=["line", "grid", "advection"],
)
def test_coloured_probes_are_within_their_errors(A, method):
    truth = exact(A.toarray())
    z, off = [], []
    for seed in range(40):
        result = logdet(A, exact_up_to=0, rng=seed)
        assert result.method == method
        assert "colours" in result.reason
        off.append(float(result.value) - truth)
        z.append(off[-1] / float(result.std_error))
    assert 0.5 < np.sqrt(np.mean(np.square(z))) < 1.5
    assert abs(np.mean(off)) < 5 * np.std(off) / 40**0.5 + float(result.bias_bound)
    plain = [float(logdet(aslinearoperator(A), probes=10, lipschitz=None, rng=seed).value) - truth for seed in range(5)]
    assert np.mean(np.square(off)) < 0.2 * np.mean(np.square(plain))


@pytest.mark.parametrize("tol", [1.0, 0.1, 1e-6])
def test_a_tolerance_is_met(tol):
    A = 12.0 * laplacian(200)
    result = logdet(A, exact_up_to=0, tol=tol, rng=0)
    assert float(result.std_error) <= tol
    assert abs(float(result.value) - exact(A.toarray())) <= 5 * float(result.std_error) + float(result.bias_bound)
    assert (result.method == "exact") == (tol < 1)  # which 200 products are enough for


def test_a_tolerance_that_rounding_is_above_is_told():
    A = (12.0 * laplacian(400)).astype(np.float32)
    for options in ({"exact_up_to": 0}, {}):
        assert "not met" not in logdet(A, tol=0.5, rng=0, **options).reason
        result = logdet(A, tol=1e-6, rng=0, **options)
        assert float(result.bias_bound) > 1e-6
        assert "tol=1e-06 is not met" in result.reason


def test_a_tolerance_without_a_pattern_is_met_by_probes():
    A = 12.0 * laplacian(200)
    result = logdet(aslinearoperator(A), spectrum=(0, 48), tol=5.0, rng=0)
    assert result.method == "lanczos"
    assert float(result.std_error) <= 5
    result = logdet(A, method="lanczos", tol=1e-6, rng=0)  # by a full set of Hadamard rows
    assert abs(float(result.value) - exact(A.toarray())) <= float(result.bias_bound) + 1e-9
    A = scipy.sparse.diags_array([-20.0, 0.5, 20.0], offsets=[-1, 0, 1], shape=(2000, 2000))
    result = logdet(A, exact_up_to=0, tol=4.0, rng=0)  # half the logarithm of the square
    assert 1 < float(result.std_error) <= 4


@pytest.mark.needs("autodiff")
def test_gradient_of_coloured_probes(backend):
    """With all entries told apart there is no noise, and the gradient is that of the determinant."""
    A = 3.0 * laplacian(6).toarray()
    like = array(backend, np.zeros(6))

    def value_of(W):
        products = (lambda v: backend.xp.matmul(W, v), lambda u: backend.xp.matmul(u, W))
        operator = as_operator(products, like=like, pattern=scipy.sparse.csr_array(A))
        return logdet(operator, spectrum=(0, 12), method="lanczos", probes=12, rng=0).value

    value, pullback = backend.vjp(value_of, array(backend, A))
    assert abs(host(backend, backend.stop_gradient(value)) - exact(A)) < 1e-3
    expected = np.linalg.inv(np.eye(6) + A)
    np.testing.assert_allclose(host(backend, pullback(backend.xp.ones_like(value))), expected, atol=1e-3)


def test_patterns_without_locality_get_few_probes():
    """Where everything is near everything, colours are little help, and their search ends."""
    A = scipy.sparse.random_array((5000, 5000), density=2e-3, rng=np.random.default_rng(1))
    A = 0.04 * (A + A.T)
    result = logdet(A, rng=0)
    assert int(result.products) < 500
    met = logdet(A, tol=2.0, rng=0)
    assert float(met.std_error) <= 2
    assert abs(float(met.value) - float(result.value)) < 5 * (float(met.std_error) + float(result.std_error)) + 0.1


def test_a_pattern_has_the_shape_of_the_operator():
    with pytest.raises(ValueError, match="pattern must be"):
        as_operator(aslinearoperator(np.eye(3)), pattern=np.eye(3))
