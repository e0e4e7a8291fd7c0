#!/usr/bin/env bash
# Version: tensorflow-cpu 2.21.0.
# Behaviour: `bool()` of a variable that was made under `tf.distribute.MirroredStrategy` is True whatever it holds, and
#   `int()` of one raises TypeError. `bool()` of a plain variable, and of the mirrored one's `numpy()`, is its value.
# Guess: a mirrored variable converts to a Python number as a plain one does.
# Output: a plain variable of False is False, the mirrored one True, and its value False.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tensorflow-cpu==2.21.0
TF_CPP_MIN_LOG_LEVEL=3 "$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
plain = tf.Variable(False)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    mirrored, number = tf.Variable(False), tf.Variable(3)
try:
    converted = int(number)
except TypeError as error:
    converted = type(error).__name__
found = bool(plain), bool(mirrored), bool(mirrored.numpy()), converted
print(tf.__version__, "plain, mirrored, value of the mirrored, int():", found)
sys.exit(0 if found == (False, True, False, "TypeError") else 1)
PYTHON
