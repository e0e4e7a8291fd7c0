"""Point sets and angles in both adapters: the core's answers, training, codes of sets, and files."""

import math

import numpy as np
import pytest
from adapters_for_tests import framework

from iresnet_core import load

TURN = 2 * math.pi


@pytest.fixture(params=["torch", "keras"])
def adapter(request):
    return framework(request.param)


def conditional(adapter, net):
    """A flow of points under a code of two numbers."""
    blocks = [adapter.InvertibleResidual(net(3), 0.8, context_features=2) for _ in range(2)]
    return adapter.Flow([adapter.Pointwise([adapter.ActNorm(3), *blocks])], (5, 3))


def test_sets_with_codes_are_the_sets_of_the_core(adapter, tmp_path):
    adapter, net, tensor, host = adapter
    rng = np.random.default_rng(1)
    flow = conditional(adapter, net)
    x = tensor(rng.standard_normal((4, 5, 3)).astype("float32"))
    codes = tensor(rng.standard_normal((4, 2)).astype("float32"))
    flow.initialize(x, codes)
    assert flow.initialized
    if hasattr(flow, "eval"):
        flow.eval()
    z, logdet = flow.encode(x, codes, logdet=True)
    path = tmp_path / "sets.safetensors"
    flow.save(path)
    core = load(path)
    value, expected = core.forward(host(x), host(codes))
    np.testing.assert_allclose(host(z), value, atol=1e-5)
    np.testing.assert_allclose(host(logdet), expected.value, atol=1e-5)
    back = flow.inverse(z, codes, errors=True)
    distance = np.linalg.norm((host(back.value) - host(x)).reshape(4, -1), axis=1)
    assert (distance <= host(back.error_bound) + 1e-4).all()
    assert tuple(flow.sample(4, context=codes).shape) == (4, 5, 3)


def test_training_goes_through_sets(adapter):
    adapter, net, tensor, _ = adapter
    rng = np.random.default_rng(2)
    flow = conditional(adapter, net)
    x = tensor(rng.standard_normal((8, 5, 3)).astype("float32"))
    codes = tensor(rng.standard_normal((8, 2)).astype("float32"))
    if hasattr(flow, "eval"):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        optimizer, losses = torch.optim.Adam(flow.parameters(), 1e-2), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = flow.training_loss(x, codes)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    else:
        flow.compile(optimizer="adam")
        losses = flow.fit([x, codes], epochs=30, batch_size=8, verbose=0).history["loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_angles_come_back_to_one_turn(adapter):
    adapter, _, tensor, host = adapter
    wrap = adapter.Wrap(-math.pi, entries=[0])
    x = tensor(np.array([[4.0, 4.0], [-9.0, -9.0], [0.5, 0.5]], dtype="float32"))
    z = host(wrap(x))
    np.testing.assert_allclose(z, [[4 - TURN, 4], [-9 + TURN, -9], [0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(host(wrap.inverse(x)), z, atol=0)
    if not hasattr(wrap, "eval"):
        again = type(wrap).from_config(wrap.get_config())
        np.testing.assert_array_equal(host(again(x)), z)
