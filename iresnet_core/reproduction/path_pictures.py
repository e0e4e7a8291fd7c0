"""The picture of paths of points through networks: a panel for each, depth along the axis, colours by the start."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from iresnet_core.common import PLOT_STYLE, RED

__all__ = ["path_panels"]

_EVERY = 2  # of the backward paths are shown


def path_panels(
    path: Path,
    networks: Mapping[str, Mapping[str, np.ndarray]],
    counts: Mapping[str, int],
    data: Mapping[int, np.ndarray],
) -> None:
    """Draw the paths of every network.

    Parameters
    ----------
    path : Path
        The file.
    networks : mapping
        Title -> "states" (depth + 1, n), and where there is an inverse "backward", of the same shape.
    counts : mapping
        Title -> crossings of its paths.
    data : mapping
        Depth -> targets (n, 1) of the training there.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    with mpl.rc_context({**PLOT_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.2 + 4.4 * len(networks), 4.4), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
        for panel, (title, arrays) in zip(panels, networks.items(), strict=True):
            states = arrays["states"]
            depth = np.arange(len(states))
            starts = states[0]
            colours = Normalize(float(starts.min()), float(starts.max()))
            lines = [np.stack([depth, states[:, k]], axis=1) for k in range(states.shape[1])]
            panel.add_collection(LineCollection(lines, array=starts, cmap="viridis", norm=colours, linewidths=0.9))
            for k, (at, targets) in enumerate(data.items()):
                label = "data" if k == 0 else None
                panel.plot(
                    np.full(len(targets), at), targets[:, 0], ls="", marker="_", ms=7, color="#888888", label=label
                )
            crossed = _crossing_points(states)
            if len(crossed):
                marks = {"ls": "", "marker": "o", "ms": 4, "mfc": "none", "mec": RED, "mew": 0.7, "alpha": 0.6}
                panel.plot(*crossed.T, label="two paths cross", zorder=3, **marks)
            if "backward" in arrays:
                shown = arrays["backward"][:, ::_EVERY]
                panel.plot(
                    np.repeat(depth, shown.shape[1]),
                    shown.ravel(),
                    **{"ls": "", "marker": "o", "ms": 2.6, "color": "black", "label": "backward, by the inverse"},
                )
            count = counts[title]
            panel.set_title(f"{title}: {count} crossing{'' if count == 1 else 's'}")
            panel.set_xlabel("depth in blocks")
            panel.set_xlim(-0.25, len(states) - 0.75)
            panel.legend(frameon=False, loc="lower left", fontsize=8)
        panels[0].set_ylabel("value of the point")
        figure.colorbar(ScalarMappable(colours, "viridis"), ax=list(panels), label="start", pad=0.015)
        figure.savefig(path, metadata={"Software": None})


def _crossing_points(states: np.ndarray) -> np.ndarray:
    """Return depth and value (crossings, 2) of the points where the lines between states cross."""
    first, second = np.triu_indices(states.shape[1], 1)
    gaps = states[:, first] - states[:, second]
    block, pair = np.nonzero(gaps[:-1] * gaps[1:] < 0)
    before, after = gaps[block, pair], gaps[block + 1, pair]
    part = before / (before - after)
    own = first[pair]
    return np.stack([block + part, (1 - part) * states[block, own] + part * states[block + 1, own]], axis=1)
