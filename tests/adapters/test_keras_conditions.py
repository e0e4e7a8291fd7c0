"""Conditions of Keras flows: those of the core, exported with their map, in Keras' own files, and labels."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "tensorflow":
    pytest.skip(f"Keras runs on {keras.backend.backend()} in this process", allow_module_level=True)

from keras_models import numbers  # noqa: E402

import iresnet_core as core  # noqa: E402
from iresnet_core.adapters.keras import ActNorm, Condition, Flow, InvertibleResidual  # noqa: E402
from iresnet_core.errors import DtypeError, InvalidArgumentError, NonFiniteError, ShapeError  # noqa: E402

Dense = keras.layers.Dense


def conditional(condition, entering=4):
    keras.utils.set_random_seed(0)
    own = Condition([Dense(5, activation="relu"), Dense(8)], features=entering)
    layers = [
        ActNorm(context_features=entering),
        InvertibleResidual([Dense(8, activation="tanh"), Dense(2)], context_features=entering),
        InvertibleResidual([Dense(8, activation="tanh"), Dense(2)], condition=own),
        ActNorm(),
    ]
    flow = Flow(layers, (2,), condition=condition)
    kernel = layers[0].context_kernel
    kernel.assign(np.random.default_rng(0).normal(0, 0.2, kernel.shape))
    return flow


def data(n=32):
    rng = np.random.default_rng(1)
    return (3 * rng.standard_normal((n, 2)) + 1).astype("float32"), rng.standard_normal((n, 3)).astype("float32")


def test_a_trained_flow_goes_to_the_core_with_its_conditions(tmp_path):
    x, context = data()
    flow = conditional(Condition([Dense(6, activation="elu"), Dense(4)], mean=[0, 1, 2], std=[1, 2, 3]))
    flow.compile(optimizer=keras.optimizers.Adam(2e-2))
    losses = flow.fit((x, context), batch_size=16, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    expected = numbers(flow.log_prob(x, context, method="exact"))
    flow.save(tmp_path / "flow")
    found = core.load(tmp_path / "flow").log_prob(x, context, method="exact").value
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    flow.save(tmp_path / "flow.keras")
    again = keras.saving.load_model(tmp_path / "flow.keras")
    np.testing.assert_allclose(numbers(again.log_prob(x, context, method="exact")), expected, rtol=1e-6, atol=1e-6)
    for same in (context[:1], context[0]):
        one = numbers(flow.log_prob(x, same, method="exact"))
        np.testing.assert_allclose(one[0], expected[0], rtol=1e-5, atol=1e-5)
        assert tuple(flow.sample(3, same).shape) == (3, 2)


def test_labels_become_one_hot(tmp_path):
    x, _ = data()
    labels = np.arange(32) % 3
    flow = conditional(Condition([Dense(4)], classes=3))
    flow.compile(optimizer=keras.optimizers.Adam(2e-2), run_eagerly=True)
    assert np.isfinite(flow.fit((x, labels), batch_size=16, epochs=1, verbose=0).history["loss"]).all()
    nats = numbers(flow.log_prob(x, labels, method="exact"))
    np.testing.assert_allclose(flow.predict((x, labels), verbose=0), nats, rtol=1e-4, atol=1e-4)
    flow.save(tmp_path / "flow")
    found = core.load(tmp_path / "flow").log_prob(x, labels, method="exact").value
    np.testing.assert_allclose(found, nats, rtol=1e-5, atol=1e-5)
    for call in (flow.log_prob, flow.encode, flow.initialize):
        with pytest.raises(InvalidArgumentError, match=r"label 3.*one-hot: 0, 1, 2"):
            call(x, labels + 1)
    for call in (flow.fit, flow.evaluate, flow.predict):
        with pytest.raises(InvalidArgumentError, match=r"label 3.*one-hot: 0, 1, 2"):
            call((x, labels + 1), verbose=0)


def test_bad_conditions_are_refused():
    x, context = data()
    flow = conditional(Condition([Dense(4)], features=3))
    nan = context.copy()
    nan[4, 1] = np.nan
    for wrong, error, match in (
        (None, InvalidArgumentError, "conditional: pass context="),
        (nan, NonFiniteError, "sample 4"),
        (np.ones((32, 3), int), DtypeError, "one-hot"),
        (context[:7], ShapeError, "7 rows, but there are 32 samples"),
        (context[:, :2], ShapeError, "batch, 3"),
    ):
        for call in (flow.log_prob, flow.encode, flow.inverse, flow.training_loss):
            with pytest.raises(error, match=match):
                call(x, wrong)
    with pytest.raises(InvalidArgumentError, match="features="):
        Condition([Dense(4)])
