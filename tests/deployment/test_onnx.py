"""ONNX files of flows and classifiers, run by onnxruntime; needs the real packages, see the tox environment."""

import logging

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from activation_cases import CASES  # noqa: E402
from torch_models import convolutions, images, nn, samples, torch, vector_flow  # noqa: E402

from iresnet_core import Activation  # noqa: E402
from iresnet_core.adapters.torch import ActNorm, Classifier, Flow, InvertibleResidual, Logit, Squeeze  # noqa: E402

# From inside the exporter, and of the noise of estimates, which is the same on both sides.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def image_flow(channels, extent):
    torch.manual_seed(0)
    layers = [Logit(), Squeeze(basis="haar"), ActNorm(4 * channels), InvertibleResidual(convolutions(4 * channels, 12))]
    return Flow(layers, event_shape=(channels, extent, extent)).fill_caps()


FLOWS = {
    "d = 2": lambda: vector_flow(2, blocks=2, coeff=0.98).fill_caps(),
    "d = 64": lambda: vector_flow(64, blocks=2).fill_caps(),
    "d = 100": lambda: vector_flow(100, blocks=1),
    "1 x 28 x 28": lambda: image_flow(1, 28),
    "3 x 32 x 32": lambda: image_flow(3, 32),
}


def batch(flow, n):
    if len(flow.event_shape) == 3:
        return torch.rand(n, *flow.event_shape, generator=torch.Generator().manual_seed(n))
    return samples(n, flow.event_shape[0], seed=n)


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path))
    given = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, given)[0]


def close(found, expected):
    """To 1e-5, relative to the largest value, as float32 allows no more."""
    scale = max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("method", ["log_prob", "encode", "inverse"])
def test_a_method_for_batches_of_any_size(kind, method, tmp_path):
    flow = FLOWS[kind]()
    flow.initialize(batch(flow, 60)).eval()
    flow.export(tmp_path / "flow.onnx", method)
    with torch.no_grad():
        for n in (1, 4):
            x = batch(flow, n)
            x = flow.encode(x) if method == "inverse" else x
            close(run(tmp_path / "flow.onnx", x), getattr(flow, method)(x))


@pytest.mark.parametrize("method", ["forward", "log_prob"])
def test_the_exporter_of_pytorch_takes_a_module_that_calls_a_flow(method, tmp_path):
    flow = FLOWS["d = 2"]()
    x = batch(flow, 6)
    flow.initialize(batch(flow, 60)).eval()

    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, x):
            return self.flow.log_prob(x) if method == "log_prob" else self.flow(x)

    torch.onnx.export(Calling(), (x,), dynamo=True, verbose=False).save(str(tmp_path / "flow.onnx"))
    with torch.no_grad():
        expected = Calling()(x)
    close(run(tmp_path / "flow.onnx", x), expected if method == "log_prob" else expected[0])


def test_every_activation_with_its_parameters(tmp_path):
    """In one program, value and slope side by side; ONNX has operators with fewer parameters."""
    functions = [Activation(name, **parameters) for name, parameters in CASES]

    class Calling(nn.Module):
        def forward(self, x):
            found = [function.linearize(x) for function in functions]
            return torch.stack([part for value, jacobian in found for part in (value, jacobian.slope)])

    x = torch.linspace(-4, 4, 42)[None, :]
    torch.onnx.export(Calling(), (x,), dynamo=True, verbose=False).save(str(tmp_path / "activations.onnx"))
    np.testing.assert_allclose(run(tmp_path / "activations.onnx", x), Calling()(x).numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["d = 2", "3 x 32 x 32"])
def test_samples_belong_to_the_density(kind, tmp_path):
    """Their latents are standard normal numbers, and another run draws others."""
    flow = FLOWS[kind]()
    flow.initialize(batch(flow, 60)).eval()
    flow.export(tmp_path / "flow.onnx", "sample", n=200)
    session = onnxruntime.InferenceSession(str(tmp_path / "flow.onnx"))
    first, second = (torch.tensor(session.run(None, {})[0]) for _ in range(2))
    assert not torch.equal(first, second)
    with torch.no_grad():
        z = flow.encode(first).double()
    count = z.numel()
    assert abs(float(z.mean())) < 5 / count**0.5
    assert abs(float(z.var()) - 1) < 5 * (2 / count) ** 0.5


def test_a_flow_under_conditions(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ELU(), nn.Linear(16, 3))
    flow = Flow([ActNorm(3), InvertibleResidual(net, context_features=2)])
    flow.initialize(samples(50, 3), torch.randn(50, 2)).eval()
    flow.export(tmp_path / "flow.onnx")
    x, context = samples(4, 3), torch.randn(4, 2)
    with torch.no_grad():
        close(run(tmp_path / "flow.onnx", x, context), flow.log_prob(x, context))


def test_a_classifier(tmp_path):
    torch.manual_seed(0)
    model = Classifier((1, 8, 8), 4, padding=1, widths=(6, 6), blocks=(1, 1))
    model.initialize(images(30)).eval()
    model.export(tmp_path / "model.onnx")
    with torch.no_grad():
        for n in (1, 5):
            close(run(tmp_path / "model.onnx", images(n)), model(images(n)))
