"""The training loss with log-determinants of a part of the batch: the same expectation, on every backend."""

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host

import iresnet_core as core
from iresnet_core import ActNorm, Flow, ResidualBlock, training_loss
from iresnet_core.branches import conditioned
from iresnet_core.errors import DtypeError, InvalidArgumentError, ShapeError
from iresnet_core.flows import DEFAULT_SHARE, with_part_first
from iresnet_core.flows.maximum_likelihood import PartFirst, mean_loss, training_log_prob


def problem(backend, d=2, n=8, dtype="float64"):
    blocks = [ResidualBlock(dense_chain(backend, d, [6], 0.9, seed, dtype=dtype)) for seed in range(2)]
    ones = array(backend, np.full(d, 0.2), dtype)
    flow = Flow([blocks[0], ActNorm(ones, ones), blocks[1]], (d,))
    rng = np.random.default_rng(5)
    return flow, array(backend, rng.standard_normal((n, d)), dtype), array(backend, rng.uniform(0, 2, n), dtype)


def test_the_mean_over_all_parts_is_the_whole(backend):
    """Every sample is in the part once, so that the mean of the losses is that of all samples, weighted or not."""
    flow, x, weights = problem(backend, n=6)
    exact = training_log_prob(flow, x, method="exact", errors=False).value
    for given in (None, weights):
        losses = []
        for first in range(0, 6, 2):
            order = backend.from_numpy(np.roll(np.arange(6), -first))
            chosen = PartFirst(order, 2)
            found = training_log_prob(flow, chosen.of(backend, x), 2, method="exact", errors=False).value
            assert tuple(found.shape) == (6,)
            losses.append(float(host(backend, mean_loss(chosen.undone(backend, found), given))))
        whole = float(host(backend, mean_loss(exact, given)))
        assert np.mean(losses) == pytest.approx(whole, rel=1e-12)
        assert np.std(losses) > 1e-6  # else nothing was left out


def test_the_mean_of_the_gradients_is_that_of_the_whole(backend):
    """By the samples, on every backend that differentiates."""
    if not backend.differentiates:
        pytest.skip(f"{backend.name} does not differentiate")
    flow, x, weights = problem(backend, n=4)

    def gradient(chosen):
        def loss(x):
            nats = training_log_prob(flow, chosen.of(backend, x), chosen.part, method="exact", errors=False).value
            return mean_loss(chosen.undone(backend, nats), weights)

        value, pullback = backend.vjp(loss, x)
        return host(backend, pullback(backend.xp.ones_like(value)))

    orders = [backend.from_numpy(np.roll(np.arange(4), -first)) for first in (0, 2)]
    found = [gradient(PartFirst(order, 2)) for order in orders]
    np.testing.assert_allclose(np.mean(found, axis=0), gradient(PartFirst(None, None)), rtol=1e-9, atol=1e-12)
    assert np.abs(found[0] - found[1]).max() > 1e-6


def test_the_whole_batch_is_the_mean_of_log_densities(backend):
    flow, x, weights = problem(backend)
    exact = host(backend, flow.log_prob(x, method="exact").value)
    loss = training_loss(flow, x, share=1, method="exact")
    assert float(host(backend, loss)) == pytest.approx(-exact.mean(), rel=1e-10)
    loss = training_loss(flow, x, weights=weights, share=1.0, method="exact")
    assert float(host(backend, loss)) == pytest.approx(-(exact * host(backend, weights)).mean(), rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_expectation(backend, weighted):
    """The mean over draws of parts and probes, within its own standard error."""
    if backend.name in ("jax", "tensorflow", "array_api_strict"):
        pytest.skip("hundreds of losses; the same source on every backend")
    flow, x, weights = problem(backend, d=40, n=8)
    given = weights if weighted else None
    exact = host(backend, flow.log_prob(x, method="exact").value)
    expected = -(exact * (host(backend, weights) if weighted else 1)).mean()
    for method in ("arnoldi", "mean-jacobian"):
        losses = [
            float(host(backend, training_loss(flow, x, weights=given, share=0.25, rng=seed, method=method, terms=12)))
            for seed in range(100)
        ]
        assert abs(np.mean(losses) - expected) <= 5 * np.std(losses) / np.sqrt(len(losses)) + 1e-6


def test_share_and_order(backend):
    flow, x, _ = problem(backend, n=10)
    assert with_part_first(backend, x, None, backend.generator(0)) == (None, None)  # two dimensions: all of ten
    first = with_part_first(backend, x, DEFAULT_SHARE, backend.generator(0))
    assert first.part == 3
    assert sorted(host(backend, first.order).tolist()) == list(range(10))
    np.testing.assert_array_equal(host(backend, first.undone(backend, first.of(backend, x))), host(backend, x))
    assert with_part_first(backend, x, 1, None) == with_part_first(backend, x, 0.95, None) == (None, None)
    assert with_part_first(backend, x[:1, ...], 0.5, None) == (None, None)
    assert with_part_first(backend, x, 1e-9, backend.generator(0)).part == 1
    large = backend.xp.concat([x] * 27)[:257, ...]
    assert with_part_first(backend, large[:256, ...], None, None).part is None  # 128 would be half, and save nothing
    assert with_part_first(backend, large[:256, ...], 0.5, backend.generator(0)).part == 128  # it was asked for
    assert with_part_first(backend, large, None, backend.generator(0)).part == 128
    for share in (0, -0.5, 1.5, float("nan"), True, "all"):
        with pytest.raises(InvalidArgumentError, match="share"):
            training_loss(flow, x, share=share)


def test_bad_input(backend):
    flow, x, weights = problem(backend)
    with pytest.raises(ShapeError, match="weights"):
        training_loss(flow, x, weights=weights[:3])
    with pytest.raises(DtypeError, match="weights"):
        training_loss(flow, x, weights=backend.xp.astype(weights, backend.xp.float32))
    with pytest.raises(InvalidArgumentError):
        training_loss(flow, x, part=3)
    with pytest.raises(InvalidArgumentError):
        flow.log_prob(x, part=3)


def test_empty_batches(backend):
    _, x, _ = problem(backend)
    first = with_part_first(backend, x[:0, ...], 0.25, None)
    assert first.part is None


def test_a_multi_scale_flow(backend):
    """Parts go through factored channels too, and the same number of log-determinants is taken in every block."""
    rng = np.random.default_rng(0)

    def block(channels, size):
        kernel = array(backend, 0.05 * rng.standard_normal((channels, channels, 3, 3)))
        layer = core.Convolution(kernel, input_shape=(channels, size, size), padding="same")
        return ResidualBlock(core.Chain([layer, core.Activation("tanh")]))

    flow = Flow([block(1, 4), core.Squeeze(2), core.FactorOut(2, [block(2, 2)])], (1, 4, 4))
    x = array(backend, rng.standard_normal((6, 1, 4, 4)))
    whole = training_log_prob(flow, x, method="exact", errors=False).value
    found = [
        host(
            backend, training_log_prob(flow, backend.xp.roll(x, -k, axis=0), 2, method="exact", errors=False).value
        ).mean()
        for k in (0, 2, 4)
    ]
    assert np.mean(found) == pytest.approx(host(backend, whole).mean(), rel=1e-12)


def test_a_conditioning_goes_with_its_samples(backend):
    """Every sample keeps its own translation, whichever are the part."""
    g = dense_chain(backend, 2, [6], 0.9, 0)
    rng = np.random.default_rng(1)
    x, shift = rng.standard_normal((6, 2)), rng.standard_normal((6, 6))

    def loss(order, part):
        chain = core.Chain(conditioned(g.layers, array(backend, shift[order])))
        flow = Flow([ResidualBlock(chain)], (2,))
        found = training_log_prob(flow, array(backend, x[order]), part, method="exact", errors=False)
        return host(backend, found.value)

    whole = loss(np.arange(6), None)
    found = [loss(np.roll(np.arange(6), -k), 2).mean() for k in (0, 2, 4)]
    assert np.mean(found) == pytest.approx(whole.mean(), rel=1e-12)
