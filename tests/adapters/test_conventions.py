"""Both adapters: what users of other libraries expect of a flow by its name."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from iresnet_core.errors import InvalidArgumentError, ShapeError


def torch_flow(**options):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual

    def block():
        return InvertibleResidual(torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ELU(), torch.nn.Linear(8, 2)))

    torch.manual_seed(0)
    return Flow([ActNorm(2), block(), ActNorm(2), block()], **options).eval().requires_grad_(False), torch.tensor


def keras_flow(**options):
    pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
    keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    def block():
        return InvertibleResidual([keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)])

    return Flow([ActNorm(), block(), ActNorm(), block()], **options), keras.ops.convert_to_tensor


ADAPTERS = pytest.mark.parametrize("make", [torch_flow, keras_flow], ids=["torch", "keras"])
X = np.random.default_rng(0).standard_normal((30, 2)).astype("float32")


@ADAPTERS
def test_a_sequence_of_layers(make):
    flow, tensor = make()
    x = tensor(X)
    flow.initialize(x)
    assert flow.event_shape == (2,)
    assert len(flow) == len(list(flow)) == 4
    assert flow[1] is list(flow)[1]
    assert flow[-1] is list(flow)[3]
    assert float(abs(flow[2:].encode(flow[:2].encode(x)) - flow.encode(x)).__array__().max()) < 1e-6
    with pytest.raises(IndexError, match="4 layers"):
        flow[4]
    with pytest.raises(InvalidArgumentError, match="leaves none out"):
        flow[::2]


@ADAPTERS
def test_a_table_of_shapes_and_parameters(make):
    flow, _ = make(event_shape=2)
    lines = repr(flow).splitlines()
    assert lines[0] == "Flow: (2,) -> (2,), 92 parameters"
    assert len(lines) == 5
    assert lines[2].split("  ")[1].startswith("(1) InvertibleResidual(coeff=0.9)")
    assert lines[2].endswith("42 parameters")


@ADAPTERS
def test_shapes_of_samples(make):
    flow, tensor = make()
    flow.initialize(tensor(X))
    assert tuple(flow.sample(rng=0).shape) == (2,)
    assert tuple(flow.sample(3, rng=0).shape) == tuple(flow.sample((3,), rng=0).shape) == (3, 2)
    assert tuple(flow.sample((2, 3), rng=0).shape) == (2, 3, 2)
    x, nats = flow.sample_and_log_prob((2, 3), rng=0)
    assert tuple(x.shape) == (2, 3, 2)
    assert tuple(nats.shape) == (2, 3)
    assert tuple(flow.sample((2, 3), errors=True).error_bound.shape) == (2, 3)


def test_a_shape_that_the_layers_do_not_know():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from iresnet_core.adapters.torch import Flow, Logit, Squeeze

    with pytest.raises(ShapeError, match="event_shape="):
        Flow([Logit(), Squeeze()])
