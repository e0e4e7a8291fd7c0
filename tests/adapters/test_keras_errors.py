"""Keras layers and flows refuse what they cannot be right about, and say what they saw."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "tensorflow":
    pytest.skip(f"Keras runs on {keras.backend.backend()} in this process", allow_module_level=True)

from keras_models import data, mlp, numbers  # noqa: E402

from iresnet_core.adapters.keras import (  # noqa: E402
    ActNorm,
    Flow,
    InvertibleResidual,
)
from iresnet_core.errors import (  # noqa: E402
    InvalidArgumentError,
    NonFiniteError,
    NotContractiveError,
    ShapeError,
    UnknownLipschitzError,
)

Dense, Conv2D = keras.layers.Dense, keras.layers.Conv2D


def test_unknown_layers_are_named():
    for layer, name in (
        (keras.layers.LayerNormalization(), "LayerNormalization"),
        (keras.layers.BatchNormalization(), "BatchNormalization"),
        (keras.layers.MultiHeadAttention(2, 2), "MultiHeadAttention"),
        (Dense(2, activation="gelu"), "gelu"),
        (keras.layers.Activation("gelu"), "gelu"),
    ):
        with pytest.raises(UnknownLipschitzError, match=name):
            InvertibleResidual([Dense(2), layer])
    with pytest.raises(UnknownLipschitzError, match="LeakyReLU"):
        InvertibleResidual(keras.Sequential([keras.Sequential([keras.layers.LeakyReLU()]), Dense(2)]))
    with pytest.raises(UnknownLipschitzError, match="ReLU"):
        InvertibleResidual([keras.layers.ReLU(max_value=6.0), Dense(2)])


def test_branches_that_make_no_block():
    with pytest.raises(ShapeError, match="strides"):
        InvertibleResidual([Conv2D(2, 3, strides=2)])
    with pytest.raises(InvalidArgumentError, match="channels_first"):
        InvertibleResidual([Conv2D(2, 3, data_format="channels_first")])
    with pytest.raises(ShapeError, match="keeps the shape"):
        Flow([InvertibleResidual([Dense(3)])], event_shape=(2,))
    with pytest.raises(ShapeError, match="3 axes"):
        Flow([InvertibleResidual([Conv2D(2, 3, padding="same")])], event_shape=(2,))
    with pytest.raises(NotContractiveError):
        InvertibleResidual([Dense(2)], coeff=1.0)
    with pytest.raises(InvalidArgumentError, match="at least one"):
        InvertibleResidual([keras.layers.ELU()])
    dense = Dense(2)
    with pytest.raises(InvalidArgumentError, match=f"{dense.name}.*twice"):
        InvertibleResidual([dense, dense])
    with pytest.raises(InvalidArgumentError, match="at least one"):
        Flow([], event_shape=(2,))
    with pytest.raises(InvalidArgumentError, match="event_shape must be a sequence"):
        Flow([mlp(2)], event_shape=2)
    with pytest.raises(InvalidArgumentError, match="no layer of a flow"):
        Flow([Dense(2)], event_shape=(2,))
    norm = ActNorm()
    with pytest.raises(InvalidArgumentError, match="twice"):
        Flow([norm, norm], event_shape=(2,))
    with pytest.raises(InvalidArgumentError, match="not built"):
        _ = mlp(2).lipschitz


def test_a_flow_has_no_targets():
    flow = Flow([ActNorm()], event_shape=(2,))
    for name, value in (("loss", "mse"), ("metrics", ["mae"]), ("weighted_metrics", ["mae"]), ("loss_weights", [1.0])):
        with pytest.raises(InvalidArgumentError, match=f"takes no {name}, got"):
            flow.compile(optimizer="adam", **{name: value})


def test_a_compiled_model_is_loaded_as_such(tmp_path):
    flow = Flow([ActNorm(), mlp(2)], event_shape=(2,))
    flow.compile(optimizer=keras.optimizers.Adam(3e-3), run_eagerly=True)
    flow.fit(data(2, 20), batch_size=10, verbose=0)
    flow.save(tmp_path / "flow.keras")
    loaded = keras.saving.load_model(tmp_path / "flow.keras")
    assert loaded.run_eagerly
    assert float(loaded.optimizer.learning_rate) == pytest.approx(3e-3)
    assert int(loaded.optimizer.iterations) == 2
    for a, b in zip(loaded.optimizer.variables, flow.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numbers(a), numbers(b))
    loaded.fit(data(2, 20), batch_size=10, verbose=0)
    assert int(loaded.optimizer.iterations) == 4


def test_arrays_with_nan_are_refused_in_validation_too():
    flow = Flow([ActNorm()], event_shape=(2,)).initialize(data(2))
    flow.compile(optimizer="adam")
    bad = np.full((4, 2), np.nan, "float32")
    for call, name in (
        (lambda: flow.fit(data(2), validation_data=(bad,), verbose=0), "validation data"),
        (lambda: flow.evaluate(bad, verbose=0), "the data"),
        (lambda: flow.predict(bad, verbose=0), "the data"),
    ):
        with pytest.raises(NonFiniteError, match=f"{name} of shape .* 8 non-finite"):
            call()


def test_data_that_make_no_sense():
    flow = Flow([ActNorm(), mlp(2)], event_shape=(2,))
    flow.compile(optimizer="adam")
    with pytest.raises(InvalidArgumentError, match="using it up"):
        flow.fit((batch for batch in [data(2)]), verbose=0)
    with pytest.raises(NonFiniteError):
        flow.fit(np.full((4, 2), np.nan, "float32"), verbose=0)
    flow.initialize(data(2))
    weights = flow.get_weights()
    one = np.where(np.arange(200).reshape(100, 2) == 107, np.nan, data(2))  # in one sample, and the step is compiled
    for x in (one, tf.constant(one)):
        with pytest.raises(NonFiniteError, match="1 non-finite"):
            flow.fit(x, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(weights, flow.get_weights(), strict=True))
    with pytest.raises(NonFiniteError):
        flow.log_prob([[np.nan, 1.0]])
    with pytest.raises(ShapeError):
        flow.log_prob(np.zeros((3, 4)))
    block = InvertibleResidual([Conv2D(1, 3, padding="same")])
    block(np.zeros((1, 4, 4, 1)))
    with pytest.raises(ShapeError, match="another size"):
        block(np.zeros((1, 6, 6, 1)))
