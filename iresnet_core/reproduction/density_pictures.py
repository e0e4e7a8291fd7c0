"""The picture of densities in the plane: a row for each set, the data first, then every model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["density_rows"]

_CELL, _DPI = 1.35, 110  # inches and dots per inch of one panel


def density_rows(
    path: Path, samples: Mapping[str, np.ndarray], grids: Mapping[tuple[str, str], np.ndarray], half: float
) -> None:
    """Draw the samples of every set, and the densities (n, n) of every (set, model) on the square of +-`half`.

    All panels of a row have the same colours, up to what the densest hundredth of the data's pixels has.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(model for _, model in grids))
    figure = Figure(figsize=(_CELL * (1 + len(names)), _CELL * len(samples) + 0.3), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(len(samples), 1 + len(names), squeeze=False)
    for row, (line, (data, points)) in enumerate(zip(panels, samples.items(), strict=True)):
        counted, _, _ = np.histogram2d(
            points[:, 1], points[:, 0], bins=60, range=[[-half, half], [-half, half]], density=True
        )
        top = float(np.quantile(counted[counted > 0], 0.97))
        for panel, name in zip(line, ["data", *names], strict=True):
            density = counted if name == "data" else grids.get((data, name))
            panel.set_xticks([])
            panel.set_yticks([])
            if density is None:
                panel.set_axis_off()
                continue
            square = (-half, half, -half, half)
            panel.imshow(
                density, origin="lower", extent=square, vmin=0, vmax=top, cmap="magma", interpolation="nearest"
            )
            if row == 0:
                panel.set_title(name, fontsize=8)
        line[0].set_ylabel(data, fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(path)
