"""Pictures of bits per dimension over the time of training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["bits_over_time"]

_WORST = 3.0  # times the best of all: what lies above is out of the picture


def bits_over_time(path: Path, curves: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draw a panel for each data set; a curve has the columns seconds and bits per dimension."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(curves) + 1.6, 3.8), layout="constrained")
    for axes, (data, models) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for k, (name, curve) in enumerate(models.items()):
            axes.plot(curve[:, 0], curve[:, 1], label=name, color=f"C{k}", linewidth=2.2 if k == 0 else 1.2)
        lowest = min(float(np.nanmin(curve[:, 1])) for curve in models.values())
        highest = max(float(np.nanmin(curve[:, 1])) for curve in models.values())
        axes.set_ylim(lowest - 0.1 * abs(lowest), min(_WORST * lowest, highest + 0.3 * abs(highest)))
        axes.set(title=data, xlabel="seconds of training", ylabel="validation bits per dimension")
        axes.grid(alpha=0.3)
    # Beside the panels, since curves may be anywhere in them.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)
