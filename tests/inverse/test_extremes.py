"""The inverse where squares over- or underflow, where c is all but 1, and where a step is far too long."""

import numpy as np
import pytest
from branches_for_tests import array, host

from iresnet_core import Activation, Chain, Dense, Flow, ResidualBlock, invert, normalize
from iresnet_core.inverse import dispatch


def biased(backend, dtype, bias):
    rng = np.random.default_rng(0)
    first, second = (array(backend, rng.standard_normal((4, 4)), dtype) for _ in range(2))
    layers = [Dense(first), Activation("elu"), Dense(second, array(backend, np.full(4, bias), dtype))]
    return normalize(Chain(layers), 0.9)


@pytest.mark.parametrize(
    ("dtype", "scales"), [("float32", (1e-16, 1e-20, 1e-30)), ("float64", (1e-150, 1e-160, 1e-300))]
)
def test_tiny_right_hand_sides_of_a_branch_with_biases(backend, dtype, scales):
    g = biased(backend, dtype, 1.0)
    at_zero = invert(g, array(backend, np.zeros((1, 4)), dtype))
    flow = Flow([ResidualBlock(g)], (4,))
    for scale in scales:
        y = array(backend, np.full((1, 4), scale), dtype)
        for result in (invert(g, y), flow.inverse(y)):
            apart = np.linalg.norm(host(backend, result.value).astype(float) - host(backend, at_zero.value), axis=1)
            assert (apart <= host(backend, result.error_bound) + host(backend, at_zero.error_bound)).all()
            assert (host(backend, result.error_bound) < (1e-5 if dtype == "float32" else 1e-9)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy says that it overflowed, which is how it is noticed
@pytest.mark.parametrize(("dtype", "bias"), [("float32", 1e25), ("float64", 1e200)])
def test_biases_whose_squares_overflow(backend, dtype, bias):
    g = biased(backend, dtype, bias)
    y = array(backend, np.ones((2, 4)), dtype)
    for result in (invert(g, y), Flow([ResidualBlock(g)], (4,)).inverse(y)):
        bound = host(backend, result.error_bound).astype(float)
        assert (bound < 1e-5 * bias).all()
        x = host(backend, result.value).astype(float) / bias
        # The curved part of the ELU is bounded and so nothing beside such biases: x + W relu(V x) + b = y is left.
        first, second = (host(backend, layer.weight) for layer in g.operators)
        shift = host(backend, g.operators[1].bias) / bias
        residual = x + np.maximum(x @ first.T, 0) @ second.T + shift
        assert np.linalg.norm(residual, axis=1).max() < 1e-5


@pytest.mark.needs("float16")
def test_a_start_whose_squares_overflow_in_half_precision_only(backend):
    g = biased(backend, "float16", 0.0)
    y = array(backend, np.ones((2, 4)), "float16")
    from_afar = invert(g, y, start=array(backend, np.full((2, 4), 1000.0), "float16"))
    np.testing.assert_allclose(host(backend, from_afar.value), host(backend, invert(g, y).value), atol=2e-3)


@pytest.mark.parametrize("solver", ["anderson", "newton"])
@pytest.mark.parametrize(("dtype", "c"), [("float32", 0.9999), ("float64", 1 - 1e-6), ("float64", 1 - 1e-9)])
def test_newton_steps_that_are_far_too_long_are_shortened(backend, dtype, c, solver):
    """Near 0 the slope of x - c tanh x is 1 - c, so that Newton's first step overshoots by up to five decades."""
    g = normalize(Chain([Dense(array(backend, -np.eye(2), dtype)), Activation("tanh")]), c)
    y = array(backend, 1e-6 * np.random.default_rng(0).standard_normal((17, 2)), dtype)
    result = invert(g, y, solver=solver)
    assert int(host(backend, result.iterations).max()) <= 150
    x = host(backend, result.value).astype(np.longdouble)
    W = host(backend, g.layers[0].weight).astype(np.longdouble)
    residual = np.linalg.norm((x + np.tanh(x @ W.T) - host(backend, y)).astype(float), axis=1)
    assert (residual <= 1e-8 if dtype == "float32" else residual <= 1e-14).all()


def test_linear_systems_that_are_nearly_singular(backend):
    c = 1 - 1e-9
    g = normalize(Chain([Dense(array(backend, -np.eye(3), "float64"))]), c)
    y = array(backend, np.random.default_rng(1).standard_normal((4, 3)), "float64")
    result = invert(g, y, solver="newton")
    assert int(host(backend, result.iterations).max()) <= 60
    assert np.linalg.norm(host(backend, result.residual)).max() < 1e-6


def test_the_default_number_of_evaluations_has_a_limit():
    assert dispatch._sufficient_evaluations(0.5, 1e-10, 64) < 200
    assert dispatch._sufficient_evaluations(1 - 1e-12, 1e-10, 64) == dispatch.MOST_EVALUATIONS
