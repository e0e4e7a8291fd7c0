"""Log-densities of tables of some hundred rows after some seconds, with settings other than the defaults.

    pip install ".[cli,torch,peers]"
    python benchmarks/short_tables.py [NAME=VALUE ...] [--tables wine] [--folds 2] [--seconds 15] [--degrees 5]
    python benchmarks/short_tables.py base=normal lr=0.005

The tables and their splits are those of `iresnet reproduce tables`. The means over the validation sets of the first
folds are what defaults were chosen by. `--degrees` is for the base "student-t".
"""

import argparse

import numpy as np
from named_settings import setting
from report_tables import Report

from iresnet_core.flows import base_densities
from iresnet_core.reproduction.comparison import trained_cell, with_ours
from iresnet_core.reproduction.tables import SMALL, load_table

BATCH, DECAY = 256, 2.0


def scored(table, fold, asked, seconds):
    """Train on a split of a table; return the mean of the best validation, and the scores of the test set."""
    dataset = load_table(table, 0, fold)
    settings = {
        **{"data": table, "model": "ours", "seed": 0, "seconds": seconds, "batch": BATCH, "device": None},
        **{"asked": {"weight_decay": DECAY, **asked}, "weight_decay": DECAY, "parameters": None, "fold": fold},
    }
    found = trained_cell(with_ours(settings, dataset), dataset)
    return max(score for _, _, score in found.values["curve"]), found.arrays["scores"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", type=setting, nargs="*", metavar="NAME=VALUE", help="such as lr=0.005 or base=normal")
    parser.add_argument("--tables", nargs="+", default=tuple(SMALL))
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--degrees", type=float, help="degrees of freedom of student-t")
    parser.add_argument("--markdown")
    chosen = parser.parse_args()
    if chosen.degrees is not None:
        base_densities._DEGREES_OF_FREEDOM = chosen.degrees
    report = Report(chosen.markdown)
    rows = []
    for table in chosen.tables:
        found = [scored(table, fold, dict(chosen.asked), chosen.seconds) for fold in range(chosen.folds)]
        test = np.concatenate([scores for _, scores in found])
        error = np.std(test, ddof=1) / np.sqrt(len(test))
        validation = np.mean([best for best, _ in found])
        rows.append((table, f"{validation:.3f}", f"{np.mean(test):.3f} ± {error:.3f}"))
    title = f"After {chosen.seconds:g} s: {', '.join(f'{name}={value}' for name, value in chosen.asked) or 'defaults'}"
    report.table(title, ["table", "validation, nats", "test, nats"], rows)
    report.write()


if __name__ == "__main__":
    main()
