"""Both adapters: the same class names, methods, signatures and meanings."""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)

import iresnet_core.adapters.keras as of_keras  # noqa: E402
import iresnet_core.adapters.torch as of_torch  # noqa: E402
from iresnet_core.adapters.shared.flow import FlowMethods  # noqa: E402
from iresnet_core.adapters.shared.layer import LayerMethods  # noqa: E402
from iresnet_core.adapters.shared.residual import ResidualMethods  # noqa: E402

CLASSES = sorted({*of_keras.__all__} - {"Muon"})  # an optimiser has the arguments and methods of its framework's
ALONE = {"FlowTransform"}  # torch.distributions has no counterpart in Keras
# What one framework's manners add: see docs/keras.md.
OPTIONS = {
    "Activation": {"dtype", "trainable"},
    "FlowLayer": {"dtype"},
    "ScaledActivation": {"dtype", "trainable"},
    "save": {"options"},
}


def parameters(function):
    """Names, kinds and defaults; what is passed on by ** is the framework's own."""
    found = inspect.signature(function).parameters.values()
    return {p.name: (p.kind, p.default) for p in found if p.kind is not inspect.Parameter.VAR_KEYWORD}


def test_names_are_the_same():
    assert set(of_torch.__all__) - ALONE == set(of_keras.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_constructors_are_the_same(name):
    ours, theirs = (parameters(getattr(adapter, name).__init__) for adapter in (of_torch, of_keras))
    for option in OPTIONS.get(name, ()):
        theirs.pop(option, None)
    if name == "FlowLayer":
        ours.pop("args", None)
    assert ours == theirs


def shared_methods(name):
    kind = {"Flow": FlowMethods, "InvertibleResidual": ResidualMethods}.get(name, LayerMethods)
    if not issubclass(getattr(of_torch, name), kind):
        return []
    return sorted(member for member in dir(kind) if not member.startswith("_"))


@pytest.mark.parametrize("name", CLASSES)
def test_methods_are_the_same(name):
    for member in shared_methods(name):
        ours, theirs = (inspect.getattr_static(getattr(adapter, name), member) for adapter in (of_torch, of_keras))
        assert type(ours) is type(theirs), member
        if callable(ours):
            a, b = parameters(ours), parameters(theirs)
            passed_on = any(
                p.kind is inspect.Parameter.VAR_KEYWORD
                for f in (ours, theirs)
                for p in inspect.signature(f).parameters.values()
            )
            assert a == b or (passed_on and (a.items() <= b.items() or b.items() <= a.items())), member


@pytest.mark.parametrize("name", CLASSES)
def test_public_methods_of_one_are_those_of_the_other(name):
    """Beside what the framework's own base class has."""
    bases = {of_torch: torch.nn.Module, of_keras: keras.Model}
    own = {
        adapter: {m for m in dir(getattr(adapter, name)) if not m.startswith("_")} - set(dir(base))
        for adapter, base in bases.items()
    }
    manners = {
        *("capped", "save_core", "distribution", "transform"),  # deprecated, or of torch.distributions
        *("bind", "forward", "save", "extra_repr", "conditioning"),  # a base class of one of them has the name
        "compiled",  # every Keras model has it, as an attribute of the instance
        *("train_function", "test_function", "predict_function"),
    }
    assert own[of_torch] - manners <= set(dir(getattr(of_keras, name)))
    assert own[of_keras] - manners <= set(dir(getattr(of_torch, name)))


def flows():
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ELU(), torch.nn.Linear(4, 2))
    yield (
        of_torch.Flow([of_torch.ActNorm(2), of_torch.InvertibleResidual(net, 0.8)], (2,), penalty=0.1).eval(),
        torch.tensor,
    )
    dense = keras.layers.Dense
    block = of_keras.InvertibleResidual([dense(4, activation="elu"), dense(2)], 0.8)
    yield of_keras.Flow([of_keras.ActNorm(2), block], (2,), penalty=0.1), keras.ops.convert_to_tensor


def host(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else keras.ops.convert_to_numpy(x)


def test_meanings_are_the_same(tmp_path):
    import iresnet_core

    for flow, tensor in flows():
        x = tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
        assert not flow.initialized
        assert np.isnan(host(flow.reference)).all()
        assert tuple(flow.reference.shape) == (16, 2)
        assert flow.initialize(x) is flow
        assert flow.initialized
        np.testing.assert_array_equal(host(flow.reference), host(x))
        assert flow.set_reference(x[1:]) is flow
        np.testing.assert_array_equal(host(flow.reference), host(x[1:]))
        assert flow.fill_caps() is flow
        assert flow.certify() is flow
        assert 0.3 < flow.lipschitz <= 0.8
        z, logdet = flow.encode(x, logdet=True)
        assert tuple(z.shape) == (3, 2)
        assert tuple(logdet.shape) == tuple(flow.log_prob(x).shape) == (3,)
        np.testing.assert_allclose(host(flow.inverse(z)), host(x), atol=1e-3)
        np.testing.assert_allclose(host(flow.encode(x)), host(z), atol=1e-5)
        assert flow.inverse(z, errors=True).converged.shape == (3,)
        np.testing.assert_array_equal(host(flow.sample(2, rng=3)), host(flow.sample(2, rng=3)))
        penalised = host(flow.training_loss(x, share=1)) + host(flow.log_prob(x, training=True)).mean()
        assert penalised == pytest.approx(float(host(flow.spectral_penalty(0.1))), rel=0.05)
        assert [layer.cap for layer in flow._blocks()[0].capped_layers()] == [flow._blocks()[0].cap] * 2
        norm, block = flow._flow_layers()
        assert norm.initialize(x) is norm
        assert block.initialize(x) is block
        assert block.fill_caps() is block
        flow.save(tmp_path / "flow.safetensors")
        loaded = iresnet_core.load(tmp_path / "flow.safetensors", backend="numpy")
        assert loaded.event_shape == (2,)


def test_old_names_of_pytorch_warn():
    flow, tensor = next(flows())
    flow.initialize(tensor([[0.0, 1.0], [2.0, -1.0]]))
    with pytest.warns(DeprecationWarning, match="capped_layers"):
        assert len(flow.layers[1].capped()) == 2
    with pytest.warns(DeprecationWarning, match="rng"):
        flow.sample(2, generator=torch.Generator().manual_seed(0))


def test_old_names_of_keras_warn(tmp_path):
    *_, (flow, tensor) = flows()
    x = tensor([[0.0, 1.0], [2.0, -1.0]])
    flow.initialize(x)
    with pytest.warns(DeprecationWarning, match="Flow"):
        assert of_keras.FlowModel is of_keras.Flow
    with pytest.warns(DeprecationWarning, match="save"):
        flow.save_core(tmp_path / "flow")
    with pytest.raises(AttributeError, match="Model"):
        _ = of_keras.Model


def test_files_of_the_release_before_load():
    """A model that Keras saved under the class name FlowModel."""
    flow = keras.saving.load_model(Path(__file__).with_name("flow_model.keras"))
    assert type(flow) is of_keras.Flow
    assert flow.initialized
    x = 2 * np.random.default_rng(0).standard_normal((20, 2)) + 1
    expected = [-2.8066978454589844, -3.3988115787506104, -2.4544734954833984]
    np.testing.assert_allclose(flow.log_prob(x[:3]), expected, rtol=1e-5)
    assert flow.lipschitz == pytest.approx(0.8, rel=1e-6)
