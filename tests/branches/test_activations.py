"""Activations: values, slopes, and constants that are suprema."""

import copy
import math
import pickle
import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
from activation_cases import CASES, IDS
from frameworks_for_tests import gradients
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, SEEDS, as_seen_by

from iresnet_core import Activation, reference
from iresnet_core.branches.activation_functions import ACTIVATIONS, SWISH_SLOPE
from iresnet_core.errors import InvalidArgumentError, ShapeError, UnknownArrayError

# The closed form of each is the one of `iresnet_core.reference`, which is written down independently.
every_case = pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)


def formula(activation, x):
    """The value in the precision of x, by the reference."""
    return reference._activate(activation, x)[0]


GRID = np.concatenate([np.linspace(-30, 30, 60001), -np.logspace(-300, 4, 2000), np.logspace(-300, 4, 2000)])
FINITE = st.floats(-1e4, 1e4, allow_subnormal=True)


def ratio_of(activation, backend, x):
    """Largest slope on the grid x, over the constant."""
    return np.max(abs(backend.to_numpy(activation.slope(backend.from_numpy(x)))).astype(float)) / activation.lipschitz


@every_case
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_are_those_of_the_closed_form(backend, name, parameters, dtype):
    activation = Activation(name, **parameters)
    x = GRID.astype(dtype).reshape(1, -1)
    with np.errstate(under="ignore"):
        expected = formula(activation, as_seen_by(backend, x).astype(float))
    value = activation(backend.from_numpy(x))
    assert value.shape == x.shape
    out = backend.to_numpy(value)
    assert out.dtype == dtype
    # What `Chain.with_rounding` allows for an activation.
    u = np.finfo(dtype).eps / 2
    allowance = 8 * u * (abs(expected) + activation.lipschitz * abs(x.astype(float)))
    # An intermediate result that is subnormal may be taken as zero, and is then multiplied by alpha.
    allowance = allowance + 4 * max([1, *parameters.values()]) * np.finfo(dtype).smallest_normal
    if dtype == np.float64:
        allowance = 2 * allowance  # the closed form is rounded too
    assert (abs(out.astype(float) - expected) <= allowance).all()


@every_case
def test_slope_against_differences(backend, name, parameters):
    activation = Activation(name, **parameters)
    x = np.linspace(-8, 8, 1601) + 0.0037  # no kink within a step
    h = 1e-5
    difference = (formula(activation, x + h) - formula(activation, x - h)) / (2 * h)
    np.testing.assert_allclose(backend.to_numpy(activation.slope(backend.from_numpy(x))), difference, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "parameters"), [("lipswish", {}), ("lipswish", {"beta": 3.0}), ("tanh", {}), ("sigmoid", {}), ("sin", {})]
)
def test_slope_against_the_complex_step(name, parameters):
    activation = Activation(name, **parameters)
    x = np.linspace(-12, 12, 2001)
    derivative = np.imag(activation(x + 1e-30j)) / 1e-30
    np.testing.assert_allclose(activation.slope(x), derivative, rtol=0, atol=1e-14)


KINKS = [("relu", {}, 0), ("elu", {"alpha": 3.0}, 3), ("celu", {"alpha": 3.0}, 1), ("leakyrelu", {"slope": -0.5}, -0.5)]


def test_slope_at_the_kink_of_relu_and_elu(backend):
    zero = backend.from_numpy(np.zeros((1, 1)))
    for name, parameters, left in KINKS:
        assert float(Activation(name, **parameters).slope(zero)[0, 0]) == left


@every_case
def test_constant_is_the_supremum_of_the_slope(backend, name, parameters):
    activation = Activation(name, **parameters)
    for dtype in (np.float64, np.float32):
        assert ratio_of(activation, backend, GRID.astype(dtype)) <= 1 + 8 * np.finfo(dtype).eps
    assert ratio_of(activation, backend, GRID) >= 1 - 1e-6


@pytest.mark.parametrize(
    ("name", "parameters", "constant"),
    [
        ("lipswish", {"beta": 0.3}, 1),
        ("elu", {"alpha": 0.25}, 1),
        ("elu", {"alpha": 3.0}, 3),
        ("celu", {"alpha": 3.0}, 1),
        ("sigmoid", {}, 0.25),
        ("maxmin", {}, 1),
        ("selu", {}, 1.0507009873554805 * 1.6732632423543772 * (1 + 1e-15)),
        ("leakyrelu", {"slope": -0.5}, 1),
        ("softshrink", {"threshold": 3.0}, 1),
        ("silu", {"beta": 3.0}, SWISH_SLOPE),
    ],
)
def test_constants_that_are_known(name, parameters, constant):
    assert Activation(name, **parameters).lipschitz == constant


@every_case
def test_constant_of_the_slope_is_the_supremum_of_its_differences(name, parameters):
    activation = Activation(name, **parameters)
    x = np.linspace(-30, 30, 60001)
    steepest = np.max(abs(np.diff(activation.slope(x.reshape(1, -1))[0]) / np.diff(x)))
    if math.isinf(activation.slope_lipschitz):  # a jump between two neighbours
        assert steepest > 100
    else:
        assert activation.slope_lipschitz * (0.99 if activation.slope_lipschitz else 0) <= steepest
        assert steepest <= activation.slope_lipschitz * (1 + 1e-9) + 1e-9


@given(case=st.sampled_from(CASES), x=st.lists(FINITE, min_size=1, max_size=20), dtype=DTYPES)
def test_slope_never_exceeds_the_constant(backend, case, x, dtype):
    activation = Activation(case[0], **case[1])
    assert ratio_of(activation, backend, np.array(x, dtype)) <= 1 + 8 * np.finfo(dtype).eps


@given(case=st.sampled_from(CASES), a=FINITE, gap=st.one_of(st.floats(0, 1e-3), st.floats(0, 1e3)))
def test_no_two_values_are_further_apart_than_the_constant_allows(backend, case, a, gap):
    activation = Activation(case[0], **case[1])
    pair = np.array([[a, a + gap]])
    value = backend.to_numpy(activation(backend.from_numpy(pair)))
    rounding = 8 * np.finfo(float).eps * (abs(value).max() + activation.lipschitz * abs(pair).max())
    assert abs(value[0, 1] - value[0, 0]) <= activation.lipschitz * (pair[0, 1] - pair[0, 0]) + rounding


# Those whose slope is largest somewhere in between; that of the others is by its formula no larger than the constant.
@pytest.mark.parametrize(
    ("name", "parameters"), [("lipswish", {}), ("silu", {}), ("silu", {"beta": 3.0}), ("gelu", {}), ("mish", {})]
)
def test_constant_is_proven_by_halving_intervals(name, parameters):
    """No slope within an interval is further from the one in the middle than the second derivative allows.

    Intervals for which that is not enough are halved. Beyond 40 the slope is 0 or 1 and monotonic.
    """
    activation = Activation(name, **parameters)
    allowed, radius, looked_at = activation.lipschitz * (1 + 1e-9), 0.5, 0
    middle = np.arange(-40, 40) + radius
    while middle.size:
        assert radius > 1e-10
        slope = abs(activation.slope(middle.reshape(1, -1))[0])
        assert slope.max() <= activation.lipschitz
        middle, looked_at = middle[slope + radius * activation.slope_lipschitz > allowed], looked_at + middle.size
        radius /= 2
        middle = np.concatenate([middle - radius, middle + radius])
    assert 80 < looked_at < 10**6


def test_constant_of_swish():
    # The slope s + x s (1 - s) is largest where x tanh(x / 2) = 2, that is (x - 2) e^x = x + 2: Newton, 40 digits.
    with localcontext(prec=40):
        x = Decimal("2.4")
        for _ in range(8):
            x -= ((x - 2) * x.exp() - x - 2) / ((x - 1) * x.exp() - 1)
        s = 1 / (1 + (-x).exp())
        supremum = s + x * s * (1 - s)
        assert supremum <= Decimal(SWISH_SLOPE) <= supremum + Decimal("1e-7")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@every_case
def test_far_out_nothing_overflows(backend, name, parameters, dtype):
    activation = Activation(name, **parameters)
    far = backend.from_numpy(np.array([[-1e4, 1e4, -1e30, 1e30, 0.0, -0.0]], dtype))
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        value, slope = backend.to_numpy(activation(far)), backend.to_numpy(activation.slope(far))
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()
    with np.errstate(all="ignore"):
        expected = reference._activate(activation, np.array([[-1e4, -1e30, 1e4, 1e30]]))[1][0]
    if abs(np.diff(expected)[::2]).max() < 1e-6:  # the slope has a limit on either side, unlike that of a wave
        np.testing.assert_allclose(slope[0, [0, 2, 1, 3]], expected, atol=1e-6)


# --- maxmin ---


@pytest.mark.parametrize(
    ("shape", "axis"), [((4,), 1), ((6,), -1), ((4, 3), 1), ((3, 4), 2), ((3, 4), -1), ((2, 3, 5), 1)]
)
@given(seed=SEEDS)
def test_maxmin_sorts_pairs_of_channels(backend, shape, axis, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (3, *shape)).astype(float)  # with ties
    activation = Activation("maxmin", axis=axis)
    value, jacobian = activation.linearize(backend.from_numpy(x))
    rows = np.moveaxis(x, axis, -1)
    sorted_pairs = -np.sort(-rows.reshape(*rows.shape[:-1], -1, 2), axis=-1)
    expected = np.moveaxis(sorted_pairs.reshape(rows.shape), -1, axis)
    np.testing.assert_array_equal(backend.to_numpy(value), expected)
    np.testing.assert_array_equal(backend.to_numpy(activation(backend.from_numpy(x))), expected)
    # The Jacobian is a permutation of every sample, and its own transpose.
    d = x[0].size
    units = np.broadcast_to(np.eye(d).reshape(d, 1, *shape), (d, 3, *shape))
    for product in (jacobian.apply, jacobian.adjoint):
        J = backend.to_numpy(product(backend.from_numpy(units.copy()))).reshape(d, 3, d)
        for i in range(3):
            assert set(J[:, i].ravel()) == {0, 1}
            assert (J[:, i].sum(axis=0) == 1).all()
            assert (J[:, i].sum(axis=1) == 1).all()
            np.testing.assert_array_equal(J[:, i], J[:, i].T)
            np.testing.assert_array_equal(x[i].ravel() @ J[:, i], expected[i].ravel())


def test_maxmin_is_one_lipschitz_and_not_entrywise(backend):
    activation = Activation("maxmin")
    assert (activation.lipschitz, activation.entrywise, activation.parameters) == (1.0, False, {"axis": 1})
    with pytest.raises(InvalidArgumentError, match=r"maxmin has no slope.*linearize"):
        activation.slope(backend.from_numpy(np.zeros((1, 2))))


@pytest.mark.parametrize(("axis", "shape"), [(1, (1, 3)), (2, (1, 4)), (-3, (1, 4)), (-2, (2, 4)), (1, (4,))])
def test_maxmin_needs_an_even_channel_axis(backend, axis, shape):
    with pytest.raises(ShapeError, match=r"'maxmin', axis=.*(no such axis|channels) in"):
        Activation("maxmin", axis=axis)(backend.from_numpy(np.zeros(shape)))


# --- errors ---


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("swish", {}, "no activation 'swish'; there are lipswish, silu.*maxmin"),
        ("relu", {"alpha": 1.0}, r"relu has the parameters \[\], not \['alpha'\]"),
        ("elu", {"beta": 1.0}, r"\['alpha'\], not \['beta'\]"),
        ("elu", {"alpha": 0.0}, "alpha must be a positive finite number, got 0"),
        ("celu", {"alpha": -1.0}, "got -1"),
        ("softplus", {"beta": float("nan")}, "got nan"),
        ("lipswish", {"beta": float("inf")}, "got inf"),
        ("softplus", {"beta": -2.0}, "beta must be a positive finite number, got -2"),
        ("silu", {"beta": -1.0}, "got -1"),
        ("leakyrelu", {"slope": 1.5}, r"slope must lie between -1 and 1.*got 1.5.*next linear layer"),
        ("leakyrelu", {"slope": float("nan")}, "got nan"),
        ("hardtanh", {"limit": 0.0}, "limit must be a positive"),
        ("gelu", {"beta": 1.0}, r"gelu has the parameters \[\], not"),
        ("maxmin", {"axis": 0}, "axis 0 would mix the samples"),
        ("maxmin", {"axis": 1.0}, "whole number axis"),
        ("maxmin", {"beta": 1.0}, r"\['axis'\], not \['beta'\]"),
    ],
)
def test_bad_activations(name, parameters, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Activation(name, **parameters)


@pytest.mark.parametrize("name", ["relu", "maxmin"])
def test_activations_act_on_arrays(name):
    with pytest.raises(UnknownArrayError, match="list"):
        Activation(name)([[1.0, 2.0]])


def test_representation():
    assert repr(Activation("elu", alpha=2)) == "Activation('elu', alpha=2)"
    assert repr(Activation("maxmin")) == "Activation('maxmin', axis=1)"
    assert repr(Activation("tanh")) == "Activation('tanh')"


@every_case
def test_linearization_has_the_value_the_slope_and_its_derivative(backend, name, parameters):
    """The second derivative too, which a backend may take from the one that is written out."""
    activation = Activation(name, **parameters)
    x = np.linspace(-4, 4, 41).reshape(1, -1) + 0.03
    point = backend.from_numpy(x)
    value, jacobian = activation.linearize(point)
    np.testing.assert_allclose(backend.to_numpy(value), backend.to_numpy(activation(point)), rtol=0, atol=1e-14)
    np.testing.assert_allclose(backend.to_numpy(jacobian.slope), backend.to_numpy(activation.slope(point)), atol=1e-14)
    function = activation.function_for(point)
    second = backend.to_numpy(function.second_derivative(point, *function.value_and_slope(point)))
    step = 1e-5
    ahead, behind = (backend.to_numpy(activation.slope(backend.from_numpy(x + s))) for s in (step, -step))
    np.testing.assert_allclose(second, (ahead - behind) / (2 * step), atol=1e-7)


@every_case
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_quick_forms_of_a_training_step(backend, name, parameters, dtype):
    """The value and its way back, which a backend may have ready, are those of the formulas."""
    x = np.concatenate([np.linspace(-4, 4, 41) + 0.03, [-1e-6, 1e-6, -60.0, 60.0, 0.0]]).astype(dtype)
    point = backend.from_numpy(x[None, :])
    function = Activation(name, **parameters).function_for(point)
    t = function.transcendental(point)
    value, slope = function.value_and_slope(point, t)[:2]
    u = np.linspace(-2, 3, x.size).astype(dtype)
    eps, quick = np.finfo(dtype).eps, function.quick_value(point)
    np.testing.assert_allclose(backend.to_numpy(quick), backend.to_numpy(value), rtol=8 * eps, atol=0)
    expected = u * backend.to_numpy(slope)
    for known in (None, t):
        pulled = function.pulled_back(point, backend.from_numpy(u[None, :]), quick, known)
        largest = np.abs(u).max() * max(1.0, function.lipschitz)
        np.testing.assert_allclose(backend.to_numpy(pulled), expected, rtol=0, atol=4 * eps * largest)
    found = function.transcendental_of(value)
    if found is not None:
        np.testing.assert_array_equal(backend.to_numpy(found), backend.to_numpy(t))


@every_case
@pytest.mark.needs("autodiff")
def test_derivatives_through_a_linearization(backend, name, parameters):
    """Of value and slope together, and of the value twice."""
    activation = Activation(name, **parameters)
    xp = backend.xp
    x = np.array([[-2.3, -0.4, 0.3, 1.7]])
    left, right = np.array([[1.0, 2.0, -1.0, 0.5]]), np.array([[0.3, -1.0, 2.0, 1.0]])

    def loss(x):
        value, jacobian = activation.linearize(x)
        return xp.sum(value * backend.from_numpy(left) + jacobian.slope * backend.from_numpy(right))

    (found,) = gradients(backend, loss, [backend.from_numpy(x)])
    point = backend.from_numpy(x)
    function = activation.function_for(point)
    known = function.value_and_slope(point)
    second = backend.to_numpy(function.second_derivative(point, *known))
    np.testing.assert_allclose(found, left * backend.to_numpy(known[1]) + right * second, atol=1e-12)


@every_case
def test_second_derivatives_in_torch(name, parameters):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    activation = Activation(name, **parameters)
    x = torch.tensor([[-2.3, -0.4, 0.3, 1.7]], dtype=torch.float64, requires_grad=True)

    def both(x):
        value, jacobian = activation.linearize(x)
        return value.square() + jacobian.slope

    function = activation.function_for(x)
    if not function.second_derivative(x, *function.value_and_slope(x)).any():  # piecewise linear
        assert torch.autograd.grad(both(x).sum(), x)[0].isfinite().all()
    else:
        assert torch.autograd.gradcheck(both, x)
        assert torch.autograd.gradgradcheck(both, x)


def test_copies_and_pickles_are_the_same_activation():
    for name in ACTIVATIONS:
        activation = Activation(name)
        for other in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
            assert (other.name, other.parameters, repr(other)) == (name, activation.parameters, repr(activation))
