"""A saved flow where no framework can be imported: ``python without_frameworks.py MODEL DATA OUT``."""

import os
import subprocess
import sys

import numpy as np

__all__ = ["answers_without_frameworks"]

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "jaxlib", "cupy")


def answers_without_frameworks(model, x, folder):
    """Latents, exact log-densities and preimages of samples x, by an interpreter that has NumPy alone."""
    np.save(folder / "x.npy", x)
    paths = [str(p) for p in (model, folder / "x.npy", folder / "answers.npz")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, __file__, *paths], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "answers.npz")


def main():
    """Answer for the flow and the data that the arguments name."""
    model, data, out = sys.argv[1:]
    sys.modules.update(dict.fromkeys(FRAMEWORKS))  # None: an import raises
    import iresnet_core

    flow, x = iresnet_core.load(model), np.load(data)
    z = flow(x)
    np.savez(out, z=z, log_prob=flow.log_prob(x, method="exact").value, inverse=flow.inverse(z).value)


if __name__ == "__main__":
    main()
