"""What tests/adapters/test_keras.py runs in interpreters of their own: ``python keras_processes.py NAME``."""

import functools
import sys
import warnings

import numpy as np


def flow_model(d):
    import keras

    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    net = [keras.layers.Dense(6, activation="elu"), keras.layers.Dense(d)]
    return Flow([ActNorm(), InvertibleResidual(net, coeff=0.8)], event_shape=(d,))


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
    assert not flow.initialized
    flow.initialize(x)  # from data, as on one device
    np.testing.assert_allclose(flow.flow_layers[0](x).numpy().mean(axis=0), 0, atol=1e-5)
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
    """Train compiled, evaluate, sample and save on the backend of Keras that the environment names."""
    import keras

    import iresnet_core as core

    if keras.backend.backend() == "torch":
        import torch

        # Traces as the default does, and makes no C++ of it, which takes minutes.
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
        # From inside the tracer, which looks at every tensor that a graph break hands over.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    numbers = keras.ops.convert_to_numpy
    histories = []
    for compiled in (True, False, False):
        keras.utils.set_random_seed(0)
        flow = flow_model(3)
        flow.share = 1.0  # a part would be another one in each program
        flow.compile(optimizer=keras.optimizers.Adam(3e-2), jit_compile=compiled)
        assert flow.jit_compile == compiled
        x = samples(3, 40)
        histories.append(flow.fit(x, batch_size=20, epochs=6, verbose=0).history["loss"])
        if compiled:  # evaluated, and asked, as one that is not
            nats = numbers(flow.log_prob(x))
            assert abs(flow.evaluate(x, batch_size=20, verbose=0) + nats.mean()) < 1e-3
            assert flow.jit_compile
            assert flow.sample(4).shape == (4, 3)
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-3)
    assert histories[1] == histories[2], histories
    assert histories[2][-1] < histories[2][0], histories
    nats = numbers(flow.log_prob(x))
    assert abs(flow.evaluate(x, batch_size=20, verbose=0) + nats.mean()) < 1e-3
    np.testing.assert_allclose(flow.predict(x, batch_size=20, verbose=0), nats, rtol=1e-4, atol=1e-4)
    back = flow.inverse(flow.encode(x), errors=True)
    assert (np.linalg.norm(numbers(back.value) - x, axis=1) <= numbers(back.error_bound) + 1e-4).all()
    for capped in flow.flow_layers[1].capped_layers():
        used = numbers(capped.certified().weight)
        assert np.linalg.svd(used, compute_uv=False)[0] <= capped.cap * (1 + 1e-6)
    flow.save("flow.keras")
    np.save("x.npy", x[:5])
    np.save("expected.npy", np.array([flow.lipschitz, *nats[:5]]))
    flow.save("flow.safetensors")
    host = core.load("flow.safetensors")
    np.testing.assert_allclose(host.log_prob(x).value, nats, rtol=1e-5, atol=2e-5)
    print("trained")


def checkpoint():
    """Train with blocks that keep only their input, and without, on the backend of Keras that the environment names."""
    import keras

    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    if keras.backend.backend() == "torch":
        import torch

        torch.compile = functools.partial(torch.compile, backend="aot_eager")
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    Dense, rng = keras.layers.Dense, np.random.default_rng(0)
    x, context = samples(36, 32), rng.standard_normal((32, 2)).astype("float32")

    def trained(compiled, checkpoint):
        keras.utils.set_random_seed(0)
        blocks = [
            InvertibleResidual([Dense(8, activation="elu"), Dense(36)], coeff=0.8, context_features=2),
            InvertibleResidual(Dense(36, activation="tanh", kernel_initializer="orthogonal"), lipschitz=1.0),
        ]
        flow = Flow([ActNorm(), *blocks], event_shape=(36,), seed=3, checkpoint=checkpoint)
        flow.compile(optimizer=keras.optimizers.SGD(1e-2), jit_compile=compiled)
        assert Flow.from_config(flow.get_config()).checkpoint == checkpoint
        losses = flow.fit((x, context), batch_size=16, epochs=2, shuffle=False, verbose=0).history["loss"]
        return [np.asarray(losses), *map(keras.ops.convert_to_numpy, flow.trainable_variables)]

    compiled = keras.backend.backend() != "tensorflow"  # whose graphs take less time to make without XLA
    for one, other in zip(trained(compiled, True), trained(compiled, False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    print("agreed")


def inverse_checkpoint():
    """The same with inputs that are found again by inversion, on Keras' torch backend; without their errors."""
    import keras

    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    def trained(checkpoint):
        keras.utils.set_random_seed(0)
        nets = [[keras.layers.Dense(8, activation="elu"), keras.layers.Dense(36)] for _ in range(3)]
        blocks = [InvertibleResidual(net, coeff=0.98) for net in nets]
        flow = Flow([ActNorm(), *blocks], event_shape=(36,), seed=3, checkpoint=checkpoint)
        flow.compile(optimizer=keras.optimizers.SGD(1e-2), run_eagerly=True, jit_compile=False)
        losses = flow.fit(samples(36, 32), batch_size=16, epochs=2, shuffle=False, verbose=0).history["loss"]
        found = flow.recovered.inputs if checkpoint else 0
        return found, [np.asarray(losses), *map(keras.ops.convert_to_numpy, flow.trainable_variables)]

    (found, ours), (_, expected) = trained("inverse"), trained(False)
    assert found == 3, found  # those of the blocks; that of the ActNorm is kept
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    print("agreed")


def one_program():
    """Count the programs that JAX makes in the first steps of a training, and in the later ones."""
    import jax
    import keras
    from keras.layers import Dense

    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    made = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: made.append(event) if event.endswith("backend_compile_duration") else None
    )
    blocks = [InvertibleResidual([Dense(8, activation="elu"), Dense(2)]) for _ in range(2)]
    flow = Flow([ActNorm(), *blocks], event_shape=(2,))
    x = samples(2, 64)
    flow.initialize(x).compile(optimizer=keras.optimizers.Adam(1e-3))
    flow.train_on_batch(x)
    first = len(made)
    for _ in range(3):
        flow.train_on_batch(x)
    print(first > 0, len(made) - first)


def checks():
    """Run all of keras_checks.py on the backend of Keras that the environment names."""
    from pathlib import Path

    import keras
    import keras_checks

    for name in keras_checks.__all__:
        keras.utils.set_random_seed(0)
        getattr(keras_checks, name)(Path())
        print(name)


def programs():
    """Run all of keras_program_checks.py on the backend of Keras that the environment names."""
    from pathlib import Path

    import keras_program_checks as checks

    for kind in checks.MODELS:
        checks.agreement_after(kind, "all", Path())
    for policy in checks.POLICIES:
        if policy != "float64":  # which JAX has only with a switch of the process
            checks.agreement_in(policy)
    for options in ({"jit_compile": False}, {"steps_per_execution": 3}):
        checks.agreement_with_options(**options)
    print("agreed")


def devices():
    """Run what keras_device_checks.py has for the backend of Keras that the environment names."""
    import keras_device_checks

    keras_device_checks.run_all()
    print("agreed")


if __name__ == "__main__":
    named = (load, replicas, other_backend, checkpoint, inverse_checkpoint, one_program, checks, programs, devices)
    {script.__name__: script for script in named}[sys.argv[1]]()
