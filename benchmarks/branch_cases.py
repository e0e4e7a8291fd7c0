"""The branches that the benchmarks measure on: trained, freshly trained, and hard with orthogonal weights.

A case is a list of blocks (branch, inputs), float64 NumPy, with its constant.
"""

import importlib.util
import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import iresnet_core
from iresnet_core import Activation, Chain, Dense, example_data, normalize
from iresnet_core.training import (
    DatasetSource,
    default_settings,
    dequantized,
    load_dataset,
    planned_layers,
    planned_shape,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "trained_branches.npz"
CONSTANTS = ("0.5", "0.7", "0.9", "0.97")


class Case(NamedTuple):
    """Branches of one kind with their inputs (batch, d)."""

    name: str
    constant: float
    blocks: list


def cast(case, dtype):
    """The case in another dtype."""
    return case._replace(blocks=[(g.astype(np.dtype(dtype)), x.astype(dtype)) for g, x in case.blocks])


def resized(case, batch):
    """The case with another number of inputs, repeated with a little noise where there are too few."""
    rng = np.random.default_rng(0)
    blocks = []
    for g, x in case.blocks:
        repeated = np.resize(x, (batch, x.shape[1]))
        blocks.append((g, repeated + 1e-2 * rng.standard_normal(repeated.shape) * (batch > x.shape[0])))
    return case._replace(blocks=blocks)


def trained(d, batch=256, names=CONSTANTS):
    """The trained flows of the shared data, all blocks; without that, the block of each that the package ships."""
    if not SHARED.exists():
        shipped = [(name, example_data.load_case(f"d{d}_c{name}")) for name in names]
        return [Case(f"d{d} c={name}", float(name), [block]) for name, block in shipped]
    with np.load(SHARED, allow_pickle=False) as data:
        return [Case(f"d{d} c={name}", float(name), list(_blocks(data, f"d{d}_c{name}", batch))) for name in names]


def _blocks(data, case, batch):
    """Every block of a flow; its inputs went through the blocks before it."""
    x = data[f"{case}/inputs"][:batch]
    activation = Activation(str(data[f"{case}/activation"]))
    for block in itertools.count():
        prefix = f"{case}/block{block}"
        if f"{prefix}/weight0" not in data:
            return
        layers = []
        for i in range(3):
            layers += [Dense(data[f"{prefix}/weight{i}"], data[f"{prefix}/bias{i}"]), activation]
        g = Chain(layers[:-1])
        yield g, x
        x = x + g(x)


def orthogonal(activation, constant, d=64, hidden=128, batch=256, seed=0, spread=1.0):
    """Orthogonal weights, inputs and biases so large that the slopes differ widely between samples."""
    rng = np.random.default_rng(seed)
    layers = []
    for n, m in itertools.pairwise((d, hidden, hidden, d)):
        U, _, Vt = np.linalg.svd(rng.standard_normal((m, n)), full_matrices=False)
        layers += [Dense(U @ Vt, spread * rng.standard_normal(m)), Activation(activation)]
    g = normalize(Chain(layers[:-1]), constant)
    return Case(f"orthogonal {activation} c={constant:g}", constant, [(g, 2 * rng.standard_normal((batch, d)))])


def aligned(constant, d=64, batch=256, seed=0):
    """Square orthogonal weights and slopes near one: the Jacobian has nearly the norm that its constant allows."""
    rng = np.random.default_rng(seed)
    weights = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(3)]
    layers = []
    for W in weights:
        layers += [Dense(W, np.zeros(d)), Activation("sin")]
    g = normalize(Chain(layers[:-1]), constant)
    return Case(f"orthogonal, slopes near 1, c={constant:g}", constant, [(g, rng.standard_normal((batch, d)))])


def freshly_trained(constant, seconds, batch=256):
    """A flow of digits (d = 64) trained here with PyTorch for some seconds under a constant; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    from iresnet_core.adapters.torch.training import Trainer

    source = DatasetSource("digits", seed=0)
    dataset = load_dataset(source)
    settings = default_settings(
        source, dataset, "torch", {"coeff": constant, "blocks": 4, "activation": "elu", "kind": "mlp"}
    )
    rng = np.random.default_rng(0)

    def samples(n):
        rows = dataset.train[rng.integers(0, len(dataset.train), n)]
        x = dequantized(rows, dataset.levels, rng).astype(np.float32)
        return x.reshape(n, *planned_shape(settings.model, dataset.event_shape))

    first = samples(settings.training.batch)
    trainer = Trainer(planned_layers(settings.model, dataset.event_shape), first.shape[1:], settings.training, first)
    begin, steps = time.perf_counter(), 0
    while (spent := (time.perf_counter() - begin) / seconds) < 1:
        trainer.step(samples(settings.training.batch), settings.training.lr * 0.5 * (1 + math.cos(math.pi * spent)))
        steps += 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        iresnet_core.save(trainer.to_core(), path)
        flow = iresnet_core.load(path).astype(np.float64)
    x, blocks = samples(batch).astype(np.float64), []
    for layer in flow.layers:
        if layer.is_block:
            blocks.append((layer.branch, x))
        x = np.asarray(layer.forward(x).value)
    return Case(f"fresh d64 c={constant:g}, {steps} steps", constant, blocks)
