"""Time until the first step of Keras' `fit` is done, of ours and of a plain network, by the number of blocks.

    pip install ".[keras]" "tensorflow-cpu==2.21.*"
    KERAS_BACKEND=tensorflow python benchmarks/keras_first_step.py [--blocks 1 16] [--jit-compile] [--markdown FILE]
    KERAS_BACKEND=jax python benchmarks/keras_first_step.py

Vectors go through blocks d - 128 - 128 - 128 - d by Adam. The plain network has the same layers, without norms and
log-determinants. Building, initialisation and compiling count; importing does not. Every model has a process of its
own, whose processor time it is, since compilers use several threads.
"""

import argparse
import subprocess
import sys
import time

from report_tables import Report

FEATURES, HIDDEN, BATCH = 64, 128, 500
MODELS = ("plain", "iresnet-core")


def _layers(activation):
    from keras import layers

    return [*(layers.Dense(HIDDEN, activation=activation()) for _ in range(3)), layers.Dense(FEATURES)]


def _plain(blocks):
    import keras

    x = first = keras.Input((FEATURES,))
    for _ in range(blocks):
        y = x
        for layer in _layers(lambda: "silu"):
            y = layer(y)
        x = x + y
    return keras.Model(first, x)


def _ours(blocks):
    import keras

    from iresnet_core.adapters.keras import Activation, Flow, InvertibleResidual

    def block():
        return InvertibleResidual(keras.Sequential(_layers(lambda: Activation("lipswish"))), coeff=0.9)

    return Flow([block() for _ in range(blocks)], event_shape=(FEATURES,))


def first_step(name, blocks, jit_compile):
    """Seconds of processor time until `fit` has taken one step."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((BATCH, FEATURES)).astype("float32")
    begin = time.process_time()
    if name == "plain":
        model = _plain(blocks)
        model.compile("adam", loss="mse", jit_compile=jit_compile)
        model.fit(x, np.zeros_like(x), batch_size=BATCH, epochs=1, verbose=0)
    else:
        model = _ours(blocks)
        model.compile("adam", jit_compile=jit_compile)
        model.fit(x, batch_size=BATCH, epochs=1, verbose=0)
    return time.process_time() - begin


def _in_own_process(name, blocks, jit_compile):
    command = [sys.executable, __file__, "--only", name, "--blocks", str(blocks)]
    ran = subprocess.run(
        [*command, *(["--jit-compile"] if jit_compile else [])], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise RuntimeError(f"{name}, {blocks} blocks: {ran.stderr}")
    return float(ran.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 16], metavar="N")
    parser.add_argument("--jit-compile", action="store_true", help="by XLA on TensorFlow; JAX always does")
    parser.add_argument("--only", choices=MODELS, help="one model, in this process")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    options = parser.parse_args()
    import keras  # after --help, since it takes seconds

    if options.only:
        by_xla = options.jit_compile or keras.backend.backend() == "jax"
        print(first_step(options.only, options.blocks[0], by_xla))
        return
    report = Report(options.markdown)
    rows = []
    for name in MODELS:
        found = [_in_own_process(name, blocks, options.jit_compile) for blocks in options.blocks]
        rows.append((name, *(f"{value:.1f}" for value in found), f"{found[-1] / found[0]:.1f}"))
    title = f"Keras on {keras.backend.backend()}: seconds until the first step"
    heads = ["model, by blocks", *map(str, options.blocks), f"{options.blocks[-1]} / {options.blocks[0]}"]
    report.table(title, heads, rows)
    report.write()


if __name__ == "__main__":
    main()
