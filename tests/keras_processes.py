"""What tests/test_keras.py runs in interpreters of their own: ``python keras_processes.py NAME``."""

import sys

import numpy as np


def flow_model(d):
    import keras

    from iresnet_core.adapters.keras import ActNorm, FlowModel, InvertibleResidual

    net = [keras.layers.Dense(6, activation="elu"), keras.layers.Dense(d)]
    return FlowModel([ActNorm(), InvertibleResidual(net, coeff=0.8)], event_shape=(d,))


def samples(d, n):
    return (2 * np.random.default_rng(0).standard_normal((n, d)) + 1).astype("float32")


def load():
    """Print the constant, before any forward pass, and log-densities of a model that another process saved."""
    import keras

    import iresnet_core.adapters.keras  # noqa: F401  # registers the classes

    flow = keras.saving.load_model("flow.keras")
    print(repr(flow.lipschitz))
    x = np.load("x.npy")
    for value in keras.ops.convert_to_numpy(flow.initialize(x + 5).log_prob(x)):
        print(float(value))


def replicas():
    """Train on two devices; the state of the normalisation is the same on both."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import keras

    keras.utils.set_random_seed(0)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        flow = flow_model(2)
        flow.compile(optimizer=keras.optimizers.Adam(1e-2))
    x = samples(2, 64)
    losses = flow.fit(x, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0], losses
    expected = -float(tf.reduce_mean(flow.log_prob(x)))
    assert abs(flow.evaluate(x, batch_size=16, verbose=0) - expected) < 1e-3
    for variable in flow.variables:
        first, second = (part.numpy() for part in variable.value.values)
        np.testing.assert_array_equal(first, second)
    assert flow.lipschitz <= 0.8
    print("agreed")


def other_backend():
    """Train, evaluate, save and load on the backend of Keras that the environment names."""
    import keras

    import iresnet_core as core

    numbers = keras.ops.convert_to_numpy
    histories = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        flow = flow_model(3)
        flow.compile(optimizer=keras.optimizers.Adam(3e-2))
        x = samples(3, 50)
        histories.append(flow.fit(x, batch_size=20, epochs=6, verbose=0).history["loss"])
    assert histories[0] == histories[1], histories
    assert histories[0][-1] < histories[0][0], histories
    nats = numbers(flow.log_prob(x))
    assert abs(flow.evaluate(x, batch_size=20, verbose=0) + nats.mean()) < 1e-3
    np.testing.assert_allclose(flow.predict(x, batch_size=20, verbose=0), nats, rtol=1e-4, atol=1e-4)
    back = flow.inverse(flow.encode(x), errors=True)
    assert (np.linalg.norm(numbers(back.value) - x, axis=1) <= numbers(back.error_bound)).all()
    for capped in flow.flow_layers[1].capped:
        used = numbers(capped.certified_layer().weight)
        assert np.linalg.svd(used, compute_uv=False)[0] <= capped.cap * (1 + 1e-6)
    flow.save(f"{keras.backend.backend()}.keras")
    loaded = keras.saving.load_model(f"{keras.backend.backend()}.keras")
    np.testing.assert_allclose(numbers(loaded.log_prob(x)), nats, rtol=1e-5, atol=1e-5)
    flow.save_core(f"{keras.backend.backend()}.safetensors")
    host = core.load(f"{keras.backend.backend()}.safetensors")
    np.testing.assert_allclose(host.log_prob(x).value, nats, rtol=1e-5, atol=2e-5)
    print("trained")


if __name__ == "__main__":
    {"load": load, "replicas": replicas, "jax": other_backend, "torch": other_backend}[sys.argv[1]]()
