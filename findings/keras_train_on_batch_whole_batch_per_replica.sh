#!/usr/bin/env bash
# Version: keras 3.15.1 with tensorflow-cpu 2.21.0 as its backend.
# Behaviour: under `tf.distribute.MirroredStrategy` with two replicas `train_on_batch` gives each replica the whole batch,
#   which costs as much for each as one device; `fit` gives each a half.
# Guess: both share the batch out.
# Output: with a batch of 8, each call of the model in `fit` sees 4 samples, and in `train_on_batch` 8.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy keras==3.15.1 tensorflow-cpu==2.21.0
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras  # noqa: E402  # after the devices

seen = []


class Watched(keras.layers.Dense):
    def call(self, x):
        seen.append(x.shape[0])
        return super().call(x)


with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([keras.Input((2,)), Watched(1)])
    model.compile("sgd", "mse")
x, y = np.ones((8, 2), "float32"), np.zeros((8, 1), "float32")
found = {}
for name in ("fit", "train_on_batch"):
    seen.clear()
    model.train_function = None  # so that the step is traced anew
    model.fit(x, y, batch_size=8, verbose=0) if name == "fit" else model.train_on_batch(x, y)
    found[name] = set(seen)
print(keras.__version__, found)
sys.exit(0 if found == {"fit": {4}, "train_on_batch": {8}} else 1)
PYTHON
