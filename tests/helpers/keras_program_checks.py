"""What holds for compiled programs of Keras models of every kind, on TensorFlow and JAX: run by test_keras_programs."""

import keras
import numpy as np

from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

__all__ = ["CHANGES", "MODELS", "POLICIES", "agreement", "agreement_after", "agreement_in", "agreement_with_options"]

Dense, Conv2D = keras.layers.Dense, keras.layers.Conv2D
numbers = keras.ops.convert_to_numpy


def block(width=8, coeff=0.95, d=2):
    return InvertibleResidual([Dense(width, activation="elu"), Dense(d)], coeff)


def functional():
    inputs = keras.Input((2,))
    return keras.Model(inputs, Dense(1)(block()(block()(inputs))))


def sequential():
    return keras.Sequential([keras.Input((2,)), block(), block(), Dense(1)])


@keras.saving.register_keras_serializable(package="keras_program_checks")
class Subclassed(keras.Model):
    """Layers as attributes; of those in lists TensorFlow's checkpoints have nothing, whoever wrote the layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second, self.last = block(), block(), Dense(1)

    def call(self, x, training=False):
        return self.last(self.second(self.first(x, training=training), training=training))


def subclassed():
    model = Subclassed()
    model(vectors())
    return model


def around_a_flow():
    """A model of which a flow is a part, by its latents' density."""
    inputs = keras.Input((2,))
    flow = Flow([ActNorm(), block()], event_shape=(2,)).initialize(vectors())
    return keras.Model(inputs, Dense(1)(keras.ops.expand_dims(flow(inputs), -1)))


def images():
    inputs = keras.Input((28, 28, 1))
    net = [Conv2D(4, 3, padding="same", activation="elu"), Conv2D(4, 1), Conv2D(1, 3, padding="same")]
    return keras.Model(inputs, Dense(1)(keras.layers.Flatten()(InvertibleResidual(net)(inputs))))


MODELS = {made.__name__: made for made in (functional, sequential, subclassed, around_a_flow, images)}


def vectors(n=40):
    return np.random.default_rng(0).standard_normal((n, 2)).astype("float32")


def samples(model):
    shape = model.inputs[0].shape if getattr(model, "inputs", None) else (None, 2)
    return vectors() if len(shape) == 2 else np.random.default_rng(0).standard_normal((8, *shape[1:])).astype("float32")


def enlarge(model, folder, factor=5.0):
    model.set_weights([factor * w if w.ndim > 1 else w for w in model.get_weights()])


def average(model, folder):
    """At the end of an epoch the averages replace the weights; what is validated is them."""
    x = samples(model)
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5), "mse")
    model.fit(x, x[..., :1].reshape(len(x), -1)[:, :1], epochs=2, verbose=0)
    model.compile("sgd", "mse")


def fit(model, folder):
    """The loss of the validation, whose program ran before, is that of the weights at its end."""
    x = samples(model)
    y = x.reshape(len(x), -1)[:, :1] ** 2
    model.compile(keras.optimizers.Adam(0.1), "mse")
    found = model.fit(x, y, epochs=3, verbose=0, validation_data=(x, y)).history["val_loss"][-1]
    expected = float(np.mean((numbers(model(x)) - y) ** 2))
    np.testing.assert_allclose([found, model.evaluate(x, y, verbose=0)], expected, rtol=1e-4)


def load_weights(model, folder):
    before = model.get_weights()
    enlarge(model, folder, 3.0)
    model.save_weights(folder / "model.weights.h5")
    model.set_weights(before)
    model.predict(samples(model), verbose=0)
    model.load_weights(folder / "model.weights.h5")


def assign(model, folder):
    for variable in model.trainable_variables:
        variable.assign(variable * 0.5)


def checkpoint(model, folder):
    """That of TensorFlow, of a model of which nothing is left out."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    before = model.get_weights()
    enlarge(model, folder, 3.0)
    path = tf.train.Checkpoint(model=model).save(str(folder / "checkpoint"))
    expected = model.get_weights()
    model.set_weights(before)
    model.predict(samples(model), verbose=0)
    tf.train.Checkpoint(model=model).restore(path)
    for found, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


CHANGES = {change.__name__: change for change in (enlarge, fit, average, load_weights, assign, checkpoint)}
# Of the dtype of the variables and that of what comes out.
POLICIES = {"float64": 1e-10, "mixed_bfloat16": 1e-2, "mixed_float16": 2e-3, "bfloat16": 2e-2, "float16": 4e-3}


def agreement(model, x=None, rtol=2e-5):
    """The program gives what the model gives eagerly, and what another one with the same weights gives."""
    x = samples(model) if x is None else x
    found, expected = (numbers(y).astype("float64") for y in (model.predict(x, verbose=0), model(x)))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * (1 + np.abs(expected).max()))
    return found


def agreement_after(kind, change, folder):
    """For a model whose program ran before its weights changed; what was saved and cloned agrees, too."""
    keras.utils.set_random_seed(0)
    model = MODELS[kind]()
    agreement(model)
    for name in CHANGES if change == "all" else (change,):
        CHANGES[name](model, folder)
        found = agreement(model)
    x = samples(model)
    model.save(folder / "model.keras")
    others = [keras.saving.load_model(folder / "model.keras")]
    if kind != "subclassed":
        others.append(keras.models.clone_model(model))
        others[-1].predict(x, verbose=0)
        others[-1].set_weights(model.get_weights())
    for other in others:
        np.testing.assert_allclose(agreement(other), found, rtol=2e-5, atol=2e-5)


def agreement_in(policy):
    """With the dtypes of a policy, after a training and other weights."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        model = sequential()
        flow = Flow([ActNorm(), block()], event_shape=(2,))
    finally:
        keras.config.set_dtype_policy(before)
    x = vectors()
    model.compile("sgd", "mse")
    flow.compile("sgd")
    model.fit(x, x[:, :1], verbose=0)
    flow.fit(x, verbose=0)
    for _ in range(2):
        agreement(model, rtol=POLICIES[policy])
        agreement(flow, x, rtol=max(2e-5, POLICIES[policy]) if "mixed" not in policy else 2e-5)
        enlarge(model, None)
        enlarge(flow, None)


def agreement_with_options(**options):
    """Compiled as the options of `compile` say."""
    keras.utils.set_random_seed(0)
    model = functional()
    model.compile("sgd", "mse", **options)
    for factor in (1.0, 5.0, 0.3):
        enlarge(model, None, factor)
        agreement(model)
