"""Noise and time of the log-density of an image, in evaluation and in training, beside those of a series.

    pip install ".[cli,torch]"
    OMP_NUM_THREADS=1 python benchmarks/scoring_noise.py [--data mnist] [--steps 300] [--images 16] [--spread 5]
        [--layers 3] [--markdown FILE]

Two flows of four blocks at one scale are trained with the defaults of `iresnet train`: blocks that begin with a
convolution (elu, c = 0.9), and blocks that begin with an activation (lipswish, c = 0.98). Test images are then scored
in float32 on NumPy with one probe: by the series of 20 terms that normflows takes in evaluation, by the default with
and without the reference of the flow, and by the default with three products. The table has the root mean square of the
error against the exact log-determinants of the flow in float64, and processor time an image of one core. What is
prepared once for the weights is timed apart. A second table has the standard deviation of one probe in training mode in
PyTorch: of Residual Flow's estimator, and of the default with and without its control variate. `--spread` is the
standard deviation to which images are brought before they enter a block; the larger it is, the more the slopes of the
activations vary from place to place. `--layers` is the number of hidden layers of a block, by default two: three
convolutions, 3 x 3, 1 x 1 and 3 x 3; further ones are 1 x 1.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from report_tables import Report

from iresnet_core.flows import Flow, ResidualBlock
from iresnet_core.reproduction.comparison import made_model
from iresnet_core.reproduction.timed_training import Prepared
from iresnet_core.training import DatasetSource, EpochOrder, load_dataset

DRAWS = 20
KINDS = {
    "convolution first": {"activation": "elu", "coeff": 0.9},
    "activation first": {"activation": "lipswish", "coeff": 0.98, "activation_first": True},
}
FLOW = {"kind": "conv", "scales": 1, "optimizer": "adam", "lr": 0.01}
SERIES = {"method": "series", "terms": 20, "control_variate": "none"}
IN_TRAINING: dict[str, dict[str, Any]] = {
    "Residual Flow, Gaussian probes": {"method": "roulette", "probe_kind": "gaussian", "control_variate": "none"},
    "no control": {"control_variate": "none"},
    "default": {},
}


def trained(data, asked, steps):
    """The flow after some steps in PyTorch, in float32 on NumPy with its reference, and images as it takes them."""
    dataset = load_dataset(DatasetSource(data, seed=0))
    prepared, batch = Prepared(dataset), 64
    settings = {"data": data, "seed": 0, "batch": batch, "asked": {**asked, **FLOW}}
    model = made_model("ours", dataset, prepared.first(1000, 0), settings)
    order = EpochOrder(len(dataset.train), batch, 0)
    for step in range(steps):
        x = prepared.ready(dataset.train[order.chosen(step)], np.random.default_rng([0, 2, step]))
        model.step(x, model.lr)
    images = prepared.ready(dataset.test[:1000], np.random.default_rng(1))
    return model.trainer.flow, model.flow().astype(np.float32), images


def without_reference(flow):
    """The same flow, whose answers know nothing of the data."""
    layers = [layer.with_reference(None) if isinstance(layer, ResidualBlock) else layer for layer in flow.layers]
    return Flow(layers, flow.event_shape)


def measured(flow, x, exact, **options):
    """Root mean square error in nats, milliseconds an image, and seconds of what is made once."""
    begin = time.process_time()
    flow.log_prob(x, **options)
    first = time.process_time() - begin
    begin = time.process_time()
    value = flow.log_prob(x, **options).value
    second = time.process_time() - begin
    error = float(np.sqrt(np.mean((value.astype(np.float64) - exact) ** 2)))
    return f"{error:.2f} nats, {1e3 * second / len(x):.1f} ms", max(0.0, first - second)


def in_training(flow, x, draws, **options):
    """Standard deviation over draws of one probe each, in nats, and milliseconds an image."""
    x, flow = torch.as_tensor(x), flow.train()
    with torch.no_grad():
        flow.log_prob(x, **options)
        begin = time.process_time()
        values = torch.stack([flow.log_prob(x, **options) for _ in range(draws)])
        seconds = time.process_time() - begin
    deviation = float(torch.sqrt(values.double().var(dim=0).mean()))
    return f"{deviation:.1f} nats, {1e3 * seconds / values.numel():.1f} ms"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--spread", type=float, help="as of `iresnet train`")
    parser.add_argument("--layers", type=int, help="as of `iresnet train`")
    parser.add_argument("--markdown", metavar="FILE")
    chosen = parser.parse_args()
    sizes = {name: getattr(chosen, name) for name in ("spread", "layers") if getattr(chosen, name) is not None}
    report, rows, training_rows = Report(chosen.markdown), [], []
    for name, asked in KINDS.items():
        module, flow, test = trained(chosen.data, {**asked, **sizes}, chosen.steps)
        x, plain = test[: chosen.images], without_reference(flow)
        exact = flow.astype(np.float64).log_prob(x.astype(np.float64), method="exact").value
        cells = [measured(flow, x, exact, rng=0, probe_kind=kind, **SERIES)[0] for kind in ("gaussian", "rademacher")]
        cells.append(measured(plain, x, exact)[0])
        cell, once = measured(flow, x, exact)
        cells += [cell, measured(flow, x, exact, terms=3)[0], f"{once:.1f} s"]
        rows.append([name, *cells])
        training_rows.append([name, *(in_training(module, x, DRAWS, **options) for options in IN_TRAINING.values())])
    columns = ["", "20 terms, Gaussian probes", "20 terms, Rademacher", "default without a reference", "default"]
    columns += ["default with `terms=3`", "made once"]
    blocks = f"{chosen.layers or 2} hidden layers"
    report.table(f"{chosen.data}, {blocks}, {chosen.steps} steps, {chosen.images} images", columns, rows)
    report.table("in training, without the gradient", ["", *IN_TRAINING], training_rows)
    report.write()


if __name__ == "__main__":
    main()
