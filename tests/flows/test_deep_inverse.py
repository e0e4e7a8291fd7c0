"""The error bound of the inverse through many blocks near c = 1: never below the error, and near to it."""

import numpy as np
import pytest
from flow_examples import actnorm, array, distances, host, image_flow, images
from scipy.linalg import solve

from iresnet_core import Activation, Chain, Convolution, Dense, FactorOut, Flow, ResidualBlock, Squeeze, normalize
from iresnet_core.backends import backend as find_backend
from iresnet_core.example_data import load_case
from iresnet_core.flows import residual_block
from iresnet_core.inverse import refined

BLOCKS, CONSTANT = 8, 0.95


def weights(rng, kind, out, into):
    """Weights whose directions are stretched all alike at the cap, or unlike as after training."""
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (out, into))
    rank = min(out, into)
    values = np.ones(rank) if kind == "at the cap" else np.exp(-3 * np.arange(rank) / rank)
    return (left[:, :rank] * values) @ right[:rank]


def deep_flow(backend, d, kind, dtype, *, activation="elu", norms=False):
    rng = np.random.default_rng(d)
    layers = []
    for _ in range(BLOCKS):
        if norms:
            layers.append(actnorm(backend, rng, d, dtype, spread=0.2))
        first, second = weights(rng, kind, 2 * d, d), weights(rng, kind, d, 2 * d)
        branch = [
            Dense(array(backend, first, dtype), array(backend, 0.3 * rng.standard_normal(2 * d), dtype)),
            Activation(activation),
            Dense(array(backend, second, dtype), array(backend, 0.3 * rng.standard_normal(d), dtype)),
        ]
        layers.append(ResidualBlock(normalize(Chain(branch), CONSTANT)))
    return Flow(layers, (d,))


def preimages(flow, z):
    """The exact preimages, in extended precision, for flows of dense blocks."""
    y = z.astype(np.longdouble)
    for layer in reversed(flow.layers):
        if not isinstance(layer, ResidualBlock):
            log_scale, bias = (host(a).astype(np.longdouble) for a in (layer.log_scale, layer.bias))
            y = y * np.exp(-log_scale) - bias
            continue
        (first, bend, second), x = layer.branch.layers, y
        ours = Chain(
            [
                Dense(*(host(a).astype(np.float64) for a in (first.weight, first.bias))),
                bend,
                Dense(*(host(a).astype(np.float64) for a in (second.weight, second.bias))),
            ]
        )
        W, b, V, a = (host(p).astype(np.longdouble) for p in (first.weight, first.bias, second.weight, second.bias))
        for _ in range(60):
            h = x @ W.T + b
            h = np.maximum(h, 0) + (np.expm1(np.minimum(h, 0)) if bend.name == "elu" else 0)
            residual = (x + h @ V.T + a - y).astype(np.float64)
            matrix = np.eye(x.shape[1]) + ours.linearize(x.astype(np.float64)).matrix()
            x = x - np.stack([solve(A, r) for A, r in zip(matrix, residual, strict=True)])
            if np.abs(residual).max() < 1e-17:
                break
        y = x
    return y


def errors(flow, back, z):
    exact = preimages(flow, host(z))
    return np.linalg.norm((host(back.value).astype(np.longdouble) - exact).astype(np.float64), axis=1)


@pytest.mark.parametrize("kind", ["trained", "at the cap"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [2, 64])
def test_the_bound_is_near_to_the_error(backend, d, dtype, kind):
    flow = deep_flow(backend, d, kind, dtype, norms=d == 2)
    z = array(backend, np.random.default_rng(1).standard_normal((6, d)), dtype)
    back = flow.inverse(z)
    error, bound, estimate = errors(flow, back, z), host(back.error_bound), host(back.error_estimate)
    assert (error <= bound).all()
    assert np.median(bound / error) < 200
    assert (estimate <= bound).all()
    assert (error <= 1.5 * estimate).all()
    assert np.median(estimate / error) < 3
    if dtype == "float32":  # nothing but the last rounding is left
        assert (error <= 2e-7 * np.linalg.norm(host(back.value), axis=1) + 1e-8).all()


def test_the_bound_through_relus_is_that_of_refined_solutions(backend):
    flow = deep_flow(backend, 6, "trained", "float32", activation="relu")
    z = array(backend, np.random.default_rng(2).standard_normal((4, 6)), "float32")
    back = flow.inverse(z)
    error = errors(flow, back, z)
    assert (error <= host(back.error_bound)).all()
    assert (host(back.error_bound) < 1e-2).all()  # 1 / (1 - c) a block makes a million times the rounding of float64
    assert (host(back.error_estimate) < 4 * error + 1e-7).all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
def test_images(backend, shape):
    if backend.name not in ("numpy", "torch"):
        pytest.skip("a size of work, on the backends that compile nothing")
    rng = np.random.default_rng(3)
    layers = [Squeeze(2)]
    for _ in range(4):
        channels, size = 4 * shape[0], shape[1] // 2
        branch = []
        for out, into, k in ((8, channels, 3), (8, 8, 1), (channels, 8, 3)):
            kernel = array(backend, rng.standard_normal((out, into, k, k)), "float32")
            bias = array(backend, 0.1 * rng.standard_normal(out), "float32")
            branch += [
                Activation("lipswish"),
                Convolution(kernel, bias, input_shape=(into, size, size), padding="same"),
            ]
        layers += [actnorm(backend, rng, channels, "float32", spread=0.2), ResidualBlock(normalize(Chain(branch), 0.9))]
    flow = Flow(layers, shape)
    z = array(backend, rng.standard_normal((2, *flow.latent_shape)), "float32")
    back = flow.inverse(z)
    # The same flow in float64, to the floor of that, is a hundred thousand times as accurate.
    exact = flow.astype(backend.xp.float64).inverse(backend.xp.astype(z, backend.xp.float64), rtol=1e-15)
    error, bound = distances(back.value, exact.value), host(back.error_bound)
    assert (error <= bound + host(exact.error_estimate)).all()
    assert (bound <= 20 * error).all()


def test_every_layer_hands_on_what_is_refined(backend):
    flow = image_flow(backend, 1, coeff=0.9, dtype="float32")
    x = images(backend, 2, dtype="float32")
    back = flow.inverse(flow(x))
    assert (host(back.error_bound) <= 1e-6).all()
    nested = Flow([Flow(flow.layers, flow.event_shape)], flow.event_shape).inverse(flow(x))
    np.testing.assert_array_equal(host(nested.value), host(back.value))
    np.testing.assert_allclose(host(nested.error_bound), host(back.error_bound))


def test_errors_of_both_parts_of_a_split_count(backend):
    """The channels that pass by have an error of their own, here that of a layer behind the split."""
    rng = np.random.default_rng(4)
    split = FactorOut(1, Flow([actnorm(backend, rng, 1, "float32")], (1, 2)))
    flow = Flow([split, actnorm(backend, rng, 6, "float32")], (3, 2))
    z = array(backend, rng.standard_normal((3, 6)), "float32")
    back, exact = flow.inverse(z), flow.astype(backend.xp.float64).inverse(backend.xp.astype(z, backend.xp.float64))
    error = distances(back.value, exact.value)
    assert (error <= host(back.error_bound)).all()
    assert (host(back.error_bound) <= 1.001 * error).all()


def test_an_argument_that_is_off_is_covered():
    """The certificate takes the error of its argument into account, and its terms of second order."""
    numpy = find_backend("numpy")
    rng = np.random.default_rng(5)
    block = deep_flow(numpy, 3, "at the cap", "float64").layers[0]
    y = rng.standard_normal((50, 3))
    exact = block.inverse(y, rtol=1e-15).value
    for size in (1e-8, 1e-3, 1e-1, 1.0):
        off = rng.standard_normal(y.shape)
        off *= size / np.linalg.norm(off, axis=1, keepdims=True)
        near = refined(block.branch, y + off, block.inverse(y + off).value, np.full(50, size))
        distance = np.linalg.norm(near.x - exact, axis=1)
        assert (distance <= near.error).all()
        assert (near.error <= size / (1 - CONSTANT) * (1 + 1e-6)).all()
        if size <= 1e-3:
            assert np.median(near.error / distance) < 10


def test_an_inverse_without_errors_is_not_refined(backend, monkeypatch):
    flow = Flow([ResidualBlock(load_case("d2_c0.97", backend=backend.name)[0]) for _ in range(3)], event_shape=(2,))
    x = load_case("d2_c0.97", backend=backend.name)[1][:8, :]
    z = flow.forward(x).value

    def unwanted(*args, **options):
        raise AssertionError("a bound that nobody asked for was computed")

    monkeypatch.setattr(residual_block, "refined", unwanted)
    answer = flow.inverse(z, errors=False)
    np.testing.assert_allclose(backend.to_numpy(answer.value), backend.to_numpy(x), atol=1e-8)
    assert np.all(np.isnan(backend.to_numpy(answer.error_bound)))
    assert np.all(backend.to_numpy(answer.converged))
    with pytest.raises(AssertionError, match="nobody"):
        flow.inverse(z)


@pytest.mark.parametrize("errors", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_flow_of_plain_functions_is_inverted_in_the_dtype_that_they_know(backend, dtype, errors):
    def half(x):
        return 0.5 * backend.xp.sin(x)

    flow = Flow([ResidualBlock(half, lipschitz=0.5)] * 2, event_shape=(3,))
    x = array(backend, np.random.default_rng(0).standard_normal((4, 3)), dtype)
    answer = flow.inverse(flow(x), errors=errors)
    np.testing.assert_allclose(host(answer.value), host(x), atol=1e-4 if dtype == "float32" else 1e-8)
    assert np.all(host(answer.converged))
    bounds = host(answer.error_bound)
    assert np.all(np.isfinite(bounds)) if errors else np.all(np.isnan(bounds))
