"""Linear operators: products against the explicit matrix, and what is refused."""

import numpy as np
import pytest
from branches_for_tests import HomeMadeOperator, of_another
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import aslinearoperator
from strategies import DTYPES, SEEDS, matrices, sides

from iresnet_core import Convolution, Dense, as_operator, lipschitz_bound
from iresnet_core.errors import (
    DtypeError,
    MissingProductError,
    MixedBackendsError,
    NonFiniteError,
    ShapeError,
    UnknownArrayError,
)
from iresnet_core.operators.matrices import ForeignOperator, Matrices, Scaled, Transposed


def integers(rng, *shape):
    """Whole numbers, whose products and sums are exact, in any order."""
    return rng.integers(-9, 10, shape).astype(float)


# --- Dense ---


@given(seed=SEEDS, m=sides(6), n=sides(6), leading=st.lists(st.integers(0, 3), max_size=3), dtype=DTYPES)
def test_products_of_a_dense_layer_are_exact(backend, seed, m, n, leading, dtype):
    rng = np.random.default_rng(seed)
    W, b = integers(rng, m, n), integers(rng, m)
    v, u, x = integers(rng, *leading, n), integers(rng, *leading, m), integers(rng, 4, n)
    layer = Dense(backend.from_numpy(W.astype(dtype)), backend.from_numpy(b.astype(dtype)))
    assert layer.shape == (m, n)
    assert (layer.input_shape, layer.output_shape) == ((n,), (m,))
    for product, argument, expected in (
        (layer.apply, v, v @ W.T),
        (layer.matvec, v, v @ W.T),
        (layer.adjoint, u, u @ W),
        (layer.rmatvec, u, u @ W),
        (layer, x, x @ W.T + b),
    ):
        out = product(backend.from_numpy(argument.astype(dtype)))
        assert out.dtype == layer.weight.dtype
        np.testing.assert_array_equal(backend.to_numpy(out), expected)
    np.testing.assert_array_equal(backend.to_numpy(layer.matrix()), W)


def test_dense_layer_without_bias(backend):
    layer = Dense(backend.from_numpy(np.array([[1.0, 2.0]])))
    np.testing.assert_array_equal(backend.to_numpy(layer(backend.from_numpy(np.array([[3.0, 4.0]])))), [[11.0]])
    assert layer(backend.from_numpy(np.zeros((0, 2)))).shape == (0, 1)
    assert repr(layer) == "Dense(2 -> 1)"


def test_bound_of_a_layer_is_computed_once(backend):
    layer = Dense(backend.from_numpy(np.diag([3.0, 1.0])))
    assert layer.bound is layer.bound
    assert isinstance(layer.lipschitz, float)
    assert 3 <= layer.lipschitz <= 3 * (1 + 1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        Dense(np.eye(2), np.ones(2)),
        Convolution(np.ones((4, 1, 3)), np.ones(4), input_shape=(2, 5), groups=2, dilation=1, padding="same"),
    ],
)
def test_other_parameters_in_the_same_layer(layer):
    """It has every attribute, so that none is forgotten that is added one day."""
    other = layer.with_parameters(2 * layer.weight, None)
    assert set(vars(other)) == {*vars(layer), "_bound", "_constant"}
    parameters = ("weight", "like", "bias", "_bound", "_constant")
    assert all(vars(other)[name] == vars(layer)[name] for name in vars(layer) if name not in parameters)
    assert other.bias is None
    np.testing.assert_array_equal(other.matrix(), 2 * layer.matrix())


def test_other_parameters_have_another_bound(backend):
    layer = Dense(backend.from_numpy(np.eye(2)), backend.from_numpy(np.ones(2)))
    assert 1 <= layer.lipschitz <= 1 + 1e-12
    other = layer.with_parameters(backend.from_numpy(5 * np.eye(2)), layer.bias)
    assert 5 <= other.lipschitz <= 5 * (1 + 1e-12)
    assert layer.with_parameters(layer.weight, None, other.bound).bound is other.bound


def test_layer_in_another_dtype_is_certified_anew(backend):
    W = np.full((2, 2), 1 / 3)
    layer = Dense(backend.from_numpy(W), backend.from_numpy(np.ones(2)))
    low = layer.astype(backend.xp.float32)
    assert low.weight.dtype == low.bias.dtype == backend.xp.float32
    assert low.lipschitz >= np.linalg.norm(W.astype(np.float32).astype(float), 2)
    assert low.bound.value.dtype == backend.xp.float32
    assert layer.astype(backend.xp.float64) is layer


@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize("view", [False, True], ids=["array", "view"])
def test_parameters_are_private(kind, view):
    W, b = np.ones((2, 2, 1)), np.ones(2)
    given_weight, given_bias = (W[:], b[:]) if view else (W, b)
    if kind == "dense":
        layer = Dense(given_weight[..., 0], given_bias)
    else:
        layer = Convolution(given_weight, given_bias, input_shape=(2, 1))
    constant, before = layer.lipschitz, layer(np.ones((1, *layer.input_shape)))
    W *= 100
    b *= 100
    np.testing.assert_array_equal(layer(np.ones((1, *layer.input_shape))), before)
    assert layer.lipschitz == constant == lipschitz_bound(layer).value
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        layer.bias[0] = 1


@pytest.mark.parametrize(
    ("weight", "bias", "error", "message"),
    [
        (np.zeros(3), None, ShapeError, r"\(out, in\).*\(3,\)"),
        (np.zeros((2, 2, 2)), None, ShapeError, r"\(2, 2, 2\)"),
        (np.zeros((0, 2)), None, ShapeError, r"\(0, 2\)"),
        (np.zeros((2, 0)), None, ShapeError, r"\(2, 0\)"),
        (np.zeros((2, 3)), np.zeros(3), ShapeError, r"bias must have shape \(2,\), got \(3,\)"),
        (np.zeros((2, 3)), np.zeros((2, 1)), ShapeError, r"bias must have shape \(2,\), got \(2, 1\)"),
        (np.zeros((2, 3)), np.zeros(2, np.float32), DtypeError, "bias.*float32.*float64"),
        (np.zeros((2, 3), int), None, DtypeError, "weight.*int64"),
        (np.zeros((2, 3), bool), None, DtypeError, "weight.*bool"),
        (np.zeros((2, 3), complex), None, DtypeError, "weight.*complex128"),
        (np.zeros((2, 3)), np.zeros(2, int), DtypeError, "bias.*int64"),
        (np.array([[1.0, np.nan], [np.inf, 0.0]]), None, NonFiniteError, r"weight.*\(2, 2\).*2 non-finite.*NaN"),
        (np.zeros((2, 3)), np.array([0.0, -np.inf]), NonFiniteError, "bias.*1 non-finite.*infinity"),
    ],
)
def test_bad_parameters_of_a_dense_layer(backend, weight, bias, error, message):
    with pytest.raises(error, match=message):
        Dense(backend.from_numpy(weight), None if bias is None else backend.from_numpy(bias))


def test_extended_precision_is_refused():
    with pytest.raises(DtypeError, match="at most float64"):
        Dense(np.zeros((2, 2), np.longdouble))


@pytest.mark.parametrize("weight", [[[1.0]], None, "weight", 1.0])
def test_a_weight_is_an_array(weight):
    with pytest.raises(UnknownArrayError, match=type(weight).__name__):
        Dense(weight)


@pytest.mark.parametrize(
    "mix",
    [
        lambda own, other: Dense(own((2, 2)), other(2)),
        lambda own, other: Dense(own((2, 2)))(other((1, 2))),
        lambda own, other: Convolution(own((1, 1, 1)), input_shape=(1, 2))(other((1, 1, 2))),
        lambda own, other: lipschitz_bound(Dense(own((2, 2)), other(2))),
    ],
    ids=["bias", "input", "input of a convolution", "bound"],
)
def test_two_frameworks_do_not_mix(backend, mix):
    stranger = "array_api_strict" if backend.name == "numpy" else "numpy"
    with pytest.raises(MixedBackendsError, match=rf"\({backend.name}\).*\({stranger}\)"):
        mix(lambda shape: backend.from_numpy(np.ones(shape)), lambda shape: of_another(backend, np.ones(shape)))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((1, 3)), ShapeError, r"Dense\(2 -> 1\).*\(2,\).*\(1, 3\)"),
        (np.zeros(2), ShapeError, r"\(2,\)"),
        (np.zeros((1, 1, 2)), ShapeError, r"\(1, 1, 2\)"),
        (np.zeros((1, 2), np.float32), DtypeError, "float32.*float64"),
        (np.zeros((1, 2), int), DtypeError, "int64"),
        (np.zeros((1, 2), complex), DtypeError, "complex128"),
    ],
)
def test_bad_samples(backend, x, error, message):
    with pytest.raises(error, match=message):
        Dense(backend.from_numpy(np.ones((1, 2))))(backend.from_numpy(x))


def test_samples_are_arrays():
    with pytest.raises(UnknownArrayError, match="list"):
        Dense(np.eye(2))([[1.0, 2.0]])


# --- stacks, transposes and scalings ---


@given(A=matrices(max_side=5, scales=(1.0,)), seed=SEEDS)
def test_products_of_a_matrix(backend, A, seed):
    rng = np.random.default_rng(seed)
    (m, n), tolerance = A.shape, 100 * np.finfo(A.dtype).eps
    v, u = rng.standard_normal((3, n)).astype(A.dtype), rng.standard_normal((3, m)).astype(A.dtype)
    operator = as_operator(backend.from_numpy(A))
    for product, expected in (
        (operator.matvec(backend.from_numpy(v)), v @ A.T),
        (operator.rmatvec(backend.from_numpy(u)), u @ A),
        (Transposed(operator).rmatvec(backend.from_numpy(v)), v @ A.T),
        (Transposed(operator).matvec(backend.from_numpy(u)), u @ A),
        (Transposed(operator).matrix(), A.T),
        (Scaled(operator, backend.xp.asarray(4.0, dtype=operator.like.dtype)).matrix(), A / 4),
    ):
        np.testing.assert_allclose(backend.to_numpy(product), expected, rtol=tolerance, atol=tolerance)
    assert Transposed(operator).shape == (n, m)


def test_products_of_a_stack(backend):
    rng = np.random.default_rng(0)
    A, v, u = integers(rng, 2, 3, 4, 5), integers(rng, 2, 3, 5), integers(rng, 2, 3, 4)
    operator = as_operator(backend.from_numpy(A))
    assert (operator.shape, operator.batch_shape) == ((4, 5), (2, 3))
    np.testing.assert_array_equal(
        backend.to_numpy(operator.matvec(backend.from_numpy(v))), np.einsum("abij,abj->abi", A, v)
    )
    np.testing.assert_array_equal(
        backend.to_numpy(operator.rmatvec(backend.from_numpy(u))), np.einsum("abij,abi->abj", A, u)
    )


@pytest.mark.parametrize(
    ("A", "error", "message"),
    [
        (np.zeros(3), ShapeError, r"\(\.\.\., m, n\).*\(3,\)"),
        (np.zeros((2, 0)), ShapeError, r"\(2, 0\)"),
        (np.zeros((2, 0, 2)), ShapeError, r"\(2, 0, 2\)"),
        (np.zeros((2, 2), int), DtypeError, "int64"),
        (np.zeros((2, 2), complex), DtypeError, "complex128"),
        (np.full((2, 2), np.nan), NonFiniteError, r"\(2, 2\).*4 non-finite.*NaN"),
        (np.full((2, 2), np.inf), NonFiniteError, "infinity"),
    ],
)
def test_bad_matrices(backend, A, error, message):
    with pytest.raises(error, match=message):
        as_operator(backend.from_numpy(A))


# --- as_operator ---


def test_operators_pass_unchanged(backend):
    layer = Dense(backend.from_numpy(np.eye(2)))
    assert as_operator(layer) is layer
    assert isinstance(as_operator(backend.from_numpy(np.eye(2))), Matrices)


@given(seed=SEEDS, m=sides(5), n=sides(5))
def test_home_made_operator(backend, seed, m, n):
    rng = np.random.default_rng(seed)
    A, v, u = integers(rng, m, n), integers(rng, 2, 3, n), integers(rng, m)
    operator = as_operator(HomeMadeOperator(backend, A), like=backend.xp.zeros(1, dtype=backend.xp.float64))
    assert isinstance(operator, ForeignOperator)
    assert (operator.shape, operator.batch_shape) == ((m, n), ())
    np.testing.assert_array_equal(backend.to_numpy(operator.matvec(backend.from_numpy(v))), v @ A.T)
    np.testing.assert_array_equal(backend.to_numpy(operator.rmatvec(backend.from_numpy(u))), u @ A)
    np.testing.assert_array_equal(backend.to_numpy(operator.matrix()), A)


@pytest.mark.parametrize(
    ("wrap", "dtype"),
    [
        (aslinearoperator, "float64"),
        (csr_array, "float64"),
        (coo_array, "float64"),
        (lambda A: csr_array(A.astype(np.float32)), "float32"),
        (lambda A: csr_array(A.astype(np.int64)), "float64"),
        (lambda A: ScipyOperator(A.shape, matvec=lambda v: A @ v, rmatvec=lambda u: A.T @ u, dtype=float), "float64"),
    ],
    ids=["operator", "csr", "coo", "float32", "int64", "functions"],
)
def test_operators_of_scipy(wrap, dtype):
    A = np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 5.0]])
    operator = as_operator(wrap(A))
    assert operator.shape == (2, 3)
    v, u = np.array([1.0, 2.0, 3.0], dtype), np.array([1.0, -1.0], dtype)
    assert operator.matvec(v).dtype == operator.like.dtype == dtype
    np.testing.assert_array_equal(operator.matvec(v), A @ v)
    np.testing.assert_array_equal(operator.rmatvec(u), u @ A)


@pytest.mark.parametrize("wrap", [aslinearoperator, csr_array])
def test_complex_operators_are_refused(wrap):
    with pytest.raises(DtypeError, match="complex128"):
        as_operator(wrap(np.eye(2) * 1j))


def test_complex_products_are_refused():
    secretly_complex = ScipyOperator((2, 2), matvec=lambda v: 1j * v, rmatvec=lambda u: -1j * u, dtype=float)
    with pytest.raises(DtypeError, match=r"matvec.*complex"):
        as_operator(secretly_complex).matvec(np.ones(2))


class Misbehaved:
    def __init__(self, out, shape=(2, 2)):
        self.out, self.shape = out, shape

    def matvec(self, v):
        return self.out

    rmatvec = matvec


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (lambda backend: backend.from_numpy(np.ones(3)), ShapeError, r"matvec.*\(3,\), expected \(2,\)"),
        (lambda backend: backend.from_numpy(np.ones((2, 1))), ShapeError, r"\(2, 1\)"),
        (lambda backend: backend.from_numpy(np.array([1.0, np.nan])), NonFiniteError, "matvec.*NaN"),
        (lambda backend: backend.from_numpy(np.ones(2) * 1j), DtypeError, "matvec.*complex"),
        (lambda backend: [1.0, 2.0], UnknownArrayError, "list"),
        (lambda backend: of_another(backend, np.ones(2)), MixedBackendsError, "numpy"),
    ],
    ids=["length", "column", "nan", "complex", "list", "framework"],
)
def test_bad_products(backend, out, error, message):
    vector = backend.from_numpy(np.ones(2))
    for product in ("matvec", "rmatvec"):
        with pytest.raises(error, match=message.replace("matvec", product)):
            getattr(as_operator(Misbehaved(out(backend)), like=vector), product)(vector)


def test_an_operator_takes_the_dtype_that_it_is_asked_for(backend):
    A = np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 5.0]])
    like = backend.from_numpy(np.ones(1, np.float32))
    operator = as_operator(Misbehaved(backend.from_numpy(np.ones(2))), like=like)
    assert operator.matvec(backend.from_numpy(np.ones(2, np.float32))).dtype == like.dtype
    with pytest.raises(DtypeError, match=r"like.*int64"):
        as_operator(HomeMadeOperator(backend, A), like=backend.from_numpy(np.ones(1, np.int64)))


@pytest.mark.parametrize("shape", [(2,), (2, 2, 2), (0, 2), (2, -1)])
def test_bad_shape_of_an_operator(backend, shape):
    with pytest.raises(ShapeError, match=r"\(m, n\)"):
        as_operator(Misbehaved(None, shape), like=backend.from_numpy(np.ones(1)))


def test_what_lacks_a_product_is_named(backend):
    class Half:
        shape = (2, 2)

        def matvec(self, v):
            return v

    half = as_operator(Half(), like=backend.from_numpy(np.ones(1)))
    with pytest.raises(MissingProductError, match="has no rmatvec"):
        half.rmatvec(backend.from_numpy(np.ones(2)))
    with pytest.raises(UnknownArrayError, match="this Neither lacks matvec, rmatvec"):
        as_operator(type("Neither", (), {"shape": (2, 2)})())
    with pytest.raises(UnknownArrayError, match="this list lacks shape, matvec, rmatvec"):
        as_operator([[1.0]])
    one_way = ScipyOperator((2, 2), matvec=lambda v: v, dtype=float)
    with pytest.raises(UnknownArrayError, match="has no rmatvec"):
        as_operator(one_way).rmatvec(np.ones(2))
    with pytest.raises(UnknownArrayError, match="has no rmatvec"):
        lipschitz_bound(one_way)


def test_a_shape_that_is_not_that_of_the_operator_is_refused():
    for A in (np.eye(2), csr_array(np.eye(2)), aslinearoperator(np.eye(2)), as_operator(np.eye(2))):
        assert as_operator(A, shape=(2, 2)).shape == (2, 2)
        with pytest.raises(ShapeError, match=r"\(2, 2\), and not \(5, 5\)"):
            as_operator(A, shape=(5, 5))
    with pytest.raises(ShapeError, match="pair"):
        as_operator(abs, shape=5)
