"""The picture of classification errors over the Lipschitz constant of the blocks."""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["error_curves"]

Curve = tuple[list[float], list[float], list[float], dict[str, float]]


def error_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draw for every data set the errors and their standard errors over the caps, beside those without a cap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, (caps, errors, spread, others)) in zip(panels, curves.items(), strict=True):
        panel.errorbar(caps, errors, yerr=spread, marker="o", capsize=3, label="capped at c")
        for (other, error), (style, colour) in zip(others.items(), (("--", "black"), (":", "tab:red")), strict=False):
            label = "vanilla, no cap" if other == "vanilla" else "plain ResNet"
            panel.axhline(error, linestyle=style, color=colour, label=label)
        panel.set_xlabel("cap c on the Lipschitz constant of a block")
        panel.set_ylabel("test error, per cent")
        panel.set_title(name)
        panel.set_ylim(bottom=0)
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
        panel.legend()
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
