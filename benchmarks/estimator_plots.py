"""Pictures of what `estimators.py` measured."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.ticker
from logdet_figures import RESIDUAL_FLOW

SHOWN = {
    RESIDUAL_FLOW: ("s", "#b2182b"),
    "Residual Flow, evaluation": ("s", "#ef8a62"),
    "i-ResNet, 5 terms": ("^", "#7f7f7f"),
    "i-ResNet, 10 terms": ("v", "#7f7f7f"),
    "FrEIA, 20 terms": ("D", "#bdbdbd"),
    "series": ("x", "#5e3c99"),
    "roulette": ("+", "#5e3c99"),
    "arnoldi, callable, m = 3": ("o", "#92c5de"),
    "arnoldi, trace, m = 3": ("o", "#4393c3"),
    "mean-jacobian, m = 2": ("*", "#1b7837"),
    "mean-jacobian": ("p", "#1b7837"),
}


def draw(found, folder):
    """Write estimators.png: RMSE against time for every case."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in found if name.startswith(("d64", "fresh"))] or list(found)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.6 * columns, 2.9 * lines), sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        for label, (marker, colour) in SHOWN.items():
            f = found[name][label]
            axis.loglog(1e3 * f.seconds, f.rmse, marker, color=colour, label=label, markersize=7, linestyle="none")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("ms per batch", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_minor_formatter(mpl.ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        axis.tick_params(which="minor", labelsize=6)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for line in axes:
        line[0].set_ylabel("RMSE, nats", fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.28 / lines, 1, 1))
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / "estimators.png"
    figure.savefig(path, dpi=90, metadata={"Software": None})
    print(f"written: {path} ({path.stat().st_size / 1000:.0f} kB)")
