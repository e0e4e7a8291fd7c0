"""Validation scores of the default flow after a given time, for several spreads and caps.

    pip install ".[cli,torch]"
    python benchmarks/spread.py --data mnist --seconds 150 --spread 1 5 --coeff 0.9 0.98 [--markdown FILE]
    python benchmarks/spread.py --data rings --seconds 40 --spread 1 20

Every flow is trained on one thread, whose processor time is counted; evaluations are not. The score is the last one on
the validation samples: nats, more are better, or for grey levels bits per dimension, fewer are better. Then the test
samples that `--inverted` says are scored and inverted in float64: products and the standard error of one score, and
iterations of the inverse, in the mean.
"""

import argparse

import numpy as np
from report_tables import Report

from iresnet_core.reproduction.comparison import made_model
from iresnet_core.reproduction.timed_training import Prepared, TimedTraining, train_for
from iresnet_core.training import DatasetSource, default_settings, load_dataset


def trained(data, seconds, asked, inverted):
    """One row: score, steps, products, standard error, iterations."""
    source = DatasetSource(data, seed=0)
    dataset = load_dataset(source)
    batch = default_settings(source, dataset, "torch", asked).training.batch
    prepared = Prepared(dataset)
    settings = {"data": data, "seed": 0, "batch": batch, "asked": asked}
    model = made_model("ours", dataset, prepared.first(1000, 0), settings)
    timed = TimedTraining(seconds, batch=batch, evaluations=4, validation_samples=250, test_samples=inverted)
    outcome = train_for(model, prepared, timed)
    _, steps, nats = outcome.curve[-1]
    flow = model.flow()
    x = model.layout.to_model(prepared.ready(dataset.test[:inverted], np.random.default_rng(0)).astype(np.float64))
    score, back = flow.log_prob(x, rng=0), flow.inverse(flow(x))
    shown = nats if dataset.levels is None else prepared.bits(nats)
    return [f"{shown:.3f}", steps, *(f"{np.mean(v):.1f}" for v in (score.products, score.std_error, back.iterations))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--spread", type=float, nargs="+", default=[1.0, 5.0])
    parser.add_argument("--coeff", type=float, nargs="+", default=[0.9])
    parser.add_argument("--inverted", type=int, default=20)
    parser.add_argument("--markdown", metavar="FILE")
    chosen = parser.parse_args()
    report = Report(chosen.markdown)
    columns = ["spread", "cap", "validation", "steps", "products", "standard error", "iterations of the inverse"]
    rows = []
    for spread in chosen.spread:
        for coeff in chosen.coeff:
            asked = {"spread": spread, "coeff": coeff}
            rows.append([f"{spread:g}", f"{coeff:g}", *trained(chosen.data, chosen.seconds, asked, chosen.inverted)])
    report.table(f"{chosen.data}, {chosen.seconds:g} s", columns, rows)
    report.write()


if __name__ == "__main__":
    main()
