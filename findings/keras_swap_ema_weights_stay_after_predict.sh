#!/usr/bin/env bash
# Version: keras 3.15.1 with jax 0.10.2 as its backend.
# Behaviour: `keras.callbacks.SwapEMAWeights` puts the averaged weights into a model before `predict` and leaves them
#   there afterwards. Before and after `evaluate` it puts them in and takes them out again.
# Guess: after `predict` with the callback the model has the weights that it had before, as after `evaluate`.
# Output: the largest change of a weight by `evaluate` is 0, that by `predict` above 0.01.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy keras==3.15.1 jax==0.10.2
KERAS_BACKEND=jax "$work/venv/bin/python" - <<'PYTHON'
import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
model.compile(optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), loss="mse")
x, y = np.ones((8, 3), "float32"), np.zeros((8, 2), "float32")
for _ in range(5):
    model.train_on_batch(x, y)


def change(use):
    """Largest change of a weight by a use of the model with the callback."""
    before = [np.array(variable) for variable in model.trainable_variables]
    use(callbacks=[keras.callbacks.SwapEMAWeights()], verbose=0)
    after = [np.array(variable) for variable in model.trainable_variables]
    return max(float(np.abs(a - b).max()) for a, b in zip(before, after))


evaluated = change(lambda **options: model.evaluate(x, y, **options))
predicted = change(lambda **options: model.predict(x, **options))
print(keras.__version__, keras.backend.backend(), "evaluate:", evaluated, "predict:", predicted)
sys.exit(0 if evaluated == 0 and predicted > 0.01 else 1)
PYTHON
