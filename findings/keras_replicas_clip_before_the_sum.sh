#!/usr/bin/env bash
# Version: keras 3.15.1 with tensorflow-cpu 2.21.0 as its backend.
# Behaviour: under `tf.distribute.MirroredStrategy` an optimizer with `global_clipnorm` clips the gradient of each replica
#   and then sums. The step can be longer than the norm, and has another direction than that of one device.
# Guess: the gradient of the batch, which is the sum, is clipped, so that `fit` does with two replicas what it does with
#   one device. Without clipping it does.
# Output: one step of plain gradient descent with rate 1 and global_clipnorm=1 has the length 1 on one device, and 1.41
#   with two replicas whose gradients are orthogonal.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy keras==3.15.1 tensorflow-cpu==2.21.0
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$work/venv/bin/python" - <<'PYTHON'
import contextlib
import sys

import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras  # noqa: E402  # after the devices

x = np.repeat(np.eye(2, dtype="float32"), 4, axis=0) * 10
y = np.zeros((8, 1), "float32")


def step(scope, clip):
    """The change of the weights by one step."""
    with scope:
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
        )
        model.compile(keras.optimizers.SGD(1.0, global_clipnorm=clip), "mse")
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return keras.ops.convert_to_numpy(model.weights[0]).ravel() - 1


strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
lengths = {}
for clip in (None, 1.0):
    steps = [step(contextlib.nullcontext(), clip), step(strategy.scope(), clip)]
    lengths[clip] = [round(float(np.linalg.norm(change)), 2) for change in steps]
print(keras.__version__, "lengths with one device and with two replicas, by the norm to clip at:", lengths)
one, two = lengths[1.0]
sys.exit(0 if lengths[None][0] == lengths[None][1] and one == 1.0 and two > 1.4 else 1)
PYTHON
