#!/usr/bin/env bash
# Version: tensorflow-cpu 2.21.0, Keras 3.15.1.
# Behaviour: `tf.nn.elu` and `tf.nn.selu` compute exp(x) - 1 by a subtraction, and `keras.activations.elu` calls them.
#   Below zero the value has an absolute error of a rounding of 1: in float32 elu(-1e-8) is 0, and elu(-1e-5) is off by
#   0.14 percent. `tf.math.expm1` of the same numbers is right to the last digit.
# Guess: ELU has the relative accuracy of the dtype below zero, since it is exp(x) - 1 there, for which TensorFlow has
#   `expm1`.
# Output: relative errors at -1e-8 and -1e-5 of the three, 1 and 1.4e-3, and of `expm1`, 0.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tensorflow-cpu==2.21.0 keras==3.15.1
TF_CPP_MIN_LOG_LEVEL=3 KERAS_BACKEND=tensorflow "$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import keras
import numpy as np
import tensorflow as tf

x = tf.constant([-1e-8, -1e-5], tf.float32)
exact = np.expm1(x.numpy().astype(np.float64))


def error(values):
    return [float(e) for e in np.round(np.abs(values / exact - 1), 6)]


rows = {
    "tf.nn.elu": tf.nn.elu(x).numpy(),
    "tf.nn.selu": tf.nn.selu(x).numpy() / (1.0507009873554805 * 1.6732632423543772),
    "keras.activations.elu": keras.ops.convert_to_numpy(keras.activations.elu(x)),
    "tf.math.expm1": tf.math.expm1(x).numpy(),
}
found = {name: error(values) for name, values in rows.items()}
print(tf.__version__, keras.__version__, "relative errors at -1e-8 and -1e-5:", found)
three = [found[name] for name in ("tf.nn.elu", "tf.nn.selu", "keras.activations.elu")]
lost = all(first == 1 and 1e-3 < second < 2e-3 for first, second in three)
sys.exit(0 if lost and max(found["tf.math.expm1"]) == 0 else 1)
PYTHON
