"""Test log-density against time of training: ours, without each of its savings, and normflows of the same size.

    pip install --no-deps normflows==1.7.3
    python benchmarks/training_progress.py --data moons --data digits --seconds 120 --save progress.json
    python benchmarks/training_progress.py --data mnist --file mnist.npz --seconds 600 --save progress.json
    python benchmarks/training_progress.py --save progress.json --plots docs/images --markdown progress.md

One thread, float32, a learning rate that falls along a cosine over the time, which is the time of this process; it
stands still during evaluations. Every model is scored ten times on the same test samples: vectors by exact
log-determinants, images by each library's estimate for evaluation, in bits per dimension. The first two commands add
what they find to a file; the last one makes the table and the picture of it. Runs by hand only: an hour in all.
"""

import argparse
import importlib.util
import inspect
import json
import math
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from progress_models import Ours, Peer
from report_tables import Report

from iresnet_core.adapters.torch import Flow
from iresnet_core.backends import get_backend
from iresnet_core.common.plot_style import BLACK, BLUE, GREEN, ORANGE, PLOT_STYLE, PURPLE, RED
from iresnet_core.flows.maximum_likelihood import part_of
from iresnet_core.training import (
    DatasetSource,
    bits_per_dim,
    default_settings,
    dequantized,
    load_dataset,
    planned_shape,
)

DATA = ("moons", "digits", "mnist")
OURS = "iresnet-core"
# What is switched off or on, by its name in the table. `checkpoint` saves memory, and costs time.
VARIANTS = {
    OURS: {},
    f"{OURS}, log-determinant on the whole batch": {"share": 1.0},
    f"{OURS}, no control variate": {"control_variate": "none"},
    f"{OURS}, checkpoint": {"checkpoint": True},
}
PEER_RATES = (1e-3, 5e-3)
LOOKS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
TEST = {"moons": 2000, "digits": 500, "mnist": 500}
EXACT = 2  # dimensions up to which a step of training takes the determinant itself
COLOURS = (BLUE, GREEN, PURPLE, ORANGE, BLACK, RED)


class Problem:
    """A data set with the settings that `iresnet train` has for it, and its batches."""

    def __init__(self, name, file):
        source = DatasetSource(name, file=file if name == "mnist" else None)
        self.name, self.data = name, load_dataset(source)
        self.settings = default_settings(source, self.data, "torch", {})
        self.shape = self.data.event_shape
        self.first = self._ready(self.data.train[:500], 1)
        self.test = self._ready(self.data.test[: TEST[name]], 2)
        self.rng, self.order = np.random.default_rng(0), []

    def _ready(self, x, seed):
        shape = planned_shape(self.settings.model, self.shape)
        noise = np.random.default_rng(seed)
        return dequantized(x, self.data.levels, noise).reshape(len(x), *shape).astype(np.float32)

    def begin(self):
        """Begin anew with the same batches."""
        self.rng, self.order = np.random.default_rng(0), []

    def batch(self):
        """The next batch."""
        n = self.settings.training.batch
        if len(self.order) < n:
            self.order = self.rng.permutation(len(self.data.train))
        chosen, self.order = self.order[:n], self.order[n:]
        return self._ready(self.data.train[chosen], int(self.rng.integers(2**31)))

    def takes_a_part(self):
        """Whether a step takes the log-determinants of a part of the batch by default."""
        return part_of(get_backend(self.first), self.settings.training.batch, math.prod(self.shape), None) is not None

    def unit(self):
        """What the scores are in."""
        return "test log-density, nats" if self.data.levels is None else "test bits per dimension"

    def figure(self, scores):
        """Mean score in that unit, and its standard error."""
        mean, error = float(np.mean(scores)), float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
        if self.data.levels is None:
            return mean, error
        size = math.prod(self.shape)
        return bits_per_dim(-mean, self.data.levels, size), error / (size * math.log(2))


def progress(model, problem, seconds):
    """Train for a time; return the seconds, steps, scores and errors of every look."""
    spent, steps, found = 0.0, 0, []
    problem.begin()
    while len(found) < len(LOOKS):
        x = problem.batch()
        begin = time.process_time()
        model.step(x, model.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, spent / seconds)))))
        spent += time.process_time() - begin
        steps += 1
        if spent >= seconds * LOOKS[len(found)]:
            found.append((spent, steps, *problem.figure(model.scores(problem.test))))
            print(f"  {spent:7.1f} s  step {steps:6d}  {found[-1][2]:.4f} ± {found[-1][3]:.4f}", flush=True)
    return found


def models(problem, chosen):
    """What is trained, by name."""
    for name, options in VARIANTS.items():
        exact = math.prod(problem.shape) <= EXACT  # then there are no probes whose noise could be taken away
        whole = "share" in options and not problem.takes_a_part()  # that is the first one again
        if not available(options) or not matches(name, chosen) or (exact and "control_variate" in options) or whole:
            continue
        yield name, lambda o=options: Ours(problem.settings, problem.shape, problem.first, **o)
    for rate in PEER_RATES if importlib.util.find_spec("normflows") else ():
        name = f"normflows, lr {rate:g}"
        if matches(name, chosen):
            yield name, lambda r=rate: Peer(problem.settings, problem.shape, problem.first, r)


def available(options):
    """Whether the package has these options."""
    has = {"share": inspect.signature(Flow.training_loss), "checkpoint": inspect.signature(Flow.__init__)}
    return all(name in signature.parameters for name, signature in has.items() if name in options)


def matches(name, chosen):
    """Whether a model was asked for."""
    return not chosen or any(word in name if word != OURS else word == name for word in chosen)


def show(report, found):
    """One table a data set: the score after parts of the time."""
    looks = [LOOKS.index(part) for part in (1 / 8, 1 / 4, 1 / 2, 1)]
    for data, (unit, curves) in found.items():
        rows = []
        for name, curve in curves.items():
            seconds, steps, _, error = curve[-1]
            values = [f"{curve[i][2]:.3f}" for i in looks]
            rows.append((name, steps, f"{1e3 * seconds / steps:.0f}", *values, f"{seconds:.0f}", f"{error:.3f}"))
        heads = ["model", "steps", "ms per step", *(f"{LOOKS[i]:g} of the time" for i in looks), "seconds", "±"]
        report.table(f"{data}: {unit}", heads, rows)


def draw(found, folder):
    """Write training_progress.png: the score against the time, a panel for every data set."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.2), squeeze=False)
        names = list(dict.fromkeys(name for _, curves in found.values() for name in curves))
        for axis, (data, (unit, curves)) in zip(axes[0], found.items(), strict=True):
            for name, curve in curves.items():
                seconds, _, scores, _ = zip(*curve, strict=True)
                style = "--" if name.startswith("normflows") else "-"
                axis.plot(seconds, scores, f"o{style}", color=COLOURS[names.index(name) % len(COLOURS)], label=name)
            late = [row[2] for curve in curves.values() for row in curve[2:]]
            room = 0.05 * (max(late) - min(late))
            axis.set_ylim(min(late) - room, max(late) + room)  # the first looks may be far off
            axis.set_title(data)
            axis.set_xlabel("seconds of training, one thread")
            axis.set_ylabel(unit)
        lines = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=3, fontsize=7, frameon=False)
        figure.tight_layout(rect=(0, 0.12, 1, 1))
        path = Path(folder) / "training_progress.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=90, metadata={"Software": None})
    print(f"written: {path} ({path.stat().st_size / 1000:.0f} kB)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", choices=DATA, help="train on these; none: only show what is saved")
    parser.add_argument("--file", help="where mnist.npz is")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--model", action="append", metavar="WORD", help="only models whose name has this word")
    parser.add_argument("--save", metavar="FILE", help="add what is found to this file")
    parser.add_argument("--plots", metavar="DIR", help="write the picture there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Path(options.save) if options.save else None
    found = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for name in options.data or ():
        problem = Problem(name, options.file)
        curves = found.setdefault(name, (problem.unit(), {}))[1]
        for label, make in models(problem, options.model):
            print(f"{name}, {label}", flush=True)
            curves[label] = progress(make(), problem, options.seconds)
            if kept:
                kept.write_text(json.dumps(found))
    report = Report(options.markdown)
    show(report, found)
    report.write()
    if options.plots and found:
        draw(found, options.plots)


if __name__ == "__main__":
    main()
