"""The picture of the ablation: for every data set the score over the training, and below it the bias."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.common import BLACK, BLUE, GREEN, ORANGE, PLOT_STYLE, PURPLE

__all__ = ["ablation_panels"]

_STYLE = {
    "series": (ORANGE, "s"),
    "roulette": (BLUE, "^"),
    "ours": (GREEN, "o"),
    "two": (PURPLE, "D"),
    "exact": (BLACK, "x"),
}
_EARLY = 3  # looks whose scores may lie outside of the picture


def ablation_panels(
    path: Path, results: Mapping[tuple[str, str], Mapping[str, Any]], labels: Mapping[str, str]
) -> None:
    """Draw the curves of all (data set, estimator).

    Parameters
    ----------
    path : Path
        The file.
    results : mapping
        (data set, estimator) -> "unit" and "curve", whose entries have step, score, bias and bias_error.
    labels : mapping
        Estimator -> its name in the legend.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(data for data, _ in results))
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(0.8 + 4.4 * len(sets), 6.2), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, len(sets), sharex="col", squeeze=False)
        for column, data in enumerate(sets):
            upper, lower = panels[:, column]
            late: list[float] = []
            for model, (colour, marker) in _STYLE.items():
                found = results.get((data, model))
                if found is None:
                    continue
                curve = found["curve"]
                names = ("step", "score", "bias", "bias_error")
                step, score, bias, error = (np.array([look[name] for look in curve]) for name in names)
                style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4, "label": labels[model]}
                upper.plot(step, score, **style)
                lower.errorbar(step, bias, yerr=2 * error, capsize=2, elinewidth=0.9, **style)
                late += list(score[_EARLY:] if len(score) > _EARLY else score)
            unit = results[next(key for key in results if key[0] == data)]["unit"]
            upper.set_title(data)
            upper.set_ylabel(f"validation, {'log-density in nats' if unit == 'nats' else unit}")
            room = 0.08 * max(max(late) - min(late), 1e-3)
            upper.set_ylim(min(late) - room, max(late) + room)
            lower.axhline(0, color=BLACK, linewidth=0.8, zorder=1)
            lower.set_ylabel("bias of the estimate in nats,\n± 2 standard errors")
            lower.set_xlabel("step of the training")
        lines, titles = panels[1, 0].get_legend_handles_labels()
        figure.legend(lines, titles, loc="outside lower center", ncols=min(3, len(titles)), frameon=False)
        figure.savefig(path, metadata={"Software": None})
