"""What holds for Keras layers on every backend of Keras: checked here on TensorFlow, elsewhere in other processes."""

import keras
import numpy as np
import pytest

from iresnet_core.adapters.keras import ActNorm, Classifier, Flow, InvertibleResidual
from iresnet_core.errors import InvalidArgumentError

__all__ = [
    "a_program_certifies_the_weights_it_runs_with",
    "a_program_keeps_the_certificate_of_its_weights",
    "a_saved_model_gives_the_same",
    "an_actnorm_knows_by_its_variable_alone",
]

Dense, Conv2D = keras.layers.Dense, keras.layers.Conv2D
numbers = keras.ops.convert_to_numpy


def vectors(n=200, d=2):
    return (np.random.default_rng(0).standard_normal((n, d)) * np.arange(1, d + 1) + 3).astype("float32")


def a_flow():
    return Flow([ActNorm(), InvertibleResidual([Dense(8, activation="elu"), Dense(2)])], event_shape=(2,))


def a_program_certifies_the_weights_it_runs_with(folder):
    """In models of other layers, where nothing certifies before: after whatever changed the weights."""

    def close(model, x):
        found = model.predict(x, verbose=0)
        np.testing.assert_allclose(found, numbers(model(x)), rtol=1e-5, atol=1e-5)
        return found

    x = vectors()
    inputs = keras.Input((2,))
    hidden = InvertibleResidual([Dense(8, activation="elu"), Dense(2)], coeff=0.95)(inputs)
    hidden = InvertibleResidual([Dense(8, activation="elu"), Dense(2)], coeff=0.95)(hidden)
    model = keras.Model(inputs, Dense(1)(hidden))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.predict(x, verbose=0)  # compiled before the weights change
    validation = model.fit(x, x[:, :1] ** 2, epochs=3, verbose=0, validation_data=(x, x[:, :1] ** 2)).history[
        "val_loss"
    ]
    expected = float(np.mean((numbers(model(x)) - x[:, :1] ** 2) ** 2))
    assert abs(validation[-1] / expected - 1) < 1e-4
    assert abs(model.evaluate(x, x[:, :1] ** 2, verbose=0) / expected - 1) < 1e-4
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5), "mse")
    model.fit(x, x[:, :1] ** 2, verbose=0)  # at its end the averages replace the weights
    close(model, x)
    model.compile("sgd", "mse")  # Keras cannot save the averages on JAX, whose memory they share with the weights
    trained = close(model, x)
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), trained, rtol=1e-5, atol=1e-5)
    cloned = keras.models.clone_model(model)
    cloned.predict(x, verbose=0)
    cloned.set_weights(model.get_weights())
    np.testing.assert_allclose(cloned.predict(x, verbose=0), trained, rtol=1e-5, atol=1e-5)
    model.set_weights([5 * w if w.ndim == 2 else w for w in model.get_weights()])
    close(model, x)
    inputs = keras.Input((28, 28, 1))
    net = [Conv2D(4, 3, padding="same", activation="elu"), Conv2D(1, 3, padding="same")]
    images = keras.Model(inputs, InvertibleResidual(net)(inputs))
    x = np.random.default_rng(0).standard_normal((4, 28, 28, 1)).astype("float32")
    close(images, x)
    images.set_weights([5 * w for w in images.get_weights()])
    close(images, x)


def a_program_keeps_the_certificate_of_its_weights(folder):
    """It uses what it keeps, only for the weights of which it is, and keeps it where no list of weights has it."""
    if keras.backend.backend() == "torch":
        return  # it compiles no evaluation
    x = vectors(20)
    block = InvertibleResidual([Dense(8), Dense(2)])
    model = keras.Sequential([keras.Input((2,)), block])
    model.set_weights([5 * w for w in model.get_weights()])
    expected = numbers(model(x))
    kernel, kept = block.net[0].kernel, block.capped[0].variables[-1]
    for _ in range(2):
        np.testing.assert_allclose(model.predict(x, batch_size=10, verbose=0), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(numbers(kept)[1:17], numbers(kernel).ravel())
    kept.assign([2 * float(kept[0]), *numbers(kept)[1:]])
    assert np.abs(model.predict(x, verbose=0) - expected).max() > 1e-2
    model.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_allclose(model.predict(x, verbose=0), numbers(model(x)), rtol=1e-5, atol=1e-5)
    assert len(model.weights) == 6
    assert model.count_params() == 2 * 8 + 8 + 8 * 2 + 2 + 2 * 2 * 2
    assert len(model.non_trainable_variables) == 4  # which programs of JAX take and give back


def a_saved_model_gives_the_same(folder):
    """Exported before anything was predicted, for batches of any size, of samples and of pairs."""

    def exported(model, path):
        if keras.backend.backend() != "torch":
            import tensorflow as tf

            model.export(path, verbose=False)
            loaded = tf.saved_model.load(str(path))
            return lambda x: loaded.serve(x)  # the function alone would lose its variables
        import torch

        with pytest.raises(InvalidArgumentError, match="format='torch'"):
            model.export(path, verbose=False)
        model.export(f"{path}.pt2", format="torch", verbose=False)
        program = torch.export.load(f"{path}.pt2").module()
        return lambda x: program(keras.tree.map_structure(torch.tensor, x))

    rng = np.random.default_rng(0)
    images, context = rng.standard_normal((6, 4, 4, 1)).astype("float32"), rng.standard_normal((9, 3)).astype("float32")
    net = [Dense(8, activation="elu"), Dense(2)]
    conditional = Flow([ActNorm(), InvertibleResidual(net, context_features=3)], (2,))
    classifier = Classifier((4, 4, 1), 2, padding=1, widths=(4,), blocks=(1,))
    for index, (model, x) in enumerate(
        [(a_flow(), vectors(7)), (classifier, images), (conditional, [vectors(9), context])]
    ):
        model.initialize(x)
        found = exported(model, folder / str(index))(x)
        np.testing.assert_allclose(numbers(found), model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)


def an_actnorm_knows_by_its_variable_alone(folder):
    """Parameters that came by any way are taken, in programs too, and never overwritten by data."""
    x = vectors()
    source = a_flow().initialize(x)
    expected = source.predict(x, verbose=0)
    again = a_flow()
    before = again.predict(x, verbose=0)  # met in evaluation before any data: the identity
    assert not again.initialized
    np.testing.assert_allclose(before, numbers(Flow(again.flow_layers[1:], (2,)).log_prob(x)), rtol=1e-5, atol=1e-5)
    again.set_weights(source.get_weights())
    again.compile(keras.optimizers.SGD(0.0))
    ways = [again, keras.models.clone_model(source)]
    ways[1].set_weights(source.get_weights())
    ways.append(a_flow())
    source.save_weights(folder / "flow.weights.h5")
    ways[2].load_weights(folder / "flow.weights.h5")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        ways.append(a_flow())
        path = tf.train.Checkpoint(model=source).save(str(folder / "checkpoint"))
        tf.train.Checkpoint(model=ways[-1]).restore(path)
    for flow in ways:
        assert flow.initialized
        np.testing.assert_allclose(flow.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
    again.fit(5 * x + 3, batch_size=200, epochs=1, verbose=0)
    np.testing.assert_array_equal(numbers(again.flow_layers[0].bias), numbers(source.flow_layers[0].bias))
    fresh = a_flow()
    fresh.compile(keras.optimizers.SGD(0.0))
    fresh.fit(x, batch_size=200, epochs=1, verbose=0, validation_data=(x,))
    norm = fresh.flow_layers[0]
    np.testing.assert_allclose(numbers(norm.bias) * numbers(norm.unit), -x.mean(axis=0), rtol=1e-4)
