"""A layer turned round: the other direction, with its errors, and the derivatives of an exact solution."""

from functools import partial

import numpy as np
import pytest
from flow_examples import array, dense_block, distances, every_layer, host, image_flow, vector_flow
from frameworks_for_tests import DIFFERENTIATING, directional_derivatives, gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from iresnet_core import ActNorm, Chain, Dense, FactorOut, Flow, InjectivePad, Inverted, ResidualBlock
from iresnet_core.backends import backend as find_backend
from iresnet_core.branches import Activation
from iresnet_core.errors import InvalidArgumentError, ShapeError


@settings(max_examples=max(2, settings.default.max_examples // 5))  # each example runs every layer
@given(seed=st.integers(0, 2**32 - 1))
def test_it_is_the_inverse_of_every_layer_within_the_errors(backend, seed):
    """In float32 against the same layer in float64: samples by distance, log-determinants by their error bars."""
    if backend.name == "jax":
        pytest.skip("compiles for minutes; the other tests of this file run on it")
    rng = np.random.default_rng(seed)
    for layer, shape in every_layer(backend, "float32"):
        turned, exact = Inverted(layer), layer.astype(backend.xp.float64)
        x = array(backend, rng.random((2, *shape)), "float32")
        z = layer(x)
        out, there = turned.forward(z, method="exact"), turned.inverse(x)
        solution = exact.inverse(backend.xp.astype(z, backend.xp.float64), rtol=1e-15)
        logdet = exact.forward(solution.value, method="exact").logdet
        error = np.abs(host(out.logdet.value) + host(logdet.value))
        assert (error <= host(out.logdet.bias_bound) + host(logdet.bias_bound) + 1e-12).all(), layer
        assert (host(out.logdet.bias_bound) <= 1e-4).all(), layer  # and not by the worst case
        image = exact.forward(backend.xp.astype(x, backend.xp.float64)).value
        assert (distances(there.value, image) <= host(there.error_bound) + 1e-13).all(), layer
        assert (host(there.error_bound) <= 1e-5).all(), layer
        size = np.linalg.norm(host(z).reshape(2, -1), axis=1).max()
        np.testing.assert_allclose(host(turned(z)), host(x), atol=2e-5 * max(5, size))  # not refined
        assert turned.output_shape(z.shape[1:]) == tuple(x.shape[1:])
        assert turned.input_shape(x.shape[1:]) == tuple(z.shape[1:])
        assert turned.residual_blocks == layer.residual_blocks


@pytest.mark.parametrize("activation", ["relu", "plain"])
def test_unknown_curvature_is_said_by_the_worst_case(backend, activation):
    known = "relu" if activation == "relu" else "tanh"
    block = dense_block(backend, np.random.default_rng(1), 3, 0.5, activation=known)
    if activation == "plain":
        branch = block.branch
        if backend.name in ("numpy", "cupy", "array_api_strict"):
            pytest.skip("a plain callable needs a backend that differentiates")
        block = ResidualBlock(lambda x: branch(x), lipschitz=0.5)
    z = array(backend, np.random.default_rng(2).standard_normal((4, 3)), "float64")
    bound = host(Inverted(block).forward(z, method="exact").logdet.bias_bound)
    worst = 3 * np.log(1.5 / 0.5)
    if activation == "relu":
        worst = 3 * (np.log1p(block.lipschitz) - np.log1p(-block.lipschitz))
    np.testing.assert_allclose(bound, worst, rtol=1e-6)
    assert (host(Inverted(block).inverse(z).error_bound) < 1e-13).all()


def test_a_flow_of_turned_blocks_is_a_density(backend):
    """log p by a solution equals the density that its own sampling implies, and a file or a copy changes nothing."""
    rng = np.random.default_rng(3)
    layers = [dense_block(backend, rng, 2), ActNorm(*(array(backend, [0.1 * k, -0.2]) for k in (1, 2)))]
    flow = Flow([Inverted(layer) for layer in layers], (2,))
    plain = Flow(layers[::-1], (2,))  # the same map from latents to samples, by evaluation
    z = array(backend, rng.standard_normal((5, 2)))
    x = flow.inverse(z)
    np.testing.assert_allclose(host(x.value), host(plain(z)), rtol=1e-12)
    nats = flow.log_prob(x.value, method="exact")
    expected = (
        -0.5 * (host(z) ** 2).sum(axis=1) - np.log(2 * np.pi) - host(plain.forward(z, method="exact").logdet.value)
    )
    assert (np.abs(host(nats.value) - expected) <= host(nats.bias_bound) + 1e-9).all()
    whole = Flow([Inverted(plain)], (2,)).log_prob(x.value, method="exact")
    np.testing.assert_allclose(host(whole.value), expected, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_derivatives_are_those_of_an_exact_solution(backend, dtype):
    """Of value and log-determinant by a weight and the samples, against differences of NumPy's solutions in float64."""
    if backend.name not in DIFFERENTIATING:
        pytest.skip("takes no derivatives")
    rng = np.random.default_rng(5)
    second = 0.6 * np.linalg.qr(rng.standard_normal((3, 3)))[0]
    weight, x, along = 0.6 * second.T, rng.standard_normal((4, 3)), rng.standard_normal((4, 3))

    def total(own, kind, rtol, weight, x):
        chain = Chain([Dense(weight), Activation("tanh"), Dense(array(own, second, kind))])
        turned = Inverted(Flow([ResidualBlock(chain, lipschitz=0.5)], (3,)), rtol=rtol)
        value, logdet = turned.forward(x, method="exact", errors=kind == "float64")
        return own.xp.sum(value * array(own, along, kind)) + own.xp.sum(logdet.value)

    tight = 1e-6 if dtype == "float32" else 1e-13
    found = gradients(backend, partial(total, backend, dtype, tight), [array(backend, a, dtype) for a in (weight, x)])
    exact = lambda *given: float(total(find_backend("numpy"), "float64", 1e-15, *given))  # noqa: E731
    tolerance = 1e-7 if dtype == "float64" else 1e-4
    for gradient, (direction, slope) in zip(found, directional_derivatives(exact, [weight, x], 1e-5), strict=True):
        np.testing.assert_allclose((gradient * direction).sum(), slope, atol=tolerance)


def test_the_options_of_a_solution_are_kept_and_used(backend):
    block = dense_block(backend, np.random.default_rng(1), 3)
    turned = Inverted(block, solver="picard", rtol=1e-3, max_iter=50)
    assert "solver='picard', rtol=0.001, max_iter=50" in repr(turned)
    z = array(backend, np.random.default_rng(2).standard_normal((4, 3)), "float64")
    loose, tight = turned(z), Inverted(block, rtol=1e-12)(z)
    assert 1e-9 < np.abs(host(loose) - host(tight)).max() < 1e-2
    assert turned.astype(backend.xp.float32).rtol == 1e-3
    for wrong in ({"solver": "fixed"}, {"rtol": -1.0}, {"max_iter": 0}):
        with pytest.raises(InvalidArgumentError):
            Inverted(block, **wrong)
    with pytest.raises(InvalidArgumentError, match="layer of a flow"):
        Inverted(block.branch)


def test_initialisation_standardises_what_comes_out():
    backend = find_backend("numpy")
    rng = np.random.default_rng(4)
    x = 3 + 5 * rng.standard_normal((200, 2))
    block = dense_block(backend, rng, 2)
    turned = Flow([Inverted(Flow([ActNorm(), block, ActNorm()], (2,)))], (2,)).initialize(x)
    np.testing.assert_allclose(turned(x).mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(turned(x).std(axis=0), 1, atol=1e-6)
    inside = Flow([Inverted(FactorOut(1, Flow([ActNorm()], (1,))))], (2,)).initialize(x)
    np.testing.assert_allclose(inside(x)[:, 0].std(), 1, atol=1e-6)


def test_only_bijections_are_turned_round(backend):
    with pytest.raises(ShapeError, match="bijection"):
        Flow([Inverted(InjectivePad(1))], (3,))


def test_probes_of_a_sample_do_not_depend_on_its_batch(backend):
    flow = Inverted(vector_flow(backend, 1, d=40, blocks=1))
    z = array(backend, np.random.default_rng(2).standard_normal((3, 40)))
    options = {"method": "arnoldi", "terms": 2}
    both, alone = flow.forward(z, **options), flow.forward(z[:1, ...], **options)
    np.testing.assert_allclose(host(both.logdet.value)[:1], host(alone.logdet.value), rtol=1e-8)


def test_images_of_several_scales(backend):
    if backend.name == "jax":
        pytest.skip("compiles for minutes; the other tests of this file run on it")
    flow = image_flow(backend, 1, dtype="float32")
    z = array(backend, np.random.default_rng(2).standard_normal((2, 16)), "float32")
    out = Inverted(flow).forward(z, method="exact")
    back = flow.forward(out.value, method="exact")
    assert (np.abs(host(out.logdet.value) + host(back.logdet.value)) <= 2 * host(out.logdet.bias_bound)).all()
    assert (host(out.logdet.bias_bound) < 1e-2).all()
