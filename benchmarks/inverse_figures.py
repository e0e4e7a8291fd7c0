"""Evaluations and time of the inverse, beside the plain iteration with the same certificate; both to 1e-6."""

from typing import NamedTuple

import numpy as np
from timing import medians

from iresnet_core import invert

TARGET = {"rtol": 0.0, "atol": 1e-6}


class InverseFigures(NamedTuple):
    """The worst sample's evaluations of g, plain and by default, and the time relative to the plain iteration's."""

    plain: float
    default: float
    time_ratio: float

    @property
    def fewer(self):
        """How many times fewer evaluations."""
        return self.plain / self.default


def measure(case, repetitions, clock):
    """`InverseFigures` of a case: means over its blocks."""
    counts, ratios = [], []
    for g, x in case.blocks:
        y = x + g(x)
        solvers = {
            "plain": lambda g=g, y=y: invert(g, y, solver="picard", **TARGET),
            "default": lambda g=g, y=y: invert(g, y, **TARGET),
        }
        counts.append([int(np.max(solve().iterations)) for solve in solvers.values()])
        spent = medians(solvers, repetitions, clock)
        ratios.append(spent["default"] / spent["plain"])
    plain, default = np.mean(counts, axis=0)
    return InverseFigures(float(plain), float(default), float(np.mean(ratios)))


HEADS = ["inverse to 1e-6", "plain", "default", "times fewer", "time / plain"]


def row(case, figures):
    """Row of a table."""
    f = figures
    return case.name, f"{f.plain:.1f}", f"{f.default:.1f}", f"{f.fewer:.2f}", f"{f.time_ratio:.2f}"
