"""Flows of Keras layers for tests, trained and not, and scripts in processes of their own; needs Keras."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import keras_processes
import numpy as np

from iresnet_core.adapters.keras import Activation, ActNorm, FactorOut, Flow, InvertibleResidual, Logit, Squeeze

__all__ = ["capped_weights", "data", "image_flow", "in_a_process", "largest", "mlp", "numbers", "trained_flow"]

Dense, Conv2D = keras.layers.Dense, keras.layers.Conv2D
SCRIPT = Path(keras_processes.__file__)


def mlp(d, width=16, coeff=0.9):
    return InvertibleResidual([Dense(width, activation="elu"), Dense(width), Activation("lipswish"), Dense(d)], coeff)


def image_flow():
    """Every layer there is; a Sequential, groups, dilation, an even window."""
    net = keras.Sequential([Conv2D(6, 3, padding="same", groups=2), Activation("maxmin"), Conv2D(4, 2, padding="same")])
    dilated = [Activation("elu"), Conv2D(3, 3, padding="same", dilation_rate=2), keras.layers.ReLU(), Conv2D(2, 1)]
    layers = [Logit(), Squeeze(basis="haar"), ActNorm(), InvertibleResidual(net, 0.8)]
    return Flow([*layers, FactorOut(2, [ActNorm(), InvertibleResidual(dilated, 0.7)])], event_shape=(4, 4, 1))


def data(d, n=100):
    rng = np.random.default_rng(d)
    return (2 * rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / d**0.5 + 1).astype("float32")


def numbers(x):
    return keras.ops.convert_to_numpy(x)


def largest(weight):
    return np.linalg.svd(numbers(weight), compute_uv=False)[0]


def capped_weights(model):
    return [capped for block in model._blocks() for capped in block.capped_layers()]


def trained_flow(d):
    """A flow after 200 Adam steps, and its data."""
    keras.utils.set_random_seed(0)
    flow = Flow([ActNorm(), mlp(d)], event_shape=(d,))
    flow.compile(optimizer=keras.optimizers.Adam(1e-2))
    x = data(d)
    history = flow.fit(x, batch_size=50, epochs=100, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.1
    return flow, x


def in_a_process(name, folder, **environment):
    """What a script of tests/helpers/keras_processes.py prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(SCRIPT), name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
