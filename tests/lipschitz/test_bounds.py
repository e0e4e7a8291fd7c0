"""Upper bounds on spectral norms: none may ever lie, and each is as tight as it claims."""

import math

import numpy as np
import pytest
from bounds_for_tests import CERTIFIED, ON_MATRICES, ORDINARY, TIGHTNESS, bound_of, every_method, is_tight
from branches_for_tests import HomeMadeOperator
from capabilities import missing
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import (
    as_seen_by,
    exact_norms,
    holds,
    make_matrix,
    matrices,
    norm_from_below,
    stacks,
)

from iresnet_core import Convolution, Dense, as_operator, lipschitz_bound
from iresnet_core.errors import DtypeError, InvalidArgumentError, NonFiniteError, ShapeError, UnknownArrayError
from iresnet_core.lipschitz import bounds, certificates
from iresnet_core.lipschitz.bounds import BOUNDS, EXPLICIT_LIMIT

# --- no bound lies ---


@given(A=matrices(), method=st.sampled_from(CERTIFIED))
@example(A=np.full((1, 2), 5e-324), method="svd")  # the norm, rounded to a subnormal number, falls
@example(A=np.full((1, 1), np.finfo(np.float64).max / 2), method="gram")
@example(A=np.array([[np.finfo(np.float32).max / 2]], np.float32), method="cholesky")
def test_bound_holds_for_adversarial_matrices(backend, A, method):
    A = as_seen_by(backend, A)
    bound, result = bound_of(backend, A, method)
    assert holds(bound, A)
    assert bound.dtype == A.dtype
    assert bound.shape == ()
    assert np.isfinite(bound)
    assert (result.method, result.certificate) == (method, BOUNDS[method].certificate)
    assert (bound == 0) == (not A.any())


@given(A=matrices(scales=ORDINARY), method=st.sampled_from(CERTIFIED))
def test_bound_is_as_tight_as_the_method_claims(backend, A, method):
    assert is_tight(bound_of(backend, A, method)[0], A, method)


@given(A=stacks(scales=(1.0, 1e-20, 1e20)), method=st.sampled_from(CERTIFIED))
def test_bounds_of_a_stack_are_those_of_its_matrices(backend, A, method):
    bound, _ = bound_of(backend, A, method)
    assert bound.shape == A.shape[:-2]
    assert holds(bound.ravel(), A.reshape(-1, *A.shape[-2:]))
    assert is_tight(bound.ravel(), A.reshape(-1, *A.shape[-2:]), method)
    for index in np.ndindex(*A.shape[:-2]):
        alone, _ = bound_of(backend, A[index].copy(), method)
        np.testing.assert_allclose(bound[index], alone, rtol=2e-3 if method == "gram" else 1e-6)


@every_method
def test_bound_is_not_below_norms_known_exactly(backend, method):
    for name, A, norm in exact_norms():
        for scale in (1.0, 2.0**-1000, 2.0**1000, 2.0**-1060):
            if scale == 2.0**-1060 and missing(backend.name, ["subnormal"]):
                continue
            bound, _ = bound_of(backend, A * scale, method)
            assert bound >= norm * scale, name
            if scale > 2.0**-1022:
                assert TIGHTNESS.get(method) is None or bound <= norm * scale * (1 + TIGHTNESS.get(method)), name


@pytest.mark.parametrize("n", [128, 4096])
def test_bound_holds_where_every_rounding_falls(backend, n):
    # Next to 1 the square of 2^-27 is less than half a unit, and is lost again and again.
    row = np.full((1, n), 2.0**-27)
    row[0, 0] = 1
    for A in (row, row.T.copy()):
        norm = norm_from_below(A)
        for method in CERTIFIED:
            assert holds(bound_of(backend, A, method)[0], A, norm)
        gram, error = certificates.smaller_gram(backend.xp, backend.from_numpy(A))
        seen = math.sqrt(float(gram[0, 0]))
        assert seen < norm
        bound = certificates.cholesky_certificate(backend, gram, error, seen * (1 + 2.0**-51))
        assert holds(bound, A, norm)


@pytest.mark.parametrize(("m", "n"), [(129, 150), (512, 450)])
@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "clustered"])
def test_bounds_of_large_matrices(backend, m, n, kind):
    A = make_matrix(kind, m, n)
    norm = norm_from_below(A)
    for method in CERTIFIED:
        bound, _ = bound_of(backend, A, method)
        assert holds(bound, A, norm)
        assert TIGHTNESS.get(method) is None or bound <= norm * (1 + TIGHTNESS.get(method))


@given(A=matrices(dtypes=st.just(np.float32)), method=st.sampled_from(CERTIFIED))
def test_float32_matrices_are_bounded_in_float64_and_rounded_up(backend, A, method):
    A = as_seen_by(backend, A)
    low, _ = bound_of(backend, A, method)
    high, _ = bound_of(backend, A.astype(np.float64), method)
    assert low.dtype == np.float32
    assert np.float64(low) >= high
    assert np.float64(low) <= high * (1 + 4e-7) + 2 * np.finfo(np.float32).smallest_normal


@pytest.mark.needs("float16")
@every_method
def test_half_precision(backend, method):
    A = make_matrix("gaussian", 9, 7, dtype=np.float16)
    bound, _ = bound_of(backend, A, method)
    assert bound.dtype == np.float16
    assert holds(bound, A)


@given(A=matrices(scales=ORDINARY))
def test_cheap_bounds_are_the_norms_they_are_named_after(backend, A):
    A = A.astype(np.float64)
    rows, columns = abs(A).sum(axis=1).max(), abs(A).sum(axis=0).max()
    np.testing.assert_allclose(bound_of(backend, A, "frobenius")[0], np.linalg.norm(A), rtol=1e-12)
    np.testing.assert_allclose(bound_of(backend, A, "holder")[0], math.sqrt(rows) * math.sqrt(columns), rtol=1e-12)


def test_empty_stack(backend):
    for method in ON_MATRICES:
        bound, _ = bound_of(backend, np.zeros((2, 0, 3, 4)), method)
        assert bound.shape == (2, 0)


# --- what "auto" takes ---


def test_automatic_choice(backend):
    def method_of(A):
        return lipschitz_bound(A).method

    def image(kernel_shape, *extent, **options):
        return Convolution(
            backend.xp.ones(kernel_shape, dtype=backend.xp.float64), input_shape=(kernel_shape[1], *extent), **options
        )

    small = backend.xp.ones((128, 200), dtype=backend.xp.float64)
    large = backend.from_numpy(make_matrix("orthogonal", 129, 130))
    accelerated = backend.is_accelerated(small)
    assert method_of(small) == ("gram" if accelerated else "svd")
    assert method_of(large) == method_of(Dense(large)) == ("gram" if accelerated else "cholesky")
    assert method_of(image((1, 1, 3), 10)) == "svd"
    assert method_of(image((1, 1, 3), 200)) == "fft"
    # Few outputs, but a matrix that is not to be written down.
    assert method_of(image((1, 1, 2), 2**18, stride=2**18 // 100)) == "fft"


def test_operator_without_entries_is_bounded_in_probability():
    bound = lipschitz_bound(aslinearoperator(np.diag([3.0, 1.0])), rng=0)
    assert (bound.method, bound.certificate) == ("lanczos", "probabilistic")
    for method in CERTIFIED:
        bound = lipschitz_bound(aslinearoperator(np.diag([3.0, 1.0])), method=method)
        assert bound.value >= 3


def test_home_made_operator_is_bounded(backend):
    like = backend.from_numpy(np.ones(1))
    operator = as_operator(HomeMadeOperator(backend, np.diag([3.0, 1.0])), like=like)
    bound = lipschitz_bound(operator, rng=0)
    assert (bound.method, bound.certificate) == ("lanczos", "probabilistic")
    for method in CERTIFIED:
        bound = lipschitz_bound(operator, method=method)
        assert 3 <= float(bound.value) <= 3.2
        assert bound.value.dtype == like.dtype


def test_matrices_too_large_are_not_written_down(backend):
    layer = Convolution(backend.xp.ones((1, 1, 3), dtype=backend.xp.float64), input_shape=(1, 2**13))
    for method in CERTIFIED:
        with pytest.raises(InvalidArgumentError, match=rf"{method}.*8190 x 8192.*{EXPLICIT_LIMIT}.*'fft'"):
            lipschitz_bound(layer, method=method)


@pytest.mark.parametrize("kind", ["dense", "convolution", "one tap"])
def test_no_singular_vectors_that_nobody_asked_for(backend, monkeypatch, kind):
    """Outside of programs that are differentiated, a bound computes no derivative."""

    def refused(*_, **__):
        raise AssertionError("singular vectors")

    monkeypatch.setattr(bounds, "spectral_norm", refused)
    monkeypatch.setattr(bounds, "certified_bound", refused)
    rng = np.random.default_rng(0)
    if kind == "dense":
        operator = Dense(backend.from_numpy(rng.standard_normal((140, 130))))
    else:
        kernel = backend.from_numpy(rng.standard_normal((12, 10, 1 if kind == "one tap" else 3)))
        operator = Convolution(kernel, input_shape=(10, 20))
    for method in ("auto", "svd", "gram"):
        assert float(lipschitz_bound(operator, method=method).value) > 0


# --- errors ---


@pytest.mark.parametrize(
    ("A", "error", "message"),
    [
        (np.ones(3), ShapeError, r"\(3,\)"),
        (np.ones((0, 3)), ShapeError, r"\(0, 3\)"),
        (np.ones((2, 2), int), DtypeError, "int64"),
        (np.ones((2, 2), complex), DtypeError, "complex128"),
        (np.array([[1.0, np.inf]]), NonFiniteError, "1 non-finite"),
        (np.array([[1.0, np.nan]], np.float32), NonFiniteError, "NaN"),
    ],
)
def test_bad_matrices(backend, A, error, message):
    for method in ("auto", *BOUNDS):
        with pytest.raises(error, match=message):
            lipschitz_bound(backend.from_numpy(A), method=method)


def test_bad_methods(backend):
    A = backend.from_numpy(np.eye(2))
    with pytest.raises(InvalidArgumentError, match=f"auto, {', '.join(BOUNDS)}; got 'qr'"):
        lipschitz_bound(A, method="qr")
    for operator in (A, Dense(A)):
        kind = type(as_operator(operator)).__name__
        with pytest.raises(InvalidArgumentError, match=f"'fft' is for convolutions, got {kind} of shape"):
            lipschitz_bound(operator, method="fft")
    with pytest.raises(UnknownArrayError, match="list"):
        lipschitz_bound([[1.0]])
