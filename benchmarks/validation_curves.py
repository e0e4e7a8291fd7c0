"""Validation scores of one model over a training of a given time, with settings other than the defaults.

    pip install ".[cli,torch,peers]"
    python benchmarks/validation_curves.py [NAME=VALUE ...] [--data mnist] [--seconds 300] [--markdown FILE]
    python benchmarks/validation_curves.py optimizer=muon lr=0.02 batch=32 hidden=64 coeff=0.98
    python benchmarks/validation_curves.py --model glow --parameters 89256 batch=32 lr=0.008

The settings are those of `iresnet train`; a peer has "batch" and "lr" alone. One thread computes, whose processor time
is counted, with that of a compiler; evaluations are not. The score of 1000 samples for validation is in nats, where
more is better, or for grey levels in bits per dimension, where fewer are.
"""

import argparse

from named_settings import setting
from report_tables import Report

from iresnet_core.errors import NonFiniteError
from iresnet_core.reproduction.comparison import made_model, own_compiler
from iresnet_core.reproduction.timed_training import Prepared, TimedTraining, train_for
from iresnet_core.training import DatasetSource, default_settings, load_dataset

SAMPLES, EVALUATIONS = 1000, 4


def curve(data, name, asked, seconds, parameters):
    """Return the number of parameters, the steps, and the scores with their times."""
    source = DatasetSource(data, seed=0)
    dataset = load_dataset(source)
    plain = default_settings(source, dataset, "torch", asked if name == "ours" else {})
    settings = {
        **{"data": data, "seed": 0, "batch": asked.get("batch", plain.training.batch), "asked": asked},
        **{"alpha": plain.model.alpha, "weight_decay": plain.training.weight_decay, "parameters": parameters},
    }
    prepared = Prepared(dataset)
    model = made_model(name, dataset, prepared.first(1000, 0), settings)
    model.lr = asked.get("lr", model.lr)
    timed = TimedTraining(
        seconds, batch=settings["batch"], evaluations=EVALUATIONS, validation_samples=SAMPLES, test_samples=1
    )
    with own_compiler():
        outcome = train_for(model, prepared, timed)
    scores = [(spent, nats if dataset.levels is None else prepared.bits(nats)) for spent, _, nats in outcome.curve]
    return outcome.parameters, outcome.steps, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", type=setting, nargs="*", metavar="NAME=VALUE", help="such as lr=0.02 or batch=32")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--model", default="ours", help="ours, or a peer as of `iresnet reproduce table2`")
    parser.add_argument("--parameters", type=int, help="of a peer, whose width is chosen by it")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--markdown", metavar="FILE")
    chosen = parser.parse_args()
    report = Report(chosen.markdown)
    title = f"{chosen.model}, {', '.join(f'{name}={value}' for name, value in chosen.asked) or 'defaults'}"
    try:
        found = curve(chosen.data, chosen.model, dict(chosen.asked), chosen.seconds, chosen.parameters)
    except NonFiniteError as error:
        report.note(f"{title}: {error}")
    else:
        parameters, steps, scores = found
        heads = ["parameters", "steps", *(f"{spent:.0f} s" for spent, _ in scores)]
        report.table(title, heads, [(parameters, steps, *(f"{score:.3f}" for _, score in scores))])
    report.write()


if __name__ == "__main__":
    main()
