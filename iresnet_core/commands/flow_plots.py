"""Pictures of a flow, drawn by matplotlib without a display: density, samples, transport, images, training.

The figures take arrays; `iresnet_core.commands.plots_of_a_run` computes them.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from iresnet_core.common import BLACK, BLUE, ORANGE, PLOT_STYLE, RED
from iresnet_core.files import write_bytes

__all__ = [
    "Transport",
    "Window",
    "density_figure",
    "image_figure",
    "marginal_figure",
    "sample_figure",
    "training_figure",
    "transport_figure",
    "window_of",
    "write_png",
]

DENSITY_COLOURS = "magma"
GREY = "#888888"
COLOURS = {"data": BLACK, "flow": BLUE}
PLANE_STYLE = {
    **PLOT_STYLE,
    "axes.grid": False,
    "axes.spines.top": True,
    "axes.spines.right": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}
_SHOWN = 4000  # points of a scatter plot
_MOST_BINS = 90
_MOST_MARGINALS = 5
Lines = Sequence[np.ndarray]


class Window(NamedTuple):
    """The part of the plane that is shown."""

    left: float
    right: float
    bottom: float
    top: float


class Transport(NamedTuple):
    """Two families of curves and their images.

    Attributes
    ----------
    first, second : sequence of arrays (points, 2)
        The curves of the two families.
    first_image, second_image : sequence of arrays (points, 2)
        Where the flow, or its inverse, takes them.
    """

    first: Lines
    second: Lines
    first_image: Lines
    second_image: Lines


def window_of(data: np.ndarray, margin: float = 0.12) -> Window:
    """Return the window that shows all but stray points of data in the plane, with equal scales on both axes."""
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    centre, half = (low + high) / 2, (0.5 + margin) * np.maximum(high - low, 1e-12)
    if max(half) < 4 * min(half):  # else one axis would be a line
        half = np.full(2, max(half))
    return Window(centre[0] - half[0], centre[0] + half[0], centre[1] - half[1], centre[1] + half[1])


def density_figure(density: np.ndarray, data: np.ndarray, window: Window, title: str) -> Figure:
    """Draw the density of a flow beside that of data in the plane.

    Parameters
    ----------
    density : array (rows, columns)
        On the centres of equal cells of the window, the lowest row first.
    data : array (n, 2)
        Samples of the data, of which a histogram is drawn in the same colours.
    window : Window
        The part of the plane that is shown.
    title : str
        Over the density of the flow.
    """
    extent = tuple(window)
    # As many cells as there are samples at most: the counts of finer ones would set the colours.
    bins = int(np.clip(len(data) ** 0.5, 10, _MOST_BINS))
    histogram, _, _ = np.histogram2d(
        data[:, 0], data[:, 1], bins=bins, range=[[window.left, window.right], [window.bottom, window.top]]
    )
    cell = (window.right - window.left) * (window.top - window.bottom) / bins**2
    counted = histogram.T / (len(data) * cell)
    # Colours for the bulk of both: single cells of a histogram stick out.
    top = max(float(np.quantile(density, 0.998)), float(np.quantile(counted[counted > 0], 0.9)))
    with matplotlib.rc_context(PLANE_STYLE):
        figure = _figure(9.4, 4.4)
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        common: dict[str, Any] = {
            "extent": extent,
            "origin": "lower",
            "cmap": DENSITY_COLOURS,
            "vmin": 0,
            "vmax": top,
            "aspect": "auto",
        }
        left.imshow(counted, interpolation="nearest", **common)
        shown = right.imshow(density, interpolation="bilinear", **common)
        left.set_title(f"data, {len(data)} samples")
        right.set_title(title)
        for axes in (left, right):
            _plane(axes, window)
        figure.colorbar(shown, ax=[left, right], label="density", shrink=0.9, extend="max", pad=0.015)
    return figure


def sample_figure(panels: Mapping[str, np.ndarray], window: Window, names: Sequence[str] | None = None) -> Figure:
    """Draw points in the plane, a panel for each entry of title and points (n, 2); the same number in all."""
    n = min(_SHOWN, *map(len, panels.values()), _SHOWN)
    with matplotlib.rc_context(PLANE_STYLE):
        figure = _figure(0.3 + 4.2 * len(panels), 4.5)
        row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, points) in zip(row, panels.items(), strict=True):
            axes.scatter(points[:n, 0], points[:n, 1], s=3, color=COLOURS.get(name, BLUE), alpha=0.35, linewidths=0)
            axes.set_title(f"{name}, {n} samples")
            if names is not None:
                axes.set_xlabel(names[0])
                axes.set_ylabel(names[1])
                axes.label_outer()
            _plane(axes, window)
    return figure


def transport_figure(
    forward: Transport, inverse: Transport, data: np.ndarray, latents: np.ndarray, window: Window
) -> Figure:
    """Draw what the flow does to the plane: a grid among the data and its image, and the reverse.

    Parameters
    ----------
    forward : Transport
        Vertical and horizontal lines of data space, and where the flow takes them.
    inverse : Transport
        Circles and rays of latent space, and where the inverse takes them.
    data, latents : array (n, 2)
        Samples of the data, and their latents.
    window : Window
        The part of data space that is shown.
    """
    latent = Window(-4, 4, -4, 4)
    with matplotlib.rc_context(PLANE_STYLE):
        figure = _figure(8.6, 9)
        (a, b), (c, d) = figure.subplots(2, 2)
        _curves(a, forward.first, forward.second, data, window, "a grid among the data")
        _curves(b, forward.first_image, forward.second_image, latents, latent, "its image under the flow")
        _curves(c, inverse.first_image, inverse.second_image, data, window, "their image under the inverse")
        _curves(d, inverse.first, inverse.second, latents, latent, "circles and rays among the latents")
        for k in (1, 2, 3):
            b.add_patch(Circle((0, 0), k, fill=False, color=BLACK, linestyle=":", linewidth=0.8))
        for axes in (a, c):
            axes.set_ylabel("data space")
        for axes in (b, d):
            axes.set_ylabel("latent space")
    return figure


def marginal_figure(panels: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> Figure:
    """Draw samples of any dimension: histograms of the first coordinates, scatter plots of their pairs.

    Parameters
    ----------
    panels : mapping
        One or two entries of name and points (n, d); of two, the first has the upper triangle, the other the lower.
    names : sequence of str, optional
        Of the coordinates.
    """
    sets = list(panels.items())
    reference = sets[0][1]
    d = min(reference.shape[1], _MOST_MARGINALS)
    n = min(_SHOWN, *map(len, panels.values()), _SHOWN)
    low, high = np.quantile(reference, 0.001, axis=0), np.quantile(reference, 0.999, axis=0)
    labels = [f"x[{k}]" for k in range(d)] if names is None else names
    margin = 0.08 * np.maximum(high - low, 1e-12)
    with matplotlib.rc_context(PLANE_STYLE):
        size = max(2.2 * d, 4.5)
        figure = _figure(size, size + 0.4 if d > 1 else 3.4)
        table = figure.subplots(d, d, squeeze=False)
        for i in range(d):
            for j in range(d):
                axes, span = table[i, j], (low[j] - margin[j], high[j] + margin[j])
                axes.set_xlim(span)
                if i == j:
                    bins = np.linspace(*span, int(np.clip(2 * n**0.5, 8, 40)) + 1)
                    for label, points in sets:
                        style: dict[str, Any] = {"histtype": "step", "color": COLOURS.get(label, BLUE), "label": label}
                        axes.hist(points[:, j], bins=bins, density=True, **style)
                    axes.set_yticks([])
                else:
                    label, points = sets[0] if i < j else sets[-1]
                    colour = COLOURS.get(label, BLUE)
                    axes.scatter(
                        points[:n, j], points[:n, i], s=2 if n > 500 else 8, color=colour, alpha=0.4, linewidths=0
                    )
                    axes.set_ylim(low[i] - margin[i], high[i] + margin[i])
                axes.label_outer()
                if i == d - 1:
                    axes.set_xlabel(labels[j])
                if j == 0 and d > 1:
                    axes.set_ylabel(labels[i])
        handles, titles = table[0, 0].get_legend_handles_labels()
        figure.legend(handles, titles, loc="outside upper center", ncols=len(sets), frameon=False)
    return figure


def image_figure(panels: Mapping[str, np.ndarray], side: int = 8) -> Figure:
    """Draw images (n, channels, height, width) in [0, 1], up to side x side in a panel for each entry."""
    side = min(side, *(math.isqrt(len(images)) for images in panels.values()), side)
    with matplotlib.rc_context(PLANE_STYLE):
        figure = _figure(0.2 + 4.4 * len(panels), 4.8)
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, images) in zip(row, panels.items(), strict=True):
            axes.imshow(_tiled(images[: side * side], side), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(name)
            axes.set_axis_off()
    return figure


def training_figure(
    rows: Sequence[Mapping[str, float | None]], coeff: float, unit: str, best_step: float | None
) -> Figure:
    """Draw the log of a training against steps: log-densities or bits per dimension, and the largest constant.

    Parameters
    ----------
    rows : sequence of mappings
        Rows of `TrainingRun.read_log`.
    coeff : float
        Bound on the constants.
    unit : {"nats", "bits_per_dim"}
        Unit of what is drawn.
    best_step : float or None
        The step of the exported model.
    """
    column = {name: np.array([np.nan if row[name] is None else row[name] for row in rows]) for name in rows[0]}
    steps, sign = column["step"], -1 if unit == "nats" else 1  # the log has -log p, as a loss
    training, validation = sign * column[f"train_{unit}"], sign * column[f"validation_{unit}"]
    error = column["validation_error"]
    if unit != "nats" and len(rows) > 1:
        scale = np.ptp(validation) / max(np.ptp(column["validation_nats"]), 1e-300)
        error = error * scale
    marker = "o" if len(rows) < 3 else None
    with matplotlib.rc_context(PLOT_STYLE):
        figure = _figure(7.2, 5.4)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        upper.plot(steps, training, color=ORANGE, marker=marker, label="training batches")
        upper.plot(steps, validation, color=BLUE, marker=marker, label="validation")
        upper.fill_between(
            steps,
            validation - error,
            validation + error,
            color=BLUE,
            alpha=0.2,
            linewidth=0,
            label="its standard error",
        )
        low, high = _without_outliers(sign * np.concatenate([training, validation]))
        upper.set_ylim(*sorted((sign * low, sign * high)))
        if best_step is not None:
            upper.axvline(best_step, color=BLACK, linestyle=":", linewidth=1, label="exported model")
        upper.set_ylabel("bits per dimension" if unit == "bits_per_dim" else "log-density (nats)")
        upper.legend(frameon=False)
        lower.plot(steps, column["lipschitz"], color=BLUE, marker=marker, label="largest certified constant")
        lower.axhline(coeff, color=RED, linestyle="--", linewidth=1.2, label="cap")
        lower.set_ylim(0, 1.05)
        lower.set_ylabel("Lipschitz constant")
        lower.set_xlabel("step")
        lower.legend(frameon=False, loc="lower right")
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(PLOT_STYLE):
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plane(axes: Axes, window: Window) -> None:
    axes.set_xlim(window.left, window.right)
    axes.set_ylim(window.bottom, window.top)
    if math.isclose(window.right - window.left, window.top - window.bottom, rel_tol=1e-6):
        axes.set_aspect("equal")


def _curves(axes: Axes, first: Lines, second: Lines, points: np.ndarray, window: Window, title: str) -> None:
    axes.scatter(points[:_SHOWN, 0], points[:_SHOWN, 1], s=2, color=GREY, alpha=0.25, linewidths=0, rasterized=True)
    for lines, colour in ((first, BLUE), (second, ORANGE)):
        axes.add_collection(LineCollection(list(lines), colors=colour, linewidths=0.8))
    axes.set_title(title)
    _plane(axes, window)


def _tiled(images: np.ndarray, side: int) -> np.ndarray:
    """Put images on one canvas, a pixel apart."""
    _, channels, height, width = images.shape
    shown = 3 if channels == 3 else 1
    canvas = np.ones((side * (height + 1) + 1, side * (width + 1) + 1, shown))
    for k, image in enumerate(images):
        row, column = 1 + (k // side) * (height + 1), 1 + (k % side) * (width + 1)
        canvas[row : row + height, column : column + width] = np.moveaxis(np.clip(image[:shown], 0, 1), 0, -1)
    return canvas if shown == 3 else canvas[..., 0]


def _without_outliers(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis that do not follow the first few values of a training."""
    finite = values[np.isfinite(values)]
    low, high = float(np.min(finite)), float(np.quantile(finite, 0.9))
    high = min(float(np.max(finite)), high + 1.5 * (high - low)) if high > low else float(np.max(finite))
    margin = 0.06 * max(high - low, 1e-9)
    return low - margin, high + margin
