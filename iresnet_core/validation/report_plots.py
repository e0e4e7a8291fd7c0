"""The plots of the validation report, drawn by matplotlib without a display.

Each ``draw_*`` fills one axes from the curves of one branch, so that the report and the documentation share them. Lines
differ in style and marker as well as in colour.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from iresnet_core.common import BLACK, BLUE, GREEN, ORANGE, PLOT_STYLE, PURPLE, RED, SKY

__all__ = [
    "draw_inverse",
    "draw_noise",
    "draw_spectral",
    "draw_truncation",
    "inverse_figure",
    "logdet_figure",
    "overview_figure",
    "shown_cases",
    "spectral_figure",
    "svg",
]

Curves = dict[str, Any]

# Label, colour, marker of every method; dashes mean a certificate.
ESTIMATES = {"power": ("power iteration", ORANGE, "o"), "lanczos": ("Lanczos", BLUE, "s")}
CERTIFICATES = {
    "frobenius": ("Frobenius", RED, ":"),
    "holder": ("Hölder", PURPLE, (0, (1, 3))),
    "cholesky": ("Cholesky", GREEN, "--"),
    "gram": ("Gram", SKY, "-."),
    "svd": ("SVD", BLACK, "-"),
}
SOLVERS = {"picard": ("Picard", ORANGE, "o"), "anderson": ("Anderson(5)", BLUE, "s")}
TRUNCATIONS = {"series": (ORANGE, "o"), "Arnoldi": (BLUE, "s"), "mean Jacobian": (GREEN, "^")}
NOISES = ((RED, "v"), (PURPLE, "^"), (ORANGE, "o"), (BLUE, "s"), (GREEN, "D"))
# Characters of the legend's type to an inch, and those that a handle with its margin takes up.
CHARACTERS, HANDLE = 15, 6
LINEAR = 1e-4  # the spectral plot is linear within this relative distance of sigma


def shown_cases(curves: Curves) -> list[str]:
    """Return the branches of the largest dimension, those with something to see."""
    dimension: dict[str, int] = curves["dimension"]
    return [case for case, d in dimension.items() if d == max(dimension.values())]


def draw_spectral(axes: Axes, data: Curves) -> None:
    """Draw estimates from below and certificates from above, relative to the exact norm, against operator products."""
    for method, (label, colour, marker) in ESTIMATES.items():
        line = data["estimates"][method]
        axes.plot(line["products"], line["relative"], color=colour, marker=marker, label=label)
    for method, (label, colour, style) in CERTIFICATES.items():
        axes.axhline(data["bounds"][method], color=colour, linestyle=style, label=label)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
    axes.set_ylim(-1, 12)
    ticks = (-1, -1e-1, -1e-2, -1e-3, 0, 1e-3, 1e-2, 1e-1, 1, 10)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.axhspan(0, 12, color=GREEN, alpha=0.06, linewidth=0)
    # In the gap between the certificates, and in the corner that the estimates leave free.
    axes.text(0.97, 0.82, "certificates", transform=axes.transAxes, ha="right", color="#555555", fontsize=8)
    axes.text(0.97, 0.03, "estimates", transform=axes.transAxes, ha="right", color="#555555", fontsize=8)
    _plain_numbers(axes)
    axes.set_xlabel("operator products")
    axes.set_ylabel(r"distance to the exact norm $\sigma$")


def draw_inverse(axes: Axes, data: Curves) -> None:
    """Draw true error and certified bound, the worst of the batch, against evaluations of g."""
    for solver, (label, colour, marker) in SOLVERS.items():
        line = data[solver]
        axes.plot(line["evaluations"], line["error"], color=colour, marker=marker, label=f"{label}, error")
        axes.plot(line["evaluations"], line["bound"], color=colour, linestyle="--", label=f"{label}, bound")
    axes.set_yscale("log")
    _decades(axes, numticks=9)
    axes.set_xlabel("evaluations of g")
    axes.set_ylabel("distance to the exact inverse")


def draw_truncation(axes: Axes, data: Curves) -> None:
    """Draw the truncation error of one probe and its certificate, the worst of the batch, against products."""
    for method, (colour, marker) in TRUNCATIONS.items():
        line = data["truncation"][method]
        axes.plot(line["products"], _positive(line["error"]), color=colour, marker=marker, label=f"{method}, error")
        axes.plot(line["products"], line["bound"], color=colour, linestyle="--", label=f"{method}, bound")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_numbers(axes)
    _decades(axes, numticks=9)
    axes.set_xlabel("Jacobian products (one probe)")
    axes.set_ylabel("truncation error (nats)")


def draw_noise(axes: Axes, data: Curves, dimension: int) -> None:
    """Draw the root-mean-square error of the answer, against all products spent on it; 1 to 32 probes."""
    for (label, line), (colour, marker) in zip(data["noise"].items(), NOISES, strict=True):
        axes.plot(line["products"], _positive(line["rmse"]), color=colour, marker=marker, label=label)
    axes.axvline(dimension, color=BLACK, linewidth=1, linestyle=":", label=f"cost of the exact answer, d = {dimension}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_numbers(axes, (1, 3))
    _decades(axes, numticks=9)
    axes.set_xlabel("Jacobian products (all probes)")
    axes.set_ylabel("rms error (nats)")


def _positive(values: Sequence[float]) -> list[float]:
    """Leave out zeros, which have no place on a logarithmic axis."""
    return [value if value > 0 else math.nan for value in values]


def _percent(value: float, _: int) -> str:
    if value == 0:
        return r"$\sigma$"
    sign = "\N{MINUS SIGN}" if value < 0 else "+"
    return f"{sign}{abs(100 * value):g} %"


def _plain_numbers(axes: Axes, multiples: tuple[int, ...] = (1, 2, 5)) -> None:
    """Write plain numbers along a logarithmic x axis."""
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=multiples, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _decades(axes: Axes, numticks: int) -> None:
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=numticks))
    axes.yaxis.set_minor_locator(FixedLocator([]))


def _grid(curves: Curves, rows: Sequence[tuple[Callable[[Axes, str], None], str]], height: float) -> Figure:
    """One column per branch, one row a kind of plot; the axes of a row share their scale and one legend."""
    cases = shown_cases(curves)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(max(2.7 * len(cases), 4.5), height * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (draw, title) in zip(parts, rows, strict=True):
            row = part.subplots(1, len(cases), squeeze=False, sharey=True)[0]
            for axes, case in zip(row, cases, strict=True):
                draw(axes, case)
                axes.set_title(_title(case))
                if axes is not row[0]:
                    axes.set_ylabel("")
            if title:
                part.suptitle(title, fontsize=11)
            handles, labels = row[0].get_legend_handles_labels()
            fitting = int(CHARACTERS * figure.get_figwidth()) // (max(map(len, labels)) + HANDLE)
            columns = max(1, min(len(labels), fitting))
            part.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _title(case: str) -> str:
    dimension, constant = case.split("_")
    return f"{dimension[0]} = {dimension[1:]}, c = {constant[1:]}"


def overview_figure(curves: Curves, case: str) -> Figure:
    """Return one branch's spectral norm, inverse and log-determinant side by side; the picture of the documentation."""
    panels = (
        ("Spectral norm", draw_spectral, curves["spectral"][case]),
        ("Inverse", draw_inverse, curves["inverse"][case]),
        ("Log-determinant", draw_truncation, curves["logdet"][case]),
    )
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(11.4, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(1, len(panels), squeeze=False, width_ratios=(1.12, 1, 1))[0]
        for part, (title, draw, data) in zip(parts, panels, strict=True):
            axes = part.subplots()
            draw(axes, data)
            axes.set_title(title)
            part.legend(
                loc="outside lower center",
                ncols=4 if draw is draw_spectral else 2,
                columnspacing=1,
                handlelength=1.6,
                fontsize=8,
                frameon=False,
            )
    return figure


def spectral_figure(curves: Curves) -> Figure:
    """Return the estimates and certificates of the spectral norm."""
    return _grid(curves, [(lambda axes, case: draw_spectral(axes, curves["spectral"][case]), "")], 3.6)


def inverse_figure(curves: Curves) -> Figure:
    """Return the convergence of the inverse with its bound."""
    return _grid(curves, [(lambda axes, case: draw_inverse(axes, curves["inverse"][case]), "")], 3.4)


def logdet_figure(curves: Curves) -> Figure:
    """Return the log-determinant: the whole error above, its certified part below."""

    def noise(axes: Axes, case: str) -> None:
        draw_noise(axes, curves["logdet"][case], curves["dimension"][case])

    def truncation(axes: Axes, case: str) -> None:
        draw_truncation(axes, curves["logdet"][case])

    return _grid(
        curves,
        [(noise, "Whole error of the answer"), (truncation, "Its certified part: truncation, for given probes")],
        3.6,
    )


def svg(figure: Figure) -> str:
    """Return a figure as an SVG document."""
    buffer = io.StringIO()
    with matplotlib.rc_context(PLOT_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
