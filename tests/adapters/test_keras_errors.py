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
        (Dense(2, activation="softmax"), "softmax"),
        (keras.layers.Activation("exponential"), "exponential"),
    ):
        with pytest.raises(UnknownLipschitzError, match=name):
            InvertibleResidual([Dense(2), layer])
    with pytest.raises(UnknownLipschitzError, match="UnitNormalization"):
        InvertibleResidual(keras.Sequential([keras.Sequential([keras.layers.UnitNormalization()]), Dense(2)]))
    with pytest.raises(InvalidArgumentError, match="slope must lie between -1 and 1"):
        InvertibleResidual([keras.layers.LeakyReLU(1.5), Dense(2)])
    with pytest.raises(UnknownLipschitzError, match="ReLU"):
        InvertibleResidual([keras.layers.ReLU(max_value=6.0), Dense(2)])


class TwiceSequential(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs)


class TwiceDense(Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


class TwiceConv2D(Conv2D):
    def call(self, inputs):
        return 2 * super().call(inputs)


def test_subclasses_with_a_call_of_their_own_are_unknown():
    for net, name in (
        (TwiceSequential([Dense(2)]), "TwiceSequential"),
        ([Dense(2), keras.Sequential([TwiceSequential([Dense(2)])])], "TwiceSequential"),
        ([TwiceDense(2)], "TwiceDense"),
        ([Dense(2), [TwiceConv2D(2, 3)]], "TwiceConv2D"),
    ):
        with pytest.raises(UnknownLipschitzError, match=name):
            InvertibleResidual(net)


def test_what_a_block_would_not_do_is_refused():
    with pytest.raises(InvalidArgumentError, match="activity_regularizer"):
        InvertibleResidual([Dense(2, activity_regularizer="l2")])
    with pytest.raises(InvalidArgumentError, match=r"quantised \(int8\)"):
        InvertibleResidual([Dense(2, dtype="int8_from_float32")])
    flow = Flow([InvertibleResidual([Dense(2)])], (2,))
    flow.flow_layers[0].net[0].quantize("int8")
    for call in (lambda: flow.log_prob(data(2)), lambda: flow.lipschitz, lambda: flow.predict(data(2), verbose=0)):
        with pytest.raises(InvalidArgumentError, match=r"quantised \(int8\)"):
            call()


@pytest.mark.parametrize("layer", [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
def test_a_declared_branch_is_one_function_in_training(layer):
    net = keras.Sequential([keras.Input((2,)), layer, Dense(2, kernel_initializer="orthogonal")])
    block = InvertibleResidual(net, lipschitz=2.0)
    x = data(2)
    block(x)
    with pytest.raises(InvalidArgumentError, match=f"{type(layer).__name__}.* not one function"):
        block(x, training=True)
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.trainable = False
        np.testing.assert_array_equal(block(x, training=True), block(x))


def test_adapters_of_low_rank_and_regularizers():
    """A kernel that Keras makes of several variables is certified as it is; regularizers of kernels are in the loss."""
    net = [Dense(8, activation="elu", kernel_regularizer=keras.regularizers.L2(0.5)), Dense(2)]
    flow = Flow([InvertibleResidual(net)], (2,))
    x, kernel = data(2), net[0].kernel
    assert sum(map(float, flow.losses)) == pytest.approx(0.5 * float(tf.reduce_sum(kernel**2)), rel=1e-5)
    before = numbers(flow.log_prob(x))
    net[0].enable_lora(2)
    np.testing.assert_array_equal(flow.log_prob(x), before)
    net[0].lora_kernel_b.assign(np.ones((2, 8)))
    after = numbers(flow.log_prob(x))
    assert np.abs(after - before).max() > 0.01
    assert flow.lipschitz <= 0.9
    merged = Flow([InvertibleResidual([Dense(8, activation="elu"), Dense(2)])], (2,))
    merged.flow_layers[0].net[0].set_weights([numbers(net[0].kernel), numbers(net[0].bias)])
    merged.flow_layers[0].net[1].set_weights(net[1].get_weights())
    np.testing.assert_allclose(after, merged.log_prob(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="enable_lora"):
        flow.fill_caps()


def test_branches_that_make_no_block():
    with pytest.raises(ShapeError, match="keeps the shape"):
        Flow([InvertibleResidual([Conv2D(2, 3, strides=2)])], event_shape=(8, 8, 2))
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
        Flow([mlp(2)], event_shape="2")
    with pytest.raises(InvalidArgumentError, match="no layer of a flow"):
        Flow([Dense(2)], event_shape=(2,))
    norm = ActNorm()
    with pytest.raises(InvalidArgumentError, match="twice"):
        Flow([norm, norm], event_shape=(2,))
    with pytest.raises(InvalidArgumentError, match="not built"):
        _ = mlp(2).lipschitz


def test_a_flow_has_no_targets():
    flow = Flow([ActNorm()], event_shape=(2,))
    for name, value in (("loss", "mse"), ("loss_weights", [1.0])):
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
