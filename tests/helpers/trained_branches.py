"""The trained branches of the shared data, block after block with their inputs."""

import numpy as np

from iresnet_core import Activation, Chain, Dense

__all__ = ["blocks"]


def blocks(folder, case, dtype="float64", samples=64):
    """Yield (branch, inputs) for every block of a case; the inputs went through the blocks before it."""
    with np.load(folder / "trained_branches.npz") as data:
        x = data[f"{case}/inputs"][:samples].astype(dtype)
        activation = str(data[f"{case}/activation"])
        block = 0
        while f"{case}/block{block}/weight0" in data:
            layers = []
            for i in range(3):
                prefix = f"{case}/block{block}"
                if i:
                    layers.append(Activation(activation))
                layers.append(Dense(data[f"{prefix}/weight{i}"].astype(dtype), data[f"{prefix}/bias{i}"].astype(dtype)))
            g = Chain(layers)
            yield g, x
            x = x + g(x)
            block += 1
