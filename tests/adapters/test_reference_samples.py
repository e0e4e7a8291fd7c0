"""Both adapters: the reference of a flow is what its branches see of the first samples, under the present weights."""

import copy
import os
import pickle

import numpy as np
import pytest
from adapters_for_tests import framework

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError

SIDE = 6


def images(n, seed=0):
    """Images with bright and dark places, which are the same in all of them."""
    rng = np.random.default_rng(seed)
    places = 4 * np.random.default_rng(9).standard_normal((2, SIDE, SIDE))
    return (places + 0.3 * rng.standard_normal((n, 2, SIDE, SIDE))).astype("float32")


def torch_nets():
    from torch import nn

    return [nn.Sequential(nn.ELU(), nn.Conv2d(2, 12, 3, padding=1), nn.ELU(), nn.Conv2d(12, 12, 1), nn.ELU(),
                          nn.Conv2d(12, 2, 3, padding=1)) for _ in range(2)]  # fmt: skip


def keras_nets():
    from keras import layers

    def conv(channels, window):
        return layers.Conv2D(channels, window, padding="same")

    return [
        [layers.Activation("elu"), conv(12, 3), layers.Activation("elu"), conv(12, 1), layers.Activation("elu"),
         conv(2, 3)] for _ in range(2)
    ]  # fmt: skip


def made_by(name):
    """A flow of two blocks that begin with an activation, how samples become tensors, and the way back."""
    adapter, _, tensor, host = framework(name)
    first, second = torch_nets() if name == "torch" else keras_nets()
    last = name == "keras"
    blocks = [adapter.InvertibleResidual(net) for net in (first, second)]
    shape = (SIDE, SIDE, 2) if last else (2, SIDE, SIDE)
    flow = adapter.Flow([adapter.ActNorm(2, spread=3.0), *blocks], shape)

    def given(x):
        return tensor(np.moveaxis(x, 1, -1) if last else x)

    flow.fill_caps()
    if not last:
        flow.eval()
    return flow, given, host


@pytest.fixture(params=["torch", "keras"])
def made(request):
    return made_by(request.param)


def test_scores_come_from_mean_jacobians_at_the_first_samples(made):
    flow, given, host = made
    flow.initialize(given(images(40)))
    x = given(images(5, seed=1))
    result = flow.log_prob(x, errors=True)
    assert result.method == "mean-jacobian"
    exact = host(flow.log_prob(x, method="exact"))
    error = np.abs(host(result.value) - exact)
    assert np.all(error <= 5 * host(result.std_error) + host(result.bias_bound))
    exported = flow.to_core()
    np.testing.assert_allclose(host(exported.log_prob(x).value), host(result.value), rtol=1e-5)
    z = given(images(40)[:16])
    for layer in exported.layers:
        if hasattr(layer, "branch"):
            np.testing.assert_allclose(host(layer.branch.reference), host(z), rtol=1e-5, atol=1e-5)
        z = layer(z)


def test_the_reference_follows_the_weights(made):
    flow, given, host = made
    flow.initialize(given(images(40)))
    x = given(images(3, seed=1))
    before = flow.to_core().layers[2].branch.reference
    if hasattr(flow, "trainable_variables"):
        kernel = next(v for v in flow.trainable_variables if len(v.shape) == 4)
        kernel.assign(-kernel)
    else:
        next(p for p in flow.parameters() if p.ndim == 4 and p.shape[-1] == 3).data.neg_()
    flow.log_prob(x)
    after = flow.to_core().layers[2].branch.reference
    assert np.max(np.abs(host(after) - host(before))) > 0.1
    assert flow.to_core().layers[2].branch is flow.to_core().layers[2].branch  # nothing is made twice


def test_it_is_taken_whatever_was_asked_before(made):
    flow, given, host = made
    block = flow._blocks()[1]
    assert block.lipschitz <= 0.9
    with pytest.raises(NonFiniteError):
        flow.initialize(given(np.full_like(images(3), np.nan)))
    flow.initialize(given(images(40)))
    assert flow.lipschitz <= 0.9
    x = given(images(3, seed=1))
    first = flow.log_prob(x, errors=True)
    assert first.method == "mean-jacobian"
    norm = flow._flow_layers()[0]
    for scale in norm.trainable_variables if hasattr(norm, "trainable_variables") else norm.parameters():
        (scale.assign if hasattr(scale, "assign") else scale.data.copy_)(1.5 * scale + 0.2)
    after = flow.log_prob(x)
    for layer in flow._blocks():
        layer._kept = layer._reference = None
    flow._referred = None
    np.testing.assert_allclose(host(after), host(flow.log_prob(x)), rtol=1e-6)
    block = flow.to_core().layers[2]
    assert block.branch.reference is not None


def test_a_block_of_two_flows_takes_what_it_sees_in_each(made):
    flow, given, host = made
    other = type(flow)(flow._flow_layers()[1:], flow.event_shape)
    x = given(images(3, seed=1))
    flow.initialize(given(images(40)))
    other.set_reference(given(images(16)))
    if hasattr(other, "eval"):
        other.eval()
    before = host(flow.log_prob(x))
    assert np.all(np.isfinite(host(other.log_prob(x))))
    np.testing.assert_array_equal(host(flow.log_prob(x)), before)


def test_a_transformation_leaves_nothing_behind():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    adapter = framework("torch")[0]
    flow = adapter.Flow([adapter.ActNorm(2), *map(adapter.InvertibleResidual, torch_nets())], (2, SIDE, SIDE)).eval()
    flow.initialize(torch.tensor(images(40)))
    x = torch.tensor(images(3, seed=1))
    torch.func.grad(lambda y: flow.log_prob(y).sum())(x)
    assert copy.deepcopy(flow).log_prob(x, errors=True).method == "mean-jacobian"
    assert pickle.loads(pickle.dumps(flow)).log_prob(x, errors=True).method == "mean-jacobian"


def test_samples_of_ones_own(made):
    flow, given, host = made
    flow.initialize(given(images(40)))
    flow.log_prob(given(images(2)))
    flow.set_reference(given(images(3, seed=5)))
    block = flow.to_core().layers[1]
    assert len(block.branch.reference) == 3
    with pytest.raises(ShapeError, match="the reference is samples"):
        flow.set_reference(given(images(3)[:0]))
    with pytest.raises(NonFiniteError, match="the reference"):
        flow.set_reference(given(np.full_like(images(3), np.nan)))
    assert host(flow.log_prob(given(images(2)))).shape == (2,)


def test_a_state_dict_keeps_it():
    """A flow that is read scores as the one that was written, bit for bit, whatever it saw before."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    flow, given, _ = made_by("torch")
    fresh, seen = made_by("torch")[0], made_by("torch")[0].initialize(given(images(20, seed=7)))
    shapes = {name: value.shape for name, value in flow.state_dict().items()}
    flow.initialize(given(images(40)))
    state, x = flow.state_dict(), given(images(3, seed=1))
    assert {name: value.shape for name, value in state.items()} == shapes
    assert torch.equal(state["reference"], given(images(40))[:16])
    for other in (fresh, seen):
        other.load_state_dict(state)
        found = other.log_prob(x, errors=True)
        assert found.method == "mean-jacobian"
        assert torch.equal(found.value, flow.log_prob(x))
    part = torch.nn.Sequential(made_by("torch")[0])
    part.load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert torch.equal(part[0].log_prob(x), flow.log_prob(x))
    older = {name: value for name, value in state.items() if name != "reference"}
    seen.load_state_dict(older)
    assert torch.equal(seen.log_prob(x), flow.log_prob(x))
    seen.load_state_dict(made_by("torch")[0].state_dict())  # of a flow that has seen nothing
    assert seen.log_prob(x, errors=True).method == "arnoldi"


def test_state_dicts_as_other_tools_take_them():
    """By those of distributed checkpoints, in bfloat16, and of a layer that has lost its cap."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    flow, given, _ = made_by("torch")
    flow.initialize(given(images(40)))
    outer = torch.nn.Sequential(made_by("torch")[0])
    set_model_state_dict(outer, {f"0.{name}": value for name, value in flow.state_dict().items()})
    found = get_model_state_dict(outer)
    assert torch.equal(found["0.reference"], flow.reference)
    fresh = made_by("torch")[0]
    fresh.load_state_dict({name: value.bfloat16() for name, value in flow.state_dict().items()})
    torch.testing.assert_close(fresh.reference, flow.reference, rtol=1e-2, atol=1e-2)
    other = {**flow.state_dict(), "reference": torch.zeros(16, 2, 5, 5)}
    with pytest.raises(RuntimeError, match="size mismatch for reference"):
        fresh.load_state_dict(other)
    torch.nn.utils.parametrize.remove_parametrizations(flow.layers[1].net[1], "weight")
    assert torch.equal(flow.state_dict()["reference"], given(images(40))[:16])


@pytest.mark.parametrize("name", ["flow.keras", "flow.weights.h5"])
def test_files_of_keras_keep_it(name, tmp_path):
    flow, given, host = made_by("keras")
    import keras

    flow.initialize(given(images(40)))
    x = given(images(3, seed=1))
    if name == "flow.keras":
        flow.save(tmp_path / name)
        again = keras.saving.load_model(tmp_path / name)
    else:
        flow.save_weights(tmp_path / name)
        again = made_by("keras")[0]
        again.load_weights(tmp_path / name)
    found = again.log_prob(x, errors=True)
    assert found.method == "mean-jacobian"
    np.testing.assert_array_equal(host(found.value), host(flow.log_prob(x)))


@pytest.mark.parametrize("name", ["torch", "keras"])
def test_flows_under_a_condition_have_none(name):
    adapter, net, tensor, _ = framework(name)
    flow = adapter.Flow([adapter.InvertibleResidual(net(3), context_features=2)], (3,))
    with pytest.raises(InvalidArgumentError, match="has no reference"):
        flow.set_reference(tensor(np.zeros((4, 3), dtype="float32")))
