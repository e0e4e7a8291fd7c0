"""Layers turned round in both adapters: the core's answers, gradients through solutions, training modes and files."""

import numpy as np
import pytest
from adapters_for_tests import framework

from iresnet_core import load
from iresnet_core.errors import InvalidArgumentError, ShapeError


@pytest.fixture(params=["torch", "keras"])
def adapter(request):
    return framework(request.param)


def test_it_is_the_inverse_and_the_core_has_it_too(adapter, tmp_path):
    adapter, net, tensor, host = adapter
    rng = np.random.default_rng(1)
    blocks = [adapter.InvertibleResidual(net(2), 0.8) for _ in range(2)]
    plain, turned = adapter.Flow(blocks, (2,)), adapter.Flow([adapter.Inverted(blocks, rtol=1e-7)], (2,))
    if hasattr(plain, "eval"):
        plain.eval(), turned.eval()
    x = tensor(rng.standard_normal((4, 2)).astype("float32"))
    z, logdet = plain.encode(x, logdet=True)
    back, negative = turned.encode(z, logdet=True)
    np.testing.assert_allclose(host(back), host(x), atol=1e-5)
    np.testing.assert_allclose(host(negative), -host(logdet), atol=1e-5)
    np.testing.assert_allclose(host(turned.inverse(x)), host(z), atol=1e-6)
    np.testing.assert_allclose(host(turned.inverse(x, errors=True).value), host(z), atol=1e-6)
    assert turned.lipschitz == plain.lipschitz
    path = tmp_path / "turned.safetensors"
    turned.save(path)
    nats = load(path).log_prob(host(z), method="exact")
    np.testing.assert_allclose(host(turned.log_prob(z)), nats.value, atol=1e-5)


def test_training_initialises_and_differentiates(adapter):
    adapter, net, tensor, host = adapter
    blocks = [adapter.InvertibleResidual(net(2), 0.8)]
    flow = adapter.Flow([adapter.Inverted([adapter.ActNorm(2), *blocks, adapter.ActNorm(2)])], (2,))
    x = tensor((3 + 2 * np.random.default_rng(1).standard_normal((100, 2))).astype("float32"))
    flow.initialize(x)
    z = host(flow.encode(x, training=False))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-3)
    loss = flow.training_loss(x)
    assert np.isfinite(host(loss))
    if hasattr(loss, "backward"):
        loss.backward()
        assert all(np.abs(host(p.grad)).max() > 0 for p in flow.parameters() if p.grad is not None)
        assert sum(p.grad is not None for p in flow.parameters()) >= 8


def test_shapes_go_backwards_through_it(adapter):
    adapter = adapter[0]
    last = adapter.__name__.endswith("keras")
    flow = adapter.Flow([adapter.Inverted(adapter.Squeeze())], (2, 2, 4) if last else (4, 2, 2))
    assert flow.latent_shape == ((4, 4, 1) if last else (1, 4, 4))
    with pytest.raises(ShapeError, match="bijection"):
        adapter.Flow([adapter.Inverted(adapter.InjectivePad(1))], (3,))
    with pytest.raises(InvalidArgumentError, match="FactorOut"):
        adapter.Inverted(adapter.FactorOut(1, [adapter.Logit()]))
    with pytest.raises(InvalidArgumentError, match="solver"):
        adapter.Inverted(adapter.Logit(), solver="fixed")


@pytest.mark.strict_suite  # a program with a loop inside a solution takes long to compile
def test_keras_saves_and_fits_it(tmp_path):
    adapter, net, _, host = framework("keras")
    import keras

    flow = adapter.Flow([adapter.Inverted(adapter.InvertibleResidual(net(2), 0.8))], (2,))
    x = np.random.default_rng(1).standard_normal((64, 2)).astype("float32")
    flow.compile(keras.optimizers.Adam(1e-2))
    history = flow.fit(x, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    flow.save(tmp_path / "flow.keras")
    again = keras.models.load_model(tmp_path / "flow.keras")
    np.testing.assert_allclose(host(again.log_prob(x)), host(flow.log_prob(x)), atol=1e-5)


def test_reverse_kl_trains(adapter):
    adapter, net, _, host = adapter
    blocks = [adapter.InvertibleResidual(net(2), 0.8)]
    flow = adapter.Flow([adapter.Inverted([adapter.ActNorm(2), *blocks])], (2,))

    def target(x):
        return -0.5 * (x[:, 0] ** 2 + (x[:, 1] - 1) ** 2)

    if not hasattr(flow, "parameters"):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = flow.reverse_kl(target, 32)
        found = [g for g in tape.gradient(loss, flow.trainable_variables) if g is not None]
    else:
        loss = flow.reverse_kl(target, 32)
        loss.backward()
        found = [p.grad for p in flow.parameters() if p.grad is not None]
    assert flow.initialized
    assert len(found) >= 6
    assert all(np.isfinite(host(g)).all() for g in found)
    x, nats = flow.sample(5, log_prob=True, rng=1) if hasattr(flow, "parameters") else flow.sample(5, log_prob=True)
    np.testing.assert_allclose(host(flow.log_prob(x, training=False)), host(nats), atol=5e-2)
