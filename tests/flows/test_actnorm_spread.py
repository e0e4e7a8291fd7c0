"""The standard deviation that data give the channels of an ActNorm: in the core, in files, and in both frameworks."""

import numpy as np
import pytest
from flow_examples import array, host
from hypothesis import given
from hypothesis import strategies as st

import iresnet_core
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.inverted import Inverted
from iresnet_core.operators.dense import Dense


def images(n=40, offset=3.0, scale=0.2):
    return offset + scale * np.random.default_rng(0).standard_normal((n, 3, 4, 4))


@given(spread=st.floats(0.1, 1e4), axis=st.sampled_from([1, -1]), offset=st.sampled_from([0.0, 100.0]))
def test_every_channel_gets_the_spread(backend, spread, axis, offset):
    x = images(offset=offset) if axis == 1 else np.moveaxis(images(offset=offset), 1, -1)
    layer = ActNorm.initialize(array(backend, x), axis=axis, spread=spread)
    z = np.moveaxis(host(layer(array(backend, x))), axis, 1)
    np.testing.assert_allclose(np.std(z, axis=(0, 2, 3)), spread, rtol=1e-9)
    np.testing.assert_allclose(np.mean(z, axis=(0, 2, 3)), 0, atol=1e-9 * spread)


def test_a_flow_of_several_spreads_is_initialized_and_cast(backend):
    x = array(backend, images())
    flow = Flow([ActNorm(spread=5.0), ActNorm()], (3, 4, 4)).astype(backend.xp.float64)
    assert "spread=5" in repr(flow.layers[0])
    wide, unit = flow.initialize(x).layers
    assert np.std(host(wide(x))) == pytest.approx(5.0)
    assert np.std(host(unit(wide(x)))) == pytest.approx(1.0)
    inverted = Flow([Inverted(ActNorm(spread=5.0))], (3, 4, 4)).initialize(x)
    assert np.std(host(inverted.forward(x).value)) == pytest.approx(5.0)


def test_a_channel_without_a_width_keeps_its_scale_through_many_layers(backend):
    x = np.stack([np.ones(40), np.random.default_rng(0).standard_normal(40)], axis=1)
    flow = Flow([*[ActNorm(spread=20.0)] * 8, ActNorm()], (2,)).initialize(array(backend, x))
    z = host(flow.forward(array(backend, x + np.array([1e-3, 0.0]))).value)
    np.testing.assert_allclose(z[:, 0], 1e-3, rtol=1e-6)
    assert np.std(z[:, 1]) == pytest.approx(1.0)


def test_a_conditional_layer_keeps_its_spread(backend, tmp_path):
    weight = array(backend, np.zeros((6, 2)))
    layer = ActNorm(spread=5.0, condition=Dense(weight)).astype(backend.xp.float64)
    assert layer.spread == 5.0
    iresnet_core.save(Flow([layer], (3, 4, 4)), tmp_path / "flow.safetensors")
    assert iresnet_core.load(tmp_path / "flow.safetensors").layers[0].spread == 5.0
    x, context = array(backend, images()), array(backend, np.ones((40, 2)))
    flow = Flow([layer], (3, 4, 4)).initialize(x, context=context)
    assert np.std(host(flow.forward(x, context=context).value)) == pytest.approx(5.0)


def test_a_spread_beyond_the_dtype_is_refused(backend):
    with pytest.raises(InvalidArgumentError, match="beyond the range"):
        ActNorm.initialize(array(backend, images(), "float32"), spread=1e300)


@pytest.mark.parametrize("spread", [0.0, -1.0, float("nan"), float("inf"), "wide", True, 10**400])
def test_a_spread_that_is_not_positive_is_refused(spread):
    for attempt in (lambda: ActNorm(spread=spread), lambda: ActNorm.initialize(images(), spread=spread)):
        with pytest.raises(InvalidArgumentError, match="spread must be a"):
            attempt()


def test_a_spread_beside_parameters_is_refused():
    with pytest.raises(InvalidArgumentError, match="has it in log_scale"):
        ActNorm(np.zeros(2), np.zeros(2), spread=2.0)


def test_a_file_keeps_the_spread_of_a_layer_that_no_data_have_set(tmp_path):
    for spread in (1.0, 5.0):
        iresnet_core.save(Flow([ActNorm(spread=spread)], (2,)), tmp_path / "flow.safetensors")
        (layer,) = iresnet_core.load(tmp_path / "flow.safetensors").layers
        assert layer.log_scale is None
        assert layer.spread == spread
        assert (b"spread" in (tmp_path / "flow.safetensors").read_bytes()) == (spread != 1)  # as older files have it


def test_a_layer_of_pytorch_has_a_spread():
    torch = pytest.importorskip("torch")
    from iresnet_core.adapters.torch import ActNorm as Layer
    from iresnet_core.adapters.torch import Flow as Model
    from iresnet_core.adapters.torch import Inverted as Backward

    x = torch.from_numpy(images()).to(torch.float32)
    layer = Layer(3, spread=5.0).initialize(x)
    assert float(layer(x).detach().std(correction=0)) == pytest.approx(5.0, rel=1e-5)
    assert "spread=5" in repr(layer)
    backward = Model([Backward(Layer(3, spread=5.0))], (3, 4, 4)).initialize(x)
    assert float(backward(x)[0].detach().std(correction=0)) == pytest.approx(5.0, rel=1e-5)
    del layer.__dict__["spread"]  # as in a module that was pickled before there was one
    assert layer.spread == 1
    assert "spread" not in repr(layer)
    with pytest.raises(InvalidArgumentError, match="spread"):
        Layer(3, spread=0.0)


def test_a_layer_of_keras_has_a_spread_and_keeps_it():
    keras = pytest.importorskip("keras")
    from iresnet_core.adapters.keras import ActNorm as Layer

    x = np.moveaxis(images(), 1, -1).astype("float32")
    layer = keras.models.clone_model(keras.Sequential([keras.Input((4, 4, 3)), Layer(spread=5.0)])).layers[-1]
    layer.initialize(x)
    assert np.std(np.asarray(layer(x))) == pytest.approx(5.0, rel=1e-5)
    with pytest.raises(InvalidArgumentError, match="spread"):
        Layer(spread=-1.0)
