"""Both adapters hand out the local bound of a deep flow's inverse."""

import os

import numpy as np
import pytest

from iresnet_core.backends import get_backend

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

BLOCKS = 6


def torch_flow():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual

    torch.manual_seed(0)
    layers = []
    for _ in range(BLOCKS):
        net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.ELU(), torch.nn.Linear(16, 3))
        layers += [ActNorm(3), InvertibleResidual(net, coeff=0.95)]
    flow = Flow(layers, event_shape=(3,))
    flow.initialize(torch.randn(100, 3))
    return flow.fill_caps().eval()


def keras_flow():
    pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
    keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    keras.utils.set_random_seed(0)
    layers = []
    for _ in range(BLOCKS):
        net = [keras.layers.Dense(16, activation="elu"), keras.layers.Dense(3)]
        layers += [ActNorm(), InvertibleResidual(net, coeff=0.95)]
    flow = Flow(layers, event_shape=(3,))
    flow.initialize(np.random.default_rng(0).standard_normal((100, 3)).astype("float32"))
    return flow.fill_caps()


@pytest.mark.parametrize("made", [torch_flow, keras_flow])
def test_the_bound_is_near_to_the_error_in_both_adapters(made):
    flow = made()
    z = np.random.default_rng(1).standard_normal((5, 3)).astype("float32")
    host = flow.to_core()
    backend = get_backend(*host.arrays)
    back = flow.inverse(backend.from_numpy(z), errors=True)
    value, bound, estimate = (
        backend.to_numpy(backend.stop_gradient(a)) for a in (back.value, back.error_bound, back.error_estimate)
    )
    exact = host.astype(backend.xp.float64).inverse(backend.from_numpy(z.astype("float64")), rtol=0.0, atol=0.0)
    error = np.linalg.norm(value - backend.to_numpy(exact.value), axis=1)
    assert (error <= bound).all()
    assert (bound <= 10 * error + 1e-9).all()
    assert (estimate <= bound).all()
