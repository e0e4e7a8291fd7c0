"""Both adapters in evaluation: one score a sample, in any batch and under any seed; noise is said once."""

import os
import warnings

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from iresnet_core.errors import EstimateWarning

X = np.random.default_rng(0).standard_normal((6, 80)).astype("float32")


def host(values):
    return np.asarray(values.detach() if hasattr(values, "detach") else values)


def torch_flow():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from iresnet_core.adapters.torch import Flow, InvertibleResidual

    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(80, 90), torch.nn.ELU(), torch.nn.Linear(90, 80)) for _ in range(2)]
    flow = Flow([InvertibleResidual(net) for net in nets], (80,)).fill_caps().eval()
    return flow, torch.tensor, torch.manual_seed


def keras_flow():
    keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
    from iresnet_core.adapters.keras import Flow, InvertibleResidual

    keras.utils.set_random_seed(0)
    nets = [[keras.layers.Dense(90, activation="elu"), keras.layers.Dense(80)] for _ in range(2)]
    flow = Flow([InvertibleResidual(net) for net in nets], (80,)).fill_caps()
    return flow, keras.ops.convert_to_tensor, keras.utils.set_random_seed


@pytest.mark.parametrize("make", [torch_flow, keras_flow])
def test_one_score_a_sample(make):
    flow, tensor, seed = make()

    def score(x):
        result = flow.log_prob(tensor(x), errors=True)
        assert result.method == "mean-jacobian"
        return host(result.value)

    value = score(X)
    seed(5)
    np.testing.assert_allclose(score(X[[4, 0, 2]]), value[[4, 0, 2]], rtol=1e-6)
    np.testing.assert_allclose(score(X[1:2]), value[1:2], rtol=1e-6)
    np.testing.assert_allclose(host(flow.log_prob(tensor(X))), value, rtol=1e-6)


@pytest.mark.parametrize("make", [torch_flow, keras_flow])
def test_noise_that_is_left_out_is_said_once(make):
    flow, tensor, _ = make()
    plain = {"method": "arnoldi", "control_variate": "none"}
    with pytest.warns(EstimateWarning, match="standard error of up to .*errors=True"):
        flow.log_prob(tensor(X), **plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.log_prob(tensor(X), **plain)
        other = make()[0]
        other.log_prob(tensor(X), errors=True, **plain)
        other.log_prob(tensor(X), training=True, **plain)
        other.log_prob(tensor(X))
        other.log_prob(tensor(X[:0]))
