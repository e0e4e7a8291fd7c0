"""log det(I + A) and (I + A)^-1 y of linear operators, against LU factors."""

import numpy as np
import pytest
import scipy.sparse
from branches_for_tests import HomeMadeOperator, array, host, matrix_of_kind
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import aslinearoperator
from strategies import SEEDS

from iresnet_core import Chain, Dense, as_operator, invert, logdet, spectral_norm
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    NotContractiveError,
    ShapeError,
    UnknownLipschitzError,
)


def exact(A):
    return np.linalg.slogdet(np.eye(A.shape[-1]) + A)[1]


def one_way(backend, A):
    """Products with A alone."""
    matrix = array(backend, A)
    return as_operator(
        lambda v: backend.xp.matmul(matrix, v), shape=A.shape, like=backend.xp.zeros(1, dtype=backend.xp.float64)
    )


def home_made(backend, A):
    like = backend.xp.zeros(1, dtype=backend.xp.float64)
    return as_operator(HomeMadeOperator(backend, A), like=like)


# One size, since some backends compile for each.
@given(seed=SEEDS, d=st.just(8), kind=st.sampled_from(["gaussian", "rotation", "defective", "symmetric", "zero"]))
def test_small_ones_are_exact(backend, seed, d, kind):
    A = 0.9 * matrix_of_kind(kind, d, np.random.default_rng(seed))
    for operator in (
        array(backend, A),
        Dense(array(backend, A)),
        home_made(backend, A),
        one_way(backend, A),
    ):
        result = logdet(operator)
        assert result.method == "exact"
        assert tuple(result.value.shape) == ()
        assert abs(float(result.value) - exact(A)) <= float(result.bias_bound) + 1e-13
        assert float(result.bias_bound) < 1e-9
        assert float(result.std_error) == 0


class TestLogDet:
    def test_stacks(self, backend):
        A = 0.3 * np.random.default_rng(0).standard_normal((2, 3, 4, 4)) / 2
        result = logdet(array(backend, A))
        np.testing.assert_allclose(host(backend, result.value), exact(A), atol=1e-12)

    def test_stacks_by_probes(self):
        A = 0.3 * np.random.default_rng(0).standard_normal((2, 3, 4, 4)) / 2
        few = logdet(A, method="arnoldi", lipschitz=0.99, probes=4, rng=0)
        assert few.value.shape == few.std_error.shape == (2, 3)
        assert np.all(np.abs(few.value - exact(A)) <= few.bias_bound)  # four probes are exact for d = 4

    @pytest.mark.parametrize("method", ["arnoldi", "series"])
    def test_a_full_set_of_probes_is_exact(self, backend, method):
        d = 8
        A = 0.8 * matrix_of_kind("gaussian", d, np.random.default_rng(1))
        for operator in (home_made(backend, A), one_way(backend, A)):
            result = logdet(operator, method=method, lipschitz=0.81, probes=d, rng=0)
            assert result.method == method
            assert abs(float(result.value) - exact(A)) <= float(result.bias_bound)

    def test_a_shift_makes_a_contraction_of_a_large_operator(self):
        rng = np.random.default_rng(2)
        A = matrix_of_kind("symmetric", 8, rng)
        A = 30 * A @ A + 3 * (A - A.T)
        result = logdet(A, method="arnoldi", probes=8, rng=0)
        assert abs(float(result.value) - exact(A)) <= float(result.bias_bound)
        assert "c = " in result.reason
        result = logdet(one_way(find_backend("numpy"), A), method="arnoldi", disc=(15.0, 15.2), probes=8, rng=0)
        assert abs(float(result.value) - exact(A)) <= float(result.bias_bound)

    def test_single_precision(self, backend):
        A = (0.5 * matrix_of_kind("gaussian", 8, np.random.default_rng(3))).astype(np.float32)
        for method in ("exact", "arnoldi"):
            result = logdet(array(backend, A, "float32"), method=method, probes=8, rng=0)
            assert result.value.dtype == result.bias_bound.dtype == backend.xp.float32
            assert abs(float(result.value) - exact(A.astype(float))) <= float(result.bias_bound)

    def test_products_that_nothing_bounds_make_a_matrix(self, backend):
        A = 3 * matrix_of_kind("nilpotent", 80, np.random.default_rng(4))  # of norm 3, and yet log det = 0
        result = logdet(one_way(backend, A))
        assert (result.method, int(result.products)) == ("exact", 83)
        assert abs(float(result.value)) <= float(result.bias_bound)

    @pytest.mark.needs("autodiff")
    @pytest.mark.parametrize("method", ["exact", "arnoldi"])
    def test_gradient(self, backend, method):
        d = 8
        A = 0.6 * matrix_of_kind("gaussian", d, np.random.default_rng(5))
        expected = np.linalg.inv(np.eye(d) + A).T
        weight = array(backend, A)
        for form in (lambda W: W, lambda W: Dense(W, checked=True)):
            value, pullback = backend.vjp(
                lambda W, form=form: logdet(form(W), method=method, lipschitz=0.7, probes=d, rng=0).value, weight
            )
            np.testing.assert_allclose(host(backend, pullback(backend.xp.ones_like(value))), expected, atol=1e-3)


class TestInverse:
    def test_solutions(self, backend):
        d = 8
        A = 0.7 * matrix_of_kind("gaussian", d, np.random.default_rng(0))
        y = np.random.default_rng(1).standard_normal((1, d))
        x = np.linalg.solve(np.eye(d) + A, y.T).T
        for operator, right, solution, options in (
            (array(backend, A), y, x, {}),
            (home_made(backend, A), y[0], x[0], {}),
            (one_way(backend, A), y[0], x[0], {"lipschitz": 0.71}),
        ):
            result = invert(operator, array(backend, right), **options)
            assert tuple(result.error_bound.shape) == right.shape[:-1]
            error = np.linalg.norm(host(backend, result.value) - solution, axis=-1)
            assert np.all(error <= host(backend, result.error_bound))

    def test_stacks(self):
        A = 0.3 * np.random.default_rng(0).standard_normal((2, 3, 4, 4)) / 2
        y = np.random.default_rng(1).standard_normal((2, 3, 4))
        result = invert(A, y, lipschitz=0.99)
        np.testing.assert_allclose(result.value, np.linalg.solve(np.eye(4) + A, y[..., None])[..., 0], atol=1e-8)

    def test_large_operators(self):
        A = scipy.sparse.diags_array([-10.0, 20.0, -10.0], offsets=[-1, 0, 1], shape=(50, 50))
        y = np.random.default_rng(1).standard_normal(50)
        x = np.linalg.solve(np.eye(50) + A.toarray(), y)
        for operator, known in (
            (A, {}),
            (aslinearoperator(A), {}),
            ((lambda v: A @ v,), {"spectrum": (0, 40)}),
            ((lambda v: A @ v, lambda u: A @ u), {"disc": (20, None)}),
        ):
            result = invert(operator, y, **known)
            assert np.linalg.norm(result.value - x) <= result.error_bound < 1e-8

    def test_bad_right_hand_sides(self, backend):
        A = array(backend, 0.1 * np.eye(3))
        with pytest.raises(ShapeError, match=r"\(3,\) or \(batch, 3\).*\(4,\)"):
            invert(A, array(backend, np.ones(4)))
        with pytest.raises(ShapeError, match="no right-hand side"):
            invert(A, array(backend, np.ones((0, 3))))
        with pytest.raises(DtypeError, match="float32"):
            invert(A, array(backend, np.ones(3), "float32"))
        with pytest.raises(InvalidArgumentError, match="spectrum"):
            invert(A, array(backend, np.ones(3)), spectre=(0, 1))
        with pytest.raises(InvalidArgumentError, match="layers"):
            invert(Dense(A), array(backend, np.ones((1, 3))), spectrum=(0, 1))


UNSTABLE = np.diag([-3.0, -2.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("A", "options", "error", "message"),
    [
        (UNSTABLE, {}, NotContractiveError, "at or below -1.*shorter"),
        (UNSTABLE, {"method": "arnoldi"}, NotContractiveError, "spectrum=.*shorter time step"),
        (scipy.sparse.csr_array(UNSTABLE), {}, NotContractiveError, "shorter"),
        (aslinearoperator(UNSTABLE), {"method": "arnoldi"}, NotContractiveError, "shorter"),
        (np.diag([-1.0, 1.0]), {}, NotContractiveError, "-1"),
        (np.eye(3), {"lipschitz": 1.5, "method": "arnoldi"}, NotContractiveError, "lipschitz= says"),
        (np.eye(3), {"spectrum": (-2, 1), "method": "arnoldi"}, NotContractiveError, "-2"),
        (np.eye(3), {"disc": (1, 3), "method": "arnoldi"}, NotContractiveError, "disc= says"),
        (np.eye(3), {"disc": (1, 1), "spectrum": (1, 1), "method": "arnoldi"}, InvalidArgumentError, "one of"),
        (np.triu(np.ones((3, 3))), {"spectrum": (0, 3), "method": "arnoldi"}, InvalidArgumentError, "transpose by 1"),
        (np.eye(3), {"spectrum": (3, 1), "method": "arnoldi"}, InvalidArgumentError, "low <= high"),
        (np.eye(3), {"spectrum": 3, "method": "arnoldi"}, InvalidArgumentError, "pair"),
        (np.eye(3), {"method": "mean-jacobian"}, InvalidArgumentError, "arnoldi"),
        (np.eye(3), {"checkpoint": True}, InvalidArgumentError, "branches"),
        (np.ones((2, 3)), {}, ShapeError, "square"),
        (np.eye(2) * 1j, {}, DtypeError, "complex"),
        (scipy.sparse.csr_array([[np.nan]]), {}, NonFiniteError, "sparse"),
        ((lambda v: v, lambda v: v), {}, InvalidArgumentError, "shape="),
        (as_operator(lambda v: v + 1, shape=(3, 3)), {}, InvalidArgumentError, "not linear"),
        (as_operator(abs, shape=(3, 3)), {}, InvalidArgumentError, "not linear"),
        (as_operator(lambda v: v[:2], shape=(3, 3)), {}, ShapeError, r"expected \(3,\)"),
        (ScipyOperator((3, 3), matvec=lambda v: v[:2], dtype=float), {}, ShapeError, r"matvec.*\(3,\)"),
        (as_operator(lambda v: v * np.nan, shape=(3, 3)), {}, NonFiniteError, "matvec"),
        (as_operator(lambda v: 0.5 * v, shape=(2000, 2000)), {}, UnknownLipschitzError, "rmatvec"),
        (
            as_operator((lambda v: np.triu(np.ones((3, 3))) @ v,) * 2, shape=(3, 3)),
            {},
            InvalidArgumentError,
            "no transpose",
        ),
        (
            as_operator(lambda v: np.triu(np.ones((3, 3))) @ v, shape=(3, 3)),
            {"spectrum": (0, 3), "method": "arnoldi"},
            InvalidArgumentError,
            "not symmetric",
        ),
    ],
)
def test_bad_operators(A, options, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        logdet(A, **options)


def test_an_operator_takes_no_samples(backend):
    A, x = array(backend, 0.5 * np.eye(2)), array(backend, np.ones((1, 2)))
    for operator in (A, home_made(backend, 0.5 * np.eye(2))):
        with pytest.raises(InvalidArgumentError, match="leave x out"):
            logdet(operator, x)
    with pytest.raises(InvalidArgumentError, match="without x"):
        logdet(lambda x: x, x, spectrum=(0, 1))


def test_a_branch_takes_samples():
    with pytest.raises(InvalidArgumentError, match="needs the x"):
        logdet(Chain([Dense(0.5 * np.eye(2))]))


def test_products_may_write_into_their_argument(backend):
    def half(v):
        v *= 0.5
        return v

    operator = as_operator((half, half), like=array(backend, np.zeros(4)))
    assert abs(float(logdet(operator).value) - 4 * np.log(1.5)) < 1e-12
    np.testing.assert_allclose(host(backend, invert(operator, array(backend, np.ones(4))).value), 2 / 3, atol=1e-8)
    assert abs(float(spectral_norm(operator).value) - 0.5) < 1e-6
