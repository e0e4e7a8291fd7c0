"""Pictures of rows of images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["image_rows"]


def image_rows(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Draw rows of images (n, channels, height, width) with pixels from 0 to 1, each under its label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.0 * len(rows) + 0.2), dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for panel, (label, images) in zip(panels, rows.items(), strict=True):
        strip = np.concatenate(list(np.moveaxis(np.clip(images, 0, 1), 1, -1)), axis=1)
        panel.imshow(
            strip if strip.shape[-1] == 3 else strip[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        panel.set_title(label, fontsize=9, loc="left", pad=2)
        panel.set_axis_off()
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
