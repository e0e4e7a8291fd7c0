"""Bias, standard deviation, error, products and time of estimates of log|det(I + J)|, against the exact values."""

import math
from typing import NamedTuple

import numpy as np
from peer_estimators import PEERS
from timing import medians

from iresnet_core import Linearization, logdet, mean_jacobian
from iresnet_core.branches import ChainStructure

RESIDUAL_FLOW = "Residual Flow, training"


class Figures(NamedTuple):
    """Of one method: products per probe, errors in nats, seconds per batch."""

    products: float
    bias: float
    bias_error: float
    std: float
    rmse: float
    seconds: float


class Unstructured:
    """A branch of which nothing is known but its values and products, as a plain callable's are."""

    def __init__(self, g):
        self.g, self.lipschitz = g, g.lipschitz

    def __call__(self, x):
        """Evaluate."""
        return self.g(x)

    def linearize(self, x):
        """Leave out all but the products."""
        known = self.g.linearize(x)
        return Linearization(known.value, known.vjp, leading_axes=True, structure=ChainStructure(depth=known.depth))


def ours(g, x):
    """Label -> estimate(rng), for every method of the package; the trace costs half a product."""
    unstructured, reference = Unstructured(g), mean_jacobian(g, x)

    def method(name, branch=g, **options):
        return lambda rng: logdet(branch, x, method=name, rng=rng, **options)

    methods = {
        "exact": method("exact"),
        "series": method("series"),
        "roulette": method("roulette"),
        "arnoldi, callable": method("arnoldi", unstructured),
        "arnoldi, callable, m = 2": method("arnoldi", unstructured, terms=2),
        "arnoldi, callable, m = 3": method("arnoldi", unstructured, terms=3),
        "arnoldi, trace": method("arnoldi"),
        "arnoldi, trace, m = 2": method("arnoldi", terms=2),
        "arnoldi, trace, m = 3": method("arnoldi", terms=3),
    }
    for m in (1, 2, 3):
        methods[f"mean-jacobian, m = {m}"] = method("mean-jacobian", terms=m)
    methods["mean-jacobian, m = 2, reference"] = method("mean-jacobian", terms=2, reference=reference)
    methods["mean-jacobian"] = method("mean-jacobian")
    return methods


def trace_cost(label):
    """Products that the exact trace is worth: half of one."""
    return 0.5 if ("trace" in label or "mean-jacobian" in label or label in ("series", "roulette")) else 0.0


def block_errors(g, x, draws, rng):
    """Label -> (errors (draws, batch), products of every draw) on one block."""
    exact = logdet(g, x, method="exact").value
    found = {}
    for label, estimate in ours(g, x).items():
        answers = [estimate(rng) for _ in range(1 if label == "exact" else draws)]
        products = [float(np.mean(answer.products)) + trace_cost(label) for answer in answers]
        found[label] = (np.stack([answer.value - exact for answer in answers]), products)
    for label, peer in PEERS.items():
        pairs = [peer(g, x, rng) for _ in range(draws)]
        found[label] = (np.stack([value - exact for value, _ in pairs]), [count for _, count in pairs])
    return found


def block_times(g, x, repetitions, clock, labels=None):
    """Label -> median seconds; Residual Flow with the mean number of products."""
    rng = np.random.default_rng(1)
    functions = {label: (lambda estimate=estimate: estimate(rng)) for label, estimate in ours(g, x).items()}
    for label, peer in PEERS.items():
        extra = {"extra": 2} if label.startswith("Residual Flow") else {}
        functions[label] = lambda peer=peer, extra=extra: peer(g, x, rng, **extra)
    chosen = functions if labels is None else {label: functions[label] for label in labels}
    return medians(chosen, repetitions, clock)


def measure(case, draws, repetitions, clock):
    """Label -> `Figures`, all blocks of a case taken together; times are means over the blocks."""
    rng = np.random.default_rng(0)
    errors = [block_errors(g, x, draws, rng) for g, x in case.blocks]
    times = [block_times(g, x, repetitions, clock) for g, x in case.blocks]
    return {label: _figures(label, errors, times) for label in errors[0]}


def _figures(label, errors, times):
    parts = [block[label][0] for block in errors]
    products = float(np.mean([count for block in errors for count in block[label][1]]))
    means = [part.mean(axis=1) for part in parts]  # the samples of one draw may share a roulette
    bias = float(np.mean([mean.mean() for mean in means]))
    spread = [mean.var(ddof=1) / mean.size if mean.size > 1 else 0.0 for mean in means]
    variance = np.mean([part.var(axis=0, ddof=1).mean() if part.shape[0] > 1 else 0.0 for part in parts])
    return Figures(
        products,
        bias,
        math.sqrt(sum(spread)) / len(spread),
        math.sqrt(variance),
        math.sqrt(np.mean([np.mean(part**2) for part in parts])),
        float(np.mean([spent[label] for spent in times])),
    )


def rows(figures):
    """Rows of a table, one a method."""
    base = figures[RESIDUAL_FLOW]
    return [
        (
            label,
            f"{f.products:.1f}",
            f"{1e3 * f.seconds:.2f}",
            f"{f.seconds / base.seconds:.2f}",
            f"{f.bias:+.5f} +- {f.bias_error:.5f}",
            f"{f.std:.5f}",
            f"{f.rmse:.5f}",
            f"{f.rmse / base.rmse:.5f}",
        )
        for label, f in figures.items()
    ]


HEADS = ["method", "products", "ms", "time / RF", "bias", "std", "RMSE", "RMSE / RF"]


def fewer_products(figures, labels):
    """How many times fewer products than Residual Flow's the best of some methods takes to its RMSE."""
    base = figures[RESIDUAL_FLOW]
    return max(base.products / figures[label].products * (base.rmse / figures[label].rmse) ** 2 for label in labels)
