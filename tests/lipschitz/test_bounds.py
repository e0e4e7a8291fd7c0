"""Upper bounds on spectral norms: none may ever lie, and each is as tight as it claims."""

import itertools
import math

import numpy as np
import pytest
from branches_for_tests import HomeMadeOperator
from capabilities import missing
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import (
    DTYPES,
    KINDS,
    SCALES,
    SEEDS,
    as_seen_by,
    convolution_matrix,
    convolutions,
    exact_norms,
    holds,
    make_matrix,
    matrices,
    norm_from_below,
    stacks,
    torus_norm,
)

from iresnet_core import Convolution, Dense, as_operator, lipschitz_bound, spectral_norm
from iresnet_core.common.arrays import gamma, round_up
from iresnet_core.errors import DtypeError, InvalidArgumentError, NonFiniteError, ShapeError, UnknownArrayError
from iresnet_core.lipschitz import certificates
from iresnet_core.lipschitz import fourier as torus
from iresnet_core.lipschitz.bounds import BOUNDS, EXPLICIT_LIMIT, bound_methods

ON_MATRICES = bound_methods(as_operator(np.eye(1)))
CERTIFIED = tuple(name for name in ON_MATRICES if BOUNDS[name].certificate != "probabilistic")
every_method = pytest.mark.parametrize("method", CERTIFIED)
# How far above the norm the bound may be, relative to it; None: as loose as the method is.
TIGHTNESS = {"svd": 1e-12, "cholesky": 5e-3, "gram": 2e-3, "frobenius": None, "holder": None}
# Where the rounding to the dtype of a bound is small against it.
ORDINARY = (1.0, 0.37, 2.0**-40, 1e-20, 1e20, 1e-30, 1e30)


def bound_of(backend, A, method, **options):
    """The bound as a NumPy array, and the rest of the result."""
    result = lipschitz_bound(backend.from_numpy(A), method=method, **options)
    return backend.to_numpy(result.value), result


def is_close(bound, A, room):
    """Whether bounds are at most `room` above the norms, relative to them, but for rounding to the dtype."""
    info = np.finfo(A.dtype)
    return bool(np.all(bound <= norm_from_below(A) * (1 + room + 4 * info.eps) + 2 * info.smallest_normal))


def is_tight(bound, A, method):
    return TIGHTNESS[method] is None or is_close(bound, A, TIGHTNESS[method])


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
                assert TIGHTNESS[method] is None or bound <= norm * scale * (1 + TIGHTNESS[method]), name


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
        assert TIGHTNESS[method] is None or bound <= norm * (1 + TIGHTNESS[method])


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


# --- the certificates themselves ---


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


# --- convolutions ---


@given(case=convolutions(dtypes=DTYPES), other=st.sampled_from([*CERTIFIED, "auto"]))
def test_torus_bounds_the_norm_of_a_convolution(backend, case, other):
    kernel, input_shape, options = case
    A = convolution_matrix(kernel, input_shape, options)
    layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
    for method in ("fft", other):
        result = lipschitz_bound(layer, method=method)
        assert result.value.dtype == layer.weight.dtype
        assert holds(backend.to_numpy(result.value), A)
    # It is no looser than the sum of the norms of the taps, by Young's inequality.
    taps = np.linalg.norm(np.moveaxis(kernel.reshape(*kernel.shape[:2], -1), -1, 0).astype(float), axis=(1, 2))
    assert float(lipschitz_bound(layer, method="fft").value) <= taps.sum() * (1 + 1e-6)


@given(case=convolutions(modes=("circular",)))
def test_torus_bound_is_the_norm_of_a_circular_convolution(backend, case):
    kernel, input_shape, options = case
    reach = [(k - 1) * d for k, d in zip(kernel.shape[2:], options["dilation"], strict=True)]
    if any(r - r // 2 > n for r, n in zip(reach, input_shape[1:], strict=True)):
        return  # the padding would be wider than the image
    options |= {"stride": (1,) * len(reach), "padding": tuple((r // 2, r - r // 2) for r in reach)}
    A = convolution_matrix(kernel, input_shape, options)
    bound = lipschitz_bound(
        Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options), method="fft"
    ).value
    np.testing.assert_allclose(float(bound), norm_from_below(A).astype(float), rtol=1e-11)


def test_a_torus_of_the_size_of_the_input_is_no_bound(backend):
    kernel = np.array([[[2.0, -1.0, 2.0]]])
    layer = Convolution(backend.from_numpy(kernel), input_shape=(1, 3), padding="same")
    norm = float(norm_from_below(backend.to_numpy(layer.matrix())))
    assert torus_norm(kernel, (3,)) == pytest.approx(3)
    assert norm == pytest.approx(1 + 8**0.5)
    bound = float(lipschitz_bound(layer, method="fft").value)
    assert bound == pytest.approx(torus_norm(kernel, (5,)), rel=1e-12)
    assert bound > norm > 1.2 * 3


@pytest.mark.parametrize(
    ("kernel_shape", "extent"), [((2, 3, 3), 40), ((4, 4, 3, 3), 16), ((2, 3, 4), 30), ((12, 10, 3, 3), 9)]
)
def test_torus_bound_approaches_the_norm_of_large_images(backend, kernel_shape, extent):
    rng = np.random.default_rng(0)
    layer = Convolution(
        backend.from_numpy(rng.standard_normal(kernel_shape)),
        input_shape=(kernel_shape[1], *(extent,) * (len(kernel_shape) - 2)),
        padding="same",
    )
    norm = float(spectral_norm(layer, method="lanczos", rtol=1e-5, max_iter=200).value)
    bound = lipschitz_bound(layer, method="fft")
    assert norm <= float(bound.value) <= 1.06 * norm
    assert (bound.method, bound.certificate) == ("fft", "certified")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [2**22, 300, 1])
@pytest.mark.parametrize("few", [0, 8])
def test_torus_in_pieces(backend, monkeypatch, groups, chunk, few):
    # Many channels are certified by Cholesky, a chunk of frequencies at a time.
    monkeypatch.setattr(torus, "ENTRIES_AT_A_TIME", chunk)
    monkeypatch.setattr(torus, "FEW_CHANNELS", few)
    rng = np.random.default_rng(7)
    kernel = rng.standard_normal((4, 4 // groups, 3, 2))
    kernel[0] *= 3
    layer = Convolution(backend.from_numpy(kernel), input_shape=(4, 5, 4), groups=groups, padding=1)
    parts = np.split(kernel, groups)
    norm = max(torus_norm(part, (5 + 2, 4 + 1)) for part in parts)
    bound = float(lipschitz_bound(layer, method="fft").value)
    assert norm <= bound <= norm * (1.0045 if few == 0 else 1 + 1e-11)


def test_torus_of_zero_kernels(backend):
    for channels in (1, 10):
        kernel = backend.from_numpy(np.zeros((channels, channels, 3)))
        assert float(lipschitz_bound(Convolution(kernel, input_shape=(channels, 4)), method="fft").value) == 0


def test_both_formats_have_the_same_bound(backend):
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 2))
    first = Convolution(backend.from_numpy(kernel), input_shape=(2, 5, 4))
    last = Convolution(
        backend.from_numpy(np.moveaxis(kernel, (0, 1), (-1, -2))), input_shape=(5, 4, 2), data_format="channels_last"
    )
    for method in ("fft", "svd"):
        bounds = [float(lipschitz_bound(layer, method=method).value) for layer in (first, last)]
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)


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


# --- the probabilistic bound ---


def spread_out(n, top):
    """A matrix whose norm stands a little above a spectrum without gaps: Lanczos finds it late."""
    rng = np.random.default_rng(n)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return U @ np.diag([top, *np.linspace(1, 0, n - 1)]) @ V


@pytest.mark.parametrize("top", [1.0, 1.01, 1.03])
def test_probabilistic_bound_holds_for_hundreds_of_seeds(top):
    A = spread_out(120, top)
    norm = norm_from_below(A)
    bounds = np.array([lipschitz_bound(A, method="lanczos", rng=seed).value for seed in range(150)])
    assert (bounds >= norm).all()
    assert (bounds <= norm * 1.02).all()
    assert len(set(bounds)) == 150


@given(A=matrices(scales=ORDINARY), seed=SEEDS)
def test_probabilistic_bound_holds_for_adversarial_matrices(backend, A, seed):
    bound, result = bound_of(backend, A, "lanczos", rng=seed)
    assert holds(bound, A)
    assert bound.dtype == A.dtype
    assert is_close(bound, A, 0.02 + 64 * max(A.shape) * np.finfo(A.dtype).eps)
    assert (result.method, result.certificate) == ("lanczos", "probabilistic")


@given(A=stacks(max_side=5), seed=SEEDS)
def test_probabilistic_bounds_of_a_stack(backend, A, seed):
    bound, _ = bound_of(backend, A, "lanczos", rng=seed)
    assert bound.shape == A.shape[:-2]
    assert holds(bound.ravel(), A.reshape(-1, *A.shape[-2:]))


@given(case=convolutions(max_extent=4, max_channels=2), seed=SEEDS)
def test_probabilistic_bound_of_convolutions(backend, case, seed):
    kernel, input_shape, options = case
    layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
    bound = lipschitz_bound(layer, method="lanczos", rng=seed).value
    assert holds(backend.to_numpy(bound), convolution_matrix(kernel, input_shape, options))


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e-310, 1e200, 1e300])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 40), (40, 3), (30, 30)])
def test_probabilistic_bound_of_foreign_operators(scale, shape):
    A = make_matrix("gaussian", *shape, scale=scale)
    for seed in range(5):
        bound = lipschitz_bound(aslinearoperator(A), rng=seed).value
        assert holds(bound, A)
        assert bound <= norm_from_below(A) * 1.01
    assert lipschitz_bound(aslinearoperator(0 * A), rng=0).value == 0


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e300])
@pytest.mark.parametrize("shape", [(1, 9), (9, 4)])
def test_probabilistic_bound_of_home_made_operators(backend, scale, shape):
    A = make_matrix("gaussian", *shape, scale=scale)
    like = backend.from_numpy(np.ones(1))
    for seed in range(3):
        bound = float(lipschitz_bound(as_operator(HomeMadeOperator(backend, A), like=like), rng=seed).value)
        assert holds(bound, A)
        assert bound <= norm_from_below(A) * 1.01
    assert float(lipschitz_bound(as_operator(HomeMadeOperator(backend, 0 * A), like=like), rng=0).value) == 0


def test_probabilistic_bound_begins_at_random(backend):
    A = spread_out(40, 1.01)
    first, again, other = (float(bound_of(backend, A, "lanczos", rng=rng)[0]) for rng in (0, 0, 1))
    assert first == again != other
    generator = np.random.default_rng(0)
    drawn = [float(bound_of(backend, A, "lanczos", rng=generator)[0]) for _ in range(3)]
    assert len(set(drawn)) == 3
    assert drawn[0] == first


@pytest.mark.needs("numpy_rng")
def test_without_a_generator_the_global_one_is_drawn_from(backend):
    A = spread_out(40, 1.01)
    bounds = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        bounds.append(float(bound_of(backend, A, "lanczos")[0]))
    assert bounds[0] == bounds[1] != bounds[2]


@pytest.mark.parametrize("rng", ["seed", 1.5, -1, True, [1, 2], np.ones(4)], ids=repr)
def test_bad_generators(backend, rng):
    with pytest.raises(InvalidArgumentError, match="rng"):
        lipschitz_bound(backend.from_numpy(np.eye(4)), method="lanczos", rng=rng)


def test_a_warm_start_is_not_accepted(backend):
    A = backend.from_numpy(np.eye(4))
    with pytest.raises(TypeError, match="start"):
        lipschitz_bound(A, method="lanczos", start=spectral_norm(A))
    with pytest.raises(InvalidArgumentError, match=r"rng.*SpectralNorm"):
        lipschitz_bound(A, method="lanczos", rng=spectral_norm(A))


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


# --- thousands of cases ---

SHARDS = 8
MATRICES = 400
CONVOLUTIONS = 150
CASES = MATRICES * len(CERTIFIED) + CONVOLUTIONS


def test_strict_suite_is_large_enough():
    assert SHARDS * CASES >= 10_000


def sides():
    """Sides of the matrices of one shard: all small ones, some large ones, and 512."""
    rng = np.random.default_rng(SHARDS)
    small = rng.integers(1, 33, MATRICES - 70)
    return [*small, *rng.integers(33, 129, 50), *rng.integers(129, 513, 18), 511, 512]


@pytest.mark.strict_suite
@pytest.mark.parametrize("shard", range(SHARDS))
def test_ten_thousand_certificates(backend, shard, capsys):
    rng = np.random.default_rng([shard, 2024])
    choices = list(itertools.product(KINDS, SCALES))
    cases, violations = 0, []
    for number, side in enumerate(sides()):
        kind, dtype = choices[(number + 5 * shard) % len(choices)]
        m, n = rng.permutation([side, side if rng.random() < 0.5 else rng.integers(1, side + 1)])
        scale, seed = rng.choice(np.array(SCALES[dtype], object)), int(rng.integers(2**32))
        A = make_matrix(kind, m, n, scale=scale, dtype=dtype, seed=seed)
        norm = norm_from_below(A)
        for method in CERTIFIED:
            cases += 1
            if not holds(bound_of(backend, A, method)[0], A, norm):
                violations.append((method, kind, m, n, scale, dtype.__name__, seed))
    for _ in range(CONVOLUTIONS):
        cases += 1
        kernel, input_shape, options = random_convolution(rng)
        layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
        bound = backend.to_numpy(lipschitz_bound(layer, method="fft").value)
        if not holds(bound, convolution_matrix(kernel, input_shape, options)):
            violations.append(("fft", kernel, input_shape, options))
    with capsys.disabled():
        print(f"\n{backend.name}, part {shard + 1} of {SHARDS}: {cases} certificates, {len(violations)} violated")
    assert not violations
    assert cases == CASES


def random_convolution(rng):
    """A convolution that is drawn without hypothesis: (kernel, input shape, options)."""
    axes = int(rng.integers(1, 4))
    window, dilation = rng.integers(1, 4, axes), rng.integers(1, 3, axes)
    reach = (window - 1) * dilation
    circular = bool(rng.random() < 0.3)
    before = rng.integers(0, (reach if circular else reach + 2) + 1) // (2 if circular else 1)
    after = before if circular else rng.integers(0, reach + 2)
    spatial = np.maximum(reach + 1 - before - after, 1) + rng.integers(0, (12, 4, 2)[axes - 1], axes)
    spatial = np.maximum(spatial, before) if circular else spatial
    groups = int(rng.integers(1, 3))
    inner, outer = rng.integers(1, 12 if axes == 1 else 4, 2)
    kernel = rng.standard_normal((outer * groups, inner, *window)) * 10.0 ** rng.uniform(-30, 30)
    options = {
        "stride": tuple(map(int, rng.integers(1, 4, axes) if rng.random() < 0.4 else [1] * axes)),
        "padding": tuple((int(b), int(a)) for b, a in zip(before, after, strict=True)),
        "dilation": tuple(map(int, dilation)),
        "groups": groups,
        "padding_mode": "circular" if circular else "zeros",
    }
    dtype = np.float32 if rng.random() < 0.5 else np.float64
    return kernel.astype(dtype), (int(inner) * groups, *map(int, spatial)), options
