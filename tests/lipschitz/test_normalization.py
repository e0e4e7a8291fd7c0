"""Normalised weights: below their cap beyond doubt, and untouched where they were below it already."""

import math

import capabilities
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.linalg import aslinearoperator
from strategies import (
    DTYPES,
    SEEDS,
    convolution_matrix,
    convolutions,
    holds,
    make_matrix,
    matrices,
    norm_from_below,
    sides,
    stacks,
)

from iresnet_core import Activation, Chain, Convolution, Dense, lipschitz_bound, normalize, spectral_penalty
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    ShapeError,
    UnknownArrayError,
)
from iresnet_core.results import LipschitzBound

COEFFS = st.one_of(st.sampled_from([0.5, 0.9, 0.97, 1.0, 1e-3, 1e3]), st.floats(0.01, 10))
NORMAL = (1.0, 0.37, 3.0, 1e-20, 1e20)


def below(A, coeff):
    """Whether the norms of A (..., m, n) are at most `coeff`, in extended precision."""
    return bool((norm_from_below(A) <= np.longdouble(coeff)).all())


# --- matrices ---


@given(A=matrices(), coeff=COEFFS)
@example(A=np.full((3, 3), 1e38, np.float32), coeff=1e-4)  # coeff / bound is subnormal in float32
@example(A=np.full((3, 3), 1e307), coeff=1e-4)
@example(A=np.full((20, 20), 1.0, np.float32), coeff=1e-43)
@example(A=np.full((20, 20), 1.0), coeff=1e-322)
def test_normalized_matrix_is_below_the_cap(backend, A, coeff):
    scaled = backend.to_numpy(normalize(backend.from_numpy(A), coeff))
    assert scaled.dtype == A.dtype
    assert below(scaled, coeff)


@given(A=matrices(scales=NORMAL), coeff=COEFFS)
def test_normalized_matrix_is_parallel_and_not_smaller_than_needed(backend, A, coeff):
    bound = float(lipschitz_bound(backend.from_numpy(A)).value)
    scaled = backend.to_numpy(normalize(backend.from_numpy(A), coeff))
    if bound <= coeff:
        np.testing.assert_array_equal(scaled, A)
    else:
        norm = float(norm_from_below(A))
        np.testing.assert_allclose(scaled / coeff, A / norm, rtol=1e-5, atol=1e-37)
        room = 1e-12 if A.dtype == np.float64 else 1e-5
        assert norm_from_below(scaled) >= coeff * (1 - room)


@given(A=matrices(scales=NORMAL), coeff=st.floats(0.3, 3))
def test_small_weights_are_untouched(backend, A, coeff):
    bound = float(lipschitz_bound(backend.from_numpy(A)).value)
    if bound > 0:
        coeff = bound * (1 + coeff)
    same = backend.to_numpy(normalize(backend.from_numpy(A), coeff))
    assert same.tobytes() == A.tobytes()  # signs of zeros and all


def test_weights_at_the_cap_are_untouched(backend):
    A = make_matrix("gaussian", 5, 5)
    cap = float(lipschitz_bound(backend.from_numpy(A)).value)
    np.testing.assert_array_equal(backend.to_numpy(normalize(backend.from_numpy(A), cap)), A)
    assert below(backend.to_numpy(normalize(backend.from_numpy(A), math.nextafter(cap, 0))), cap)


def test_normalizing_twice_changes_nothing_but_rounding(backend):
    A = backend.from_numpy(make_matrix("gaussian", 20, 30))
    once = backend.to_numpy(normalize(A, 0.9))
    twice = backend.to_numpy(normalize(backend.from_numpy(once), 0.9))
    np.testing.assert_allclose(twice, once, rtol=1e-13)


@given(A=stacks(), coeff=COEFFS)
def test_matrices_of_a_stack_are_scaled_one_by_one(backend, A, coeff):
    scaled = backend.to_numpy(normalize(backend.from_numpy(A), coeff))
    assert scaled.shape == A.shape
    assert below(scaled.reshape(-1, *A.shape[-2:]), coeff)
    for index in np.ndindex(*A.shape[:-2]):
        alone = backend.to_numpy(normalize(backend.from_numpy(A[index].copy()), coeff))
        np.testing.assert_allclose(scaled[index], alone, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_matrix(backend, dtype):
    A = backend.from_numpy(make_matrix("gaussian", 300, 200, dtype=dtype))
    scaled = backend.to_numpy(normalize(A, 0.9))
    assert below(scaled, 0.9)
    assert norm_from_below(scaled) > 0.9 * (1 - 5e-3)


@pytest.mark.needs("float16")
@pytest.mark.parametrize("coeff", [0.9, 0.05, 1e-4])
def test_half_precision(backend, coeff):
    for kind, scale in (("gaussian", 100.0), ("ones", 60.0), ("orthogonal", 1.0)):
        scaled = normalize(make_matrix(kind, 30, 30, scale=scale, dtype=np.float16), coeff)
        assert scaled.dtype == np.float16
        assert below(scaled, coeff)
        if coeff > 0.01:
            assert norm_from_below(scaled) > coeff * 0.9


def test_input_is_not_changed(backend):
    A = make_matrix("gaussian", 4, 4)
    given_matrix = backend.from_numpy(A.copy())
    normalize(given_matrix, 0.1)
    np.testing.assert_array_equal(backend.to_numpy(given_matrix), A)


# --- a bound that is known ---


@pytest.mark.parametrize(
    "bound",
    [
        4,
        4.0,
        np.float64(4.0),
        LipschitzBound(4.0, "certified", "frobenius"),
        lambda backend: backend.xp.asarray(4.0, dtype=backend.xp.float64),
        lambda backend: backend.xp.asarray(4.0, dtype=backend.xp.float32),
        lambda backend: LipschitzBound(backend.xp.asarray(4.0, dtype=backend.xp.float64), "exact", "svd"),
    ],
)
def test_known_bound_is_used_as_it_is(backend, bound):
    bound = bound(backend) if callable(bound) else bound
    A = np.diag([2.0, 1.0])
    scaled = backend.to_numpy(normalize(backend.from_numpy(A), 0.5, bound=bound))
    np.testing.assert_allclose(scaled, A / 8, rtol=1e-14)
    np.testing.assert_array_equal(backend.to_numpy(normalize(backend.from_numpy(A), 4.0, bound=bound)), A)


def test_known_bounds_of_a_stack(backend):
    A = np.stack([np.eye(2), 2 * np.eye(2), 8 * np.eye(2)])
    bounds = backend.from_numpy(np.array([1.0, 4.0, 8.0]))
    scaled = backend.to_numpy(normalize(backend.from_numpy(A), 2.0, bound=bounds))
    np.testing.assert_allclose(scaled, np.stack([np.eye(2), np.eye(2), 2 * np.eye(2)]), rtol=1e-14)
    np.testing.assert_array_equal(scaled[0], np.eye(2))
    everywhere = backend.to_numpy(normalize(backend.from_numpy(A), 2.0, bound=8.0))
    np.testing.assert_allclose(everywhere, A / 4, rtol=1e-14)


# --- layers ---


@given(A=matrices(scales=NORMAL), coeff=COEFFS, seed=SEEDS)
def test_dense_layer_keeps_its_bias_and_carries_its_bound(backend, A, coeff, seed):
    bias = np.random.default_rng(seed).standard_normal(len(A)).astype(A.dtype)
    layer = Dense(backend.from_numpy(A), backend.from_numpy(bias))
    scaled = normalize(layer, coeff)
    assert type(scaled) is Dense
    np.testing.assert_array_equal(backend.to_numpy(scaled.bias), bias)
    weight = backend.to_numpy(scaled.weight)
    assert weight.dtype == A.dtype
    assert scaled._bound is not None
    assert below(weight, coeff)
    assert scaled.lipschitz <= coeff
    assert holds(backend.to_numpy(scaled.bound.value), weight)
    if backend.is_accelerated(scaled.weight):
        assert scaled.bound[1:] == ("certified", "gram")
    else:
        assert scaled.bound[1:] == ("exact", "svd")
    np.testing.assert_array_equal(backend.to_numpy(layer.weight), A)


def test_layer_with_a_given_bound_says_where_it_is_from(backend):
    layer = Dense(backend.from_numpy(np.diag([2.0, 1.0])))
    scaled = normalize(layer, 0.5, bound=4.0)
    assert (float(scaled.bound.value), scaled.bound.method, scaled.bound.certificate) == (0.5, "given", "stated")
    probable = lipschitz_bound(layer, method="lanczos", rng=0)
    assert normalize(layer, 0.5, bound=probable).bound[1:] == ("probabilistic", "lanczos")
    assert normalize(layer, 9.0, bound=probable).lipschitz == float(probable.value)


@given(case=convolutions(dtypes=DTYPES), coeff=COEFFS)
def test_convolution(backend, case, coeff):
    kernel, input_shape, options = case
    bias = backend.from_numpy(np.ones(len(kernel), kernel.dtype))
    scaled = normalize(Convolution(backend.from_numpy(kernel), bias, input_shape=input_shape, **options), coeff)
    assert type(scaled) is Convolution
    assert (scaled.padding, scaled.stride, scaled.groups) == (options["padding"], options["stride"], options["groups"])
    np.testing.assert_array_equal(backend.to_numpy(scaled.bias), 1)
    A = convolution_matrix(backend.to_numpy(scaled.kernel), input_shape, options)
    assert below(A, coeff)
    assert scaled.lipschitz <= coeff
    assert holds(backend.to_numpy(scaled.bound.value), A)


@given(
    widths=st.lists(sides(8), min_size=1, max_size=4),
    activation=st.sampled_from([("lipswish", {}), ("sigmoid", {}), ("elu", {"alpha": 3.0}), ("maxmin", {"axis": -1})]),
    coeff=COEFFS,
    seed=SEEDS,
    dtype=DTYPES,
)
def test_chain_is_capped_as_a_whole(backend, widths, activation, coeff, seed, dtype):
    rng = np.random.default_rng(seed)
    layers, width = [], 4
    for out in [*widths, 4]:
        W, b = rng.standard_normal((out, width)).astype(dtype), rng.standard_normal(out).astype(dtype)
        layers += [Dense(backend.from_numpy(10 * W), backend.from_numpy(b)), Activation(activation[0], **activation[1])]
        width = out
    g = Chain(layers)
    scaled = normalize(g, coeff)
    assert scaled.lipschitz <= coeff
    product = np.longdouble(1)
    for before, after in zip(g.layers, scaled.layers, strict=True):
        if isinstance(after, Activation):
            assert after is before
            product *= after.lipschitz
        else:
            np.testing.assert_array_equal(backend.to_numpy(after.bias), backend.to_numpy(before.bias))
            product *= norm_from_below(backend.to_numpy(after.weight))
    assert product <= coeff
    constants = [layer.lipschitz for layer in scaled.operators]
    small = any(layer.lipschitz < min(constants) for layer in g.operators)
    assert (
        max(constants) <= min(constants) * (1 + 1e-6)
        or small
        or any(before.lipschitz == after.lipschitz for before, after in zip(g.operators, scaled.operators, strict=True))
    )


def test_every_layer_of_a_chain_has_its_share(backend):
    big, small = (Dense(backend.from_numpy(s * np.eye(3))) for s in (5.0, 0.1))
    scaled = normalize(Chain([big, Activation("sigmoid"), small, Activation("elu", alpha=2.0), big]), 0.5)
    share = (0.5 / (0.25 * 2)) ** (1 / 3)
    np.testing.assert_allclose([layer.lipschitz for layer in scaled.operators], [share, 0.1, share], rtol=1e-12)
    assert backend.to_numpy(scaled.operators[1].weight)[0, 0] == 0.1


# --- errors ---


@pytest.mark.parametrize(
    ("coeff", "options", "error", "message"),
    [
        (0, {}, InvalidArgumentError, "coeff must be a positive finite number, got 0"),
        (-0.9, {}, InvalidArgumentError, r"got -0\.9"),
        (math.nan, {}, InvalidArgumentError, "got nan"),
        (math.inf, {}, InvalidArgumentError, "got inf"),
        (0.9, {"bound": -1.0}, InvalidArgumentError, "negative, got -1"),
        (0.9, {"bound": math.nan}, NonFiniteError, "bound.*NaN"),
        (0.9, {"bound": math.inf}, NonFiniteError, "bound.*infinity"),
        (0.9, {"bound": LipschitzBound(math.nan, "certified", "mine")}, NonFiniteError, "bound.*NaN"),
        (0.9, {"bound": np.array([1.0, 2.0])}, ShapeError, r"shape \(\), got \(2,\)"),
        (0.9, {"bound": np.array(np.nan)}, NonFiniteError, "bound.*NaN"),
    ],
)
def test_bad_arguments(backend, coeff, options, error, message):
    if isinstance(options.get("bound"), np.ndarray):
        options = {"bound": backend.from_numpy(options["bound"])}
    A = backend.from_numpy(np.eye(2))
    for operator in (A, Dense(A)):
        with pytest.raises(error, match=message):
            normalize(operator, coeff, **options)


@pytest.mark.parametrize(
    ("A", "error"),
    [
        (np.ones(3), ShapeError),
        (np.ones((2, 2), int), DtypeError),
        (np.ones((2, 2), complex), DtypeError),
        (np.full((2, 2), np.nan), NonFiniteError),
    ],
)
def test_bad_matrices(backend, A, error):
    with pytest.raises(error):
        normalize(backend.from_numpy(A), 0.9)


def test_operators_without_entries_are_divided():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((30, 30))
    sparse = normalize(csr_array(A), 0.9)
    assert np.linalg.norm(sparse.toarray(), 2) <= 0.9
    by_products = normalize(aslinearoperator(A), 0.9, bound=2 * np.linalg.norm(A, 2))
    np.testing.assert_allclose(by_products.matvec(A[0]), A @ A[0] * 0.45 / np.linalg.norm(A, 2), rtol=1e-12)
    small = aslinearoperator(A / 1e3)
    assert normalize(small, 0.9) is small


def test_what_cannot_be_scaled(backend):
    with pytest.raises(UnknownArrayError, match="list"):
        normalize([[1.0]], 0.9)
    with pytest.raises(InvalidArgumentError, match="no bound for a chain"):
        normalize(Chain([Dense(backend.from_numpy(np.eye(2)))]), 0.9, bound=1.0)


# --- the penalty ---


@given(A=matrices(scales=(1.0,)), B=matrices(scales=(1.0,), dtypes=st.just(np.float64)), weight=st.floats(0, 10))
def test_penalty_is_the_sum_of_squared_norms(backend, A, B, weight):
    A = A.astype(np.float64)
    layer, dense = backend.from_numpy(A), Dense(backend.from_numpy(B))
    penalty = spectral_penalty([layer, dense, Chain([dense, Activation("tanh")])], weight)
    assert penalty.shape == ()
    expected = weight * (norm_from_below(A) ** 2 + 2 * norm_from_below(B) ** 2)
    np.testing.assert_allclose(float(penalty), expected.astype(float), rtol=1e-12)


def test_penalty_of_stacks_and_generators(backend):
    A = backend.from_numpy(np.stack([np.diag([3.0, 1.0]), np.diag([1.0, 2.0])]))
    assert float(spectral_penalty((A for _ in range(2)), 0.5)) == pytest.approx(13)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_bad_weight_of_the_penalty(backend, weight):
    with pytest.raises(InvalidArgumentError, match=f"weight.*{weight}"):
        spectral_penalty([backend.from_numpy(np.eye(2))], weight)


def test_penalty_of_nothing(backend):
    with pytest.raises(InvalidArgumentError, match="at least one operator"):
        spectral_penalty([], 1.0)


def test_penalty_of_one_operator(backend):
    A = backend.from_numpy(np.diag([3.0, 1.0]))
    for operator in (A, Dense(A), Chain([Dense(A), Activation("tanh")]), aslinearoperator(np.diag([3.0, 1.0]))):
        assert float(spectral_penalty(operator, 2.0)) == pytest.approx(18)


@pytest.mark.parametrize(("dtype", "entry"), [("float16", 2000.0), ("float32", 1e38), ("float64", 1e307)])
def test_a_norm_that_overflows_its_dtype(backend, dtype, entry):
    if dtype == "float16" and capabilities.row(backend.name).float16 != capabilities.YES:
        pytest.skip("no half precision")
    weight = backend.from_numpy(np.full((64, 64), entry, dtype))
    for cap in (0.9, 1e4):
        scaled = backend.to_numpy(normalize(weight, cap)).astype(np.float64)
        assert 0.95 * cap < np.linalg.norm(scaled, 2) <= cap
        layer = normalize(Dense(weight), cap)
        assert np.linalg.norm(backend.to_numpy(layer.weight).astype(np.float64), 2) <= layer.lipschitz <= cap * 1.01
