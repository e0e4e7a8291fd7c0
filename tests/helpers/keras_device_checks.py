"""Trainings with Keras on two devices beside those on one; in a process of its own, whose CPU counts as two devices."""

import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from iresnet_core import load, save

__all__ = ["run_all"]

# The gradient is clipped at every step, so that it matters when.
SMALL = {"blocks": 1, "layers": 1, "batch": 32, "dtype": "float64", "clip": 0.05, "penalty": 0.1, "ema": 0.9}


def run_all():
    if os.environ["KERAS_BACKEND"] == "jax":
        # The log-determinants are estimated, those of a part of the batch.
        agreement(hidden=40, optimizer="muon")
        samples_stay_where_they_are()
        arrays_follow()
        return
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    agreement(hidden=16, share=1.0)  # they are exact, of all samples
    agreement(hidden=16, share=1.0, optimizer="muon")
    probes_differ()
    commands()


def trainer(count, **asked):
    """A trainer of digits on so many devices, with its batches."""
    from small_trainings import prepared

    from iresnet_core.training.batches import Batches
    from iresnet_core.training.loop import find_trainer
    from iresnet_core.training.plans import planned_layers

    asked = {**SMALL, **asked, "devices": count}
    _, config, dataset = prepared(Path(tempfile.mkdtemp(dir="."), "run"), "keras", data="digits", samples=400, **asked)
    batches = Batches(dataset, config.layout, config.settings.training)
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    make = find_trainer("keras")
    return make(plan, config.layout.model_shape, config.settings.training, batches.first(100)), batches


def agreement(**asked):
    """Given the same noise, two devices take the steps of one, and one goes on from the state of two."""
    two, batches = trainer(2, **asked)
    if os.environ["KERAS_BACKEND"] == "jax":  # which takes long to look at the data
        with mock.patch.object(type(two.model), "initialize"):
            one, _ = trainer(1, **asked)
        one.load_state(two.state())
    else:
        one, _ = trainer(1, **asked)
    shared = spread_over(two.model)
    for k in range(3):
        losses = [own.step(batches.at(k).x, 5e-3).loss for own in (one, two)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)  # which Keras sums in float32
    assert shared()
    require_same(one, two)
    two.step(batches.at(3).x, 5e-3)
    one.load_state(two.state())
    for own in (one, two):
        own.step(batches.at(4).x, 5e-3)
    require_same(one, two)
    save(two.to_core(), "flow.safetensors")
    exported, x = load("flow.safetensors"), np.linspace(0.1, 0.9, 128).reshape(2, 64)
    np.testing.assert_allclose(two.log_prob(x, 0), exported.log_prob(x).value, rtol=1e-9)
    np.testing.assert_allclose(two.lipschitz(), exported.layers[2].lipschitz, rtol=1e-10)


def require_same(one, two):
    """Everything but the bases of the power iterations, which are found up to a rotation."""
    first, second = one.state(), two.state()
    assert first.keys() == second.keys()
    for name in (name for name, variable in one._variables().items() if variable.name != "basis"):
        np.testing.assert_allclose(second[name], first[name], rtol=1e-10, atol=1e-12, err_msg=name)


def spread_over(model):
    """Return a function that says whether each device has had a part of the samples only, in the steps since then."""
    found, prepared = [], model._prepared

    def watched(x, context, training):
        if not training:
            return prepared(x, context, training)
        if os.environ["KERAS_BACKEND"] == "jax":
            import jax

            jax.debug.inspect_array_sharding(x, callback=lambda s: found.append(s.shard_shape(x.shape)[0]))
        else:
            found.append(x.shape[0])
        return prepared(x, context, training)

    model._prepared = watched
    return lambda: set(found) == {SMALL["batch"] // 2}


def samples_stay_where_they_are():
    """A product with samples on the second axis, of which each device has a part, needs no exchange."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from iresnet_core.backends import backend

    mesh = jax.sharding.Mesh(jax.devices(), "batch")
    v = jax.device_put(np.ones((3, 8, 4)), NamedSharding(mesh, PartitionSpec(None, "batch")))
    matrix = jax.device_put(np.ones((4, 5)), NamedSharding(mesh, PartitionSpec()))
    program = jax.jit(backend("jax").rows_times).lower(v, matrix).compile()
    assert "all-gather" not in program.as_text()
    np.testing.assert_array_equal(program(v, matrix), np.full((3, 8, 5), 4.0))


def arrays_follow():
    """What is made for an array on several devices can be computed with it, also with other axes."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from iresnet_core.backends import device_of, get_backend

    mesh = jax.sharding.Mesh(jax.devices(), "batch")
    x = jax.device_put(np.ones((2, 2)), NamedSharding(mesh, PartitionSpec(None, None)))
    made = get_backend(x).from_numpy(np.ones(2), like=x)
    zeros = get_backend(x).xp.zeros((2,), device=device_of(x))
    np.testing.assert_array_equal(x @ made + zeros, [2, 2])


def probes_differ():
    """Replicas that are given equal samples estimate their log-determinants with probes of their own."""
    import tensorflow as tf

    two, _ = trainer(2, hidden=40)
    x = tf.constant(np.random.default_rng(0).uniform(0.1, 0.9, (4, 64)))
    strategy = two.devices._strategy
    nats = tf.function(lambda: strategy.run(lambda: two.model.log_prob(x, training=True)), autograph=False)()
    first, second = (part.numpy() for part in strategy.experimental_local_results(nats))
    np.testing.assert_allclose(first, second, rtol=0.1)
    assert not np.any(first == second)


def commands():
    """`iresnet train` on two devices is resumed on one."""
    from runs_for_tests import iresnet

    small = ("--blocks", 1, "--hidden", 8, "--layers", 1, "--batch", 32, "--samples", 300, "--no-tensorboard")
    asked = ("moons", "--framework", "keras", "--out", "run", "--evaluate-every", 3, *small)
    done = iresnet("train", *asked, "--steps", 3, "--devices", 2)
    assert done.exit_code == 0, done.output
    again = iresnet("train", "--resume", "run", "--steps", 6, "--devices", 1)
    assert again.exit_code == 0, again.output
    assert "Done: 6 steps" in again.stdout
    few = iresnet("train", "--resume", "run", "--devices", 4)
    assert few.exit_code == 2
    assert "--devices 4 is more than Keras on tensorflow finds here: CPU:0, CPU:1" in " ".join(few.stderr.split())
    uneven = iresnet("train", "--resume", "run", "--devices", 3)
    assert "a batch of 32 cannot be shared out evenly to 3 devices" in " ".join(uneven.stderr.split())
