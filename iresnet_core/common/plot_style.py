"""Colours and settings that all plots share.

The colours are those of Okabe and Ito, which readers with any kind of colour vision can tell apart.
"""

from typing import Any

__all__ = ["BLACK", "BLUE", "GREEN", "ORANGE", "PLOT_STYLE", "PURPLE", "RED", "SKY"]

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
PLOT_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "path",
    "svg.hashsalt": "iresnet",
}
