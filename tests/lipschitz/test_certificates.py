"""The certificates behind the bounds: what they certify is true, rounding included."""

import math

import numpy as np
import pytest
from bounds_for_tests import bound_of, is_tight
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    holds,
    matrices,
    norm_from_below,
    stacks,
)

from iresnet_core.common.arrays import gamma, round_up
from iresnet_core.lipschitz import certificates


@given(
    A=matrices(max_side=12, dtypes=st.just(np.float64), scales=(1.0,)),
    gap=st.one_of(st.just(0.0), st.floats(-17, -3).map(lambda e: 10.0**e)),
    sign=st.sampled_from([1, -1]),
)
def test_what_cholesky_certifies_is_true(backend, A, gap, sign):
    # Levels within rounding of the norm, where the factorisation may succeed although the matrix is indefinite.
    norm = float(norm_from_below(A))
    if norm == 0:
        return
    A = A / 2.0 ** math.frexp(norm)[1]
    norm = norm_from_below(A)
    level = float(norm * (1 + sign * gap))
    gram, error = certificates.smaller_gram(backend.xp, backend.from_numpy(A))
    bound = certificates.cholesky_certificate(backend, gram, error, level)
    if bound is not None:
        assert holds(bound, A)
        assert bound >= level
    if gap > 1e-9:
        assert (bound is not None) == (sign > 0)
        assert bound is None or bound <= level * (1 + 1e-9)


@given(A=stacks(max_side=5, dtypes=st.just(np.float64), scales=(1.0,)), slack=st.sampled_from([1e-3, -1e-3]))
def test_cholesky_certifies_a_whole_stack_at_once(backend, A, slack):
    A = A / max(1.0, abs(A).max())
    norm = float(norm_from_below(A.reshape(-1, *A.shape[-2:])).max())
    gram, error = certificates.smaller_gram(backend.xp, backend.from_numpy(A))
    bound = certificates.cholesky_certificate(backend, gram, error, norm * (1 + slack))
    assert (bound is not None) == (slack > 0 and norm > 0)


@pytest.mark.parametrize("complex_entries", [False, True])
def test_certificates_of_complex_matrices(backend, complex_entries):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((4, 5, 3)) + 1j * complex_entries * rng.standard_normal((4, 5, 3))
    A = A / 4
    if not complex_entries:
        A = A.real
    norms = np.linalg.norm(A, 2, axis=(1, 2))
    for method, room in (("singular_value", 1e-12), ("gram", 2e-3), ("frobenius", None), ("holder", None)):
        bounds = backend.to_numpy(getattr(certificates, f"{method}_bound")(backend, backend.from_numpy(A)))
        assert (bounds >= norms * (1 - 1e-15)).all()
        assert room is None or (bounds <= norms * (1 + room)).all()
    gram, error = certificates.smaller_gram(backend.xp, backend.from_numpy(A))
    np.testing.assert_allclose(backend.to_numpy(gram), A.conj().transpose(0, 2, 1) @ A, atol=1e-14)
    assert certificates.cholesky_certificate(backend, gram, error, float(norms.max()) * 1.001) is not None
    assert certificates.cholesky_certificate(backend, gram, error, float(norms.max()) * 0.999) is None


@pytest.mark.parametrize("n", [4, 40])
def test_cholesky_bound_survives_an_estimate_that_misses_the_norm(backend, n):
    # The estimate begins with a vector that everybody can know; here the singular vector is orthogonal to it.
    rng = np.random.default_rng(1)
    start = np.random.default_rng(0).standard_normal(n)
    x = rng.standard_normal(n)
    x -= x @ start / (start @ start) * start
    x /= np.linalg.norm(x)
    A = np.eye(n) + 9 * np.outer(x, x)
    bound, _ = bound_of(backend, A, "cholesky")
    assert holds(bound, A)
    assert bound <= 10 * 4
    gram, error = certificates.smaller_gram(backend.xp, backend.from_numpy(A / 8))
    for estimates in ([], [0.0], [1e-3], [0.1, 0.5], [1.24]):
        bound = certificates.raise_until_certified(backend, gram, error, iter(estimates))
        assert 10 / 8 <= bound <= 10 / 8 * 4


def test_cholesky_bound_is_tight_although_the_start_nearly_misses_the_top(backend):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(5)
    V = np.linalg.qr(np.stack([start, *np.eye(5)[:4]], axis=1))[0]
    # The top right singular vector has a component of 1e-5 along the start of the estimate.
    top = V[:, 1] + 1e-5 * V[:, 0]
    A = 0.5 * np.eye(5) + 0.5 * np.outer(top, top) / (top @ top)
    bound, _ = bound_of(backend, A, "cholesky")
    assert holds(bound, A)
    assert is_tight(bound, A, "cholesky")


def test_gram_matrix_error_covers_the_rounding(backend):
    rng = np.random.default_rng(0)
    for shape in ((30, 50), (50, 30), (1, 40)):
        A = rng.standard_normal(shape)
        gram, error = certificates.smaller_gram(backend.xp, backend.from_numpy(A))
        wide = A.astype(np.longdouble)
        exact = wide.T @ wide if shape[1] <= shape[0] else wide @ wide.T
        rounding = np.linalg.norm((backend.to_numpy(gram) - exact).astype(float), 2)
        assert 0 < rounding <= float(error) <= 1e-10


def test_rounding_helpers(backend):
    assert gamma(10, 0.01) == pytest.approx(0.1 / 0.9)
    assert gamma(50, 0.01) == gamma(10**9, 0.01) == math.inf
    xp = backend.xp
    for value in (0.0, 1.0, 1 + 1e-12, 0.1, 1e30, 1e-30, 1e-40, 1e-45, 1e-60):
        exact = xp.asarray(value, dtype=xp.float64)
        low = round_up(backend, exact, xp.float32)
        assert low.dtype == xp.float32
        assert value <= float(low) <= value * (1 + 5e-7) + (2e-38 if value else 0)
        same = float(round_up(backend, exact, xp.float64))
        assert same == value
