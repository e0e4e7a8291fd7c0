"""The choice of pictures for a flow, and the numbers that they show."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from iresnet_core.commands.flow_plots import (
    Transport,
    Window,
    density_figure,
    image_figure,
    marginal_figure,
    sample_figure,
    transport_figure,
    window_of,
    write_png,
)
from iresnet_core.flows import Flow
from iresnet_core.training import SampleLayout, draw_samples, preimages, scores, transformed

__all__ = ["draw_pictures", "grid_density", "samples_figure"]

_GRID = 220
_LINES = 25
_POINTS = 500  # a line
_SAMPLES = 4000
_IMAGES = 64


def grid_density(flow: Flow, window: Window, cells: int = _GRID) -> tuple[np.ndarray, float]:
    """Return the density of a flow in the plane on the centres of cells, and the probability of the window.

    Returns
    -------
    density : float64 array (cells, cells)
        The lowest row first.
    mass : float
        Its sum times the area of a cell.
    """
    x = np.linspace(window.left, window.right, 2 * cells + 1)[1::2]
    y = np.linspace(window.bottom, window.top, 2 * cells + 1)[1::2]
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    density = np.exp(scores(flow, points).log_prob).reshape(cells, cells)
    area = (window.right - window.left) * (window.top - window.bottom) / cells**2
    return density, float(density.sum() * area)


def samples_figure(samples: np.ndarray, data: np.ndarray | None, names: tuple[str, ...] | None = None) -> Figure:
    """Return the picture of samples (n, *data_shape), beside as many of the data where there are any.

    `names` are those of the columns.
    """
    panels = {"flow": samples} if data is None else {"data": data, "flow": samples}
    if samples.ndim == 4:
        return image_figure(panels)
    panels = {name: points.reshape(len(points), -1) for name, points in panels.items()}
    reference = next(iter(panels.values()))
    if reference.shape[1] == 2:
        return sample_figure(panels, window_of(reference), names)
    return marginal_figure(panels, names)


def draw_pictures(
    flow: Flow,
    data: np.ndarray,
    folder: Path,
    *,
    layout: SampleLayout,
    seed: int,
    told: Callable[[int, int, str], None],
    names: tuple[str, ...] | None = None,
) -> list[Path]:
    """Draw what suits the dimension of the data, and return the files.

    Parameters
    ----------
    flow : Flow
        The model.
    data : array (n, *data_shape)
        Samples of the data, dequantised.
    folder : path
        Where to write; it exists.
    layout : SampleLayout
        Shapes of a sample in the data and in the model.
    seed : int
        Seed of the samples.
    told : callable
        Is called with the number of pictures done and of all, and the name of the one at hand.
    names : tuple of str, optional
        Of the columns of a sample.
    """
    plane = data.shape[1:] == (2,) and flow.latent_shape == (2,)
    pictures: dict[str, Callable[[], Figure]] = {"samples.png": lambda: _samples(flow, data, layout, seed, names)}
    if plane:
        window = window_of(data)
        pictures["density.png"] = lambda: _density(flow, data, window)
        pictures["transport.png"] = lambda: _transport(flow, data, window)
    for k, (name, draw) in enumerate(pictures.items()):
        told(k, len(pictures), name)
        write_png(draw(), folder / name)
    return [folder / name for name in pictures]


def _samples(flow: Flow, data: np.ndarray, layout: SampleLayout, seed: int, names: tuple[str, ...] | None) -> Figure:
    n = _IMAGES if data.ndim == 4 else min(_SAMPLES, len(data))
    return samples_figure(layout.to_data(draw_samples(flow, n, seed=seed).value), data, names)


def _density(flow: Flow, data: np.ndarray, window: Window) -> Figure:
    density, mass = grid_density(flow, window)
    return density_figure(density, data, window, f"flow, probability {mass:.4f} in this window")


def _transport(flow: Flow, data: np.ndarray, window: Window) -> Figure:
    latents = transformed(flow, data[:_SAMPLES])
    return transport_figure(_forward_transport(flow, window), _inverse_transport(flow), data, latents, window)


def _forward_transport(flow: Flow, window: Window) -> Transport:
    x, y = np.linspace(window.left, window.right, _LINES), np.linspace(window.bottom, window.top, _LINES)
    along_x = np.linspace(window.left, window.right, _POINTS)
    along_y = np.linspace(window.bottom, window.top, _POINTS)
    vertical = [np.stack([np.full(_POINTS, a), along_y], axis=1) for a in x]
    horizontal = [np.stack([along_x, np.full(_POINTS, b)], axis=1) for b in y]
    return Transport(vertical, horizontal, _mapped(flow, vertical), _mapped(flow, horizontal))


def _inverse_transport(flow: Flow) -> Transport:
    angle, radius = np.linspace(0, 2 * math.pi, _POINTS), np.linspace(0.25, 3, _POINTS)
    circles = [r * np.stack([np.cos(angle), np.sin(angle)], axis=1) for r in np.linspace(0.25, 3, 12)]
    rays = [
        radius[:, None] * np.array([[math.cos(a), math.sin(a)]])
        for a in np.linspace(0, 2 * math.pi, 24, endpoint=False)
    ]

    def pulled_back(lines: list[np.ndarray]) -> list[np.ndarray]:
        back = preimages(flow, np.concatenate(lines), on_failure="return").value
        return list(back.reshape(len(lines), _POINTS, 2))

    return Transport(circles, rays, pulled_back(circles), pulled_back(rays))


def _mapped(flow: Flow, lines: list[np.ndarray]) -> list[np.ndarray]:
    return list(transformed(flow, np.concatenate(lines)).reshape(len(lines), _POINTS, 2))
