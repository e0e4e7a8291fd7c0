"""The picture of log-densities of tables: for every table the mean of each model with its error."""

from collections.abc import Mapping
from pathlib import Path

from iresnet_core.common import BLUE, GREEN, PLOT_STYLE

__all__ = ["score_points"]

_WORST = 30.0  # nats below the best of a table: what lies lower is out of the picture and named at its edge


def score_points(path: Path, means: Mapping[str, Mapping[str, tuple[float, float]]], first: str) -> None:
    """Draw a panel for each table with the mean and the standard error of every model, the best to the right.

    Single rows to which a model gives next to no density can make its mean thousands of nats lower than all others,
    which would leave one point for these. Such a model is an arrow at the edge, with its mean beside it.

    Parameters
    ----------
    path : Path
        The file.
    means : mapping
        Table -> label of a model -> mean and standard error, in nats.
    first : str
        Label of the model that has a colour of its own.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(PLOT_STYLE):
        rows = max(map(len, means.values()))
        figure = Figure(figsize=(1.2 + 3.2 * len(means), 1.3 + 0.36 * rows), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(means), sharey=True, squeeze=False)[0]
        for panel, (table, models) in zip(panels, means.items(), strict=True):
            low, high = axis_limits(list(models.values()))
            for place, (label, (mean, error)) in enumerate(models.items()):
                colour = GREEN if label == first else BLUE
                if mean < low:
                    panel.plot(low, place, marker="<", color=colour, clip_on=False, markersize=7)
                    panel.annotate(f"{mean:.0f} ± {error:.0f}", (low, place), (9, 0), **_BESIDE)
                else:
                    panel.errorbar(mean, place, xerr=error, marker="o", color=colour, capsize=3)
            panel.set_xlim(low, high)
            panel.set_yticks(range(len(models)), list(models))
            panel.set_title(table)
        panels[0].invert_yaxis()
        clipped = any(mean < axis_limits(list(own.values()))[0] for own in means.values() for mean, _ in own.values())
        away = f"\n◂ more than {_WORST:g} nats below the best, beyond the axis" if clipped else ""
        figure.supxlabel(f"mean test log-density in nats ± one standard error, more is better{away}", fontsize=9)
        figure.savefig(path, metadata={"Software": None})


_BESIDE: dict[str, str | float] = {"textcoords": "offset points", "va": "center", "fontsize": 8}


def axis_limits(scores: list[tuple[float, float]]) -> tuple[float, float]:
    """Return where the axis of means and their errors begins and ends.

    Examples
    --------
    >>> low, high = axis_limits([(1.0, 0.5), (-1.0, 1.0), (-5000.0, 4000.0)])
    >>> print(f"{low:.2f} {high:.2f}")
    -2.28 1.78
    """
    best = max(mean for mean, _ in scores)
    shown = [(mean, error) for mean, error in scores if mean >= best - _WORST]
    low = max(min(mean - error for mean, error in shown), best - _WORST)
    high = max(mean + error for mean, error in shown)
    room = 0.08 * max(high - low, 1e-3)
    return low - room, high + room
