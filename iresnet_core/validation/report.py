"""The validation report: one HTML page with a table and plots, readable without a network."""

import platform
import sys
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from iresnet_core.files import write_text
from iresnet_core.validation.agreement import REFERENCE
from iresnet_core.validation.runs import Record, disagreeing, violated
from iresnet_core.validation.summary import (
    AGREEMENT_HEADS,
    AGREEMENT_TITLE,
    TITLES,
    accuracy_remarks,
    accuracy_verdict,
    agreement_remarks,
    agreement_rows,
    agreement_verdict,
    bound_text,
    by_case,
    held_text,
    two_digits,
    z_score_text,
)

__all__ = ["write_report"]

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
.verdict { padding: .7rem 1rem; border-left: 5px solid #009e73; background: #eaf6f1; font-weight: 600; }
.verdict.no { border-color: #d55e00; background: #fcefe6; }
figure { margin: 1rem 0; } figure img { width: 100%; height: auto; } figcaption { color: #444; font-size: .93rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; }
dt { color: #555; } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; width: 100%; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #e4e7ea; white-space: nowrap; }
th { background: #f4f6f8; } th:first-child, td:first-child { text-align: left; }
tr.group td { color: #0072b2; font-weight: 600; padding-top: .5rem; }
td.no { background: #fcefe6; color: #a33f00; font-weight: 700; } td.yes { color: #00704f; }
details summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
footer { color: #666; margin: 3rem 0 1rem; font-size: .87rem; }
"""

_CAPTIONS = {
    "spectral": (
        "Spectral norm",
        "Distance to the exact norm of the middle layer, against operator products; the scale is logarithmic on both "
        "sides of the norm. Below it: estimates, which rise towards the norm and certify nothing: a weight divided by "
        "one of them still exceeds its cap by as much as the estimate falls short. Lanczos arrives with a fraction of "
        "the products that power iteration takes. Above it, shaded: certified bounds, at a cost of their own. SVD is "
        "exact, Gram and Cholesky are close, Frobenius and Hölder several times too large.",
    ),
    "inverse": (
        "Inverse",
        "Largest distance of the batch to the exact solution of x + g(x) = y (by Newton's method), against evaluations "
        "of g. Solid: the true error. Dashed: the certified bound that is returned with the answer. It stays above the "
        "error, and levels off at the rounding that it cannot exclude.",
    ),
    "logdet": (
        "Log-determinant",
        "Upper row: root-mean-square error of the batch against the exact log|det(I + J)|, for 1, 2, 4, ... 32 probes, "
        "over all the Jacobian products that they took. Adding the trace of J exactly and probing only the rest takes "
        "most of the noise away. The dotted line is the cost of the exact answer. Lower row: one probe, held fixed, so "
        "that only the truncation is left, with its certified bound (dashed); the largest of the batch.",
    ),
}


def write_report(
    records: Sequence[Record], curves: dict[str, Any], directory: Path, agreement: Sequence[Record] = ()
) -> Path:
    """Write ``directory/index.html``.

    Parameters
    ----------
    records : sequence of dict
        Records of `iresnet_core.validation.run`.
    curves : dict
        Curves of `iresnet_core.validation.error_curves`.
    directory : Path
        Made if it does not exist.
    agreement : sequence of dict
        Records of `iresnet_core.validation.compare_backends`; none where there is one backend.

    Returns
    -------
    Path
        The page. It is written under another name and renamed.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "index.html"
    write_text(page, _page(records, curves, agreement))
    return page


def _page(records: Sequence[Record], curves: dict[str, Any], agreement: Sequence[Record]) -> str:
    from iresnet_core.validation import report_plots

    figures = (
        {}
        if not curves["dimension"]
        else {
            "spectral": report_plots.spectral_figure(curves),
            "inverse": report_plots.inverse_figure(curves),
            "logdet": report_plots.logdet_figure(curves),
        }
    )
    plots = "".join(_figure(name, report_plots.svg(figure)) for name, figure in figures.items())
    wrong = violated(records)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>iresnet validate</title>
<style>{_CSS}</style>
</head>
<body>
<h1>Validation of iresnet-core</h1>
<p>Every method of the three primitives on trained residual branches, on convolutions and on a deep flow, next to the
exact answer in float64.</p>
<p class="verdict{" no" if wrong else ""}">{escape(accuracy_verdict(records))}</p>
{_remarks(records)}
{_facts(records)}
{_agreement(agreement)}
{plots}
<h2>All comparisons</h2>
<p>rmse: against the exact answer, probe noise included. Max error: the part that the bound is about; for randomised
log-determinants the distance to what the same probes give without truncation, for Lipschitz bounds their excess over
the exact norm. z: mean error over its standard error; the truncation of a short estimate may show in it and still be
within its bound. Products: operator or Jacobian products an answer, evaluations of g for the inverse. A dash: unbiased,
so that a single answer has no bound.</p>
{_tables(records)}
<footer>Written by <code>iresnet validate --report</code>. Nothing on this page is loaded from elsewhere.</footer>
</body>
</html>
"""


def _facts(records: Sequence[Record]) -> str:
    cases = list(dict.fromkeys(record["case"] for record in records))
    facts = {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": ", ".join(
            [
                f"Python {platform.python_version()}",
                *(_versioned(name) for name in ("iresnet-core", "numpy", "scipy")),
                *_frameworks(records),
            ]
        ),
        "Backends": ", ".join(dict.fromkeys(f"{r['backend']} ({r['dtype']})" for r in records)),
        "Cases": ", ".join(cases) + "; d is the dimension, c the block constant, conv28x28 a branch of convolutions on "
        "images of 28 x 28, flow2_8blocks a flow of eight blocks of dimension 2",
        "Comparisons": f"{len(records)}, on {max(r['samples'] for r in records)} inputs a branch",
    }
    return "<dl>" + "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()) + "</dl>"


def _versioned(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} (not installed)"


def _frameworks(records: Sequence[Record]) -> list[str]:
    """Name the versions of the backends' frameworks; they have been imported by now."""
    names = dict.fromkeys(record["backend"] for record in records)
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    return [f"{name} {version}" for name, version in versions.items() if version and name != REFERENCE]


def _figure(name: str, svg: str) -> str:
    """Embed a plot as an image, so that the identifiers of two SVG documents cannot meet."""
    title, caption = _CAPTIONS[name]
    data = b64encode(svg.encode()).decode()
    return (
        f'<h2>{title}</h2>\n<figure id="{name}"><img alt="{escape(title)}: plot" '
        f'src="data:image/svg+xml;base64,{data}"><figcaption>{caption}</figcaption></figure>\n'
    )


def _remarks(records: Sequence[Record]) -> str:
    sentences = accuracy_remarks(records)
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>" if sentences else ""


def _agreement(records: Sequence[Record]) -> str:
    """Return the section on the agreement of the backends; nothing where there is one backend."""
    if not records:
        return ""
    rows = []
    for *cells, word in agreement_rows(records):
        style = {"yes": ' class="yes"', "NO": ' class="no"'}.get(word, "")
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + f"<td{style}>{word}</td></tr>")
    header = "".join(f"<th>{head}</th>" for head in AGREEMENT_HEADS)
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in agreement_remarks(records))
    return f"""<h2>Agreement of the backends</h2>
<p class="verdict{" no" if disagreeing(records) else ""}">{escape(agreement_verdict(records))}</p>
{f"<ul>{sentences}</ul>" if sentences else ""}
<p>{AGREEMENT_TITLE}: every method once more on each backend, with noise and start vectors drawn with NumPy; differences
are relative to the size of the answer. Counts are iterations and products an answer, which rounding may change in
float32.</p>
<div class="scroll"><table id="agreement"><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
"""


def _tables(records: Sequence[Record]) -> str:
    return "".join(
        _table(" · ".join(group[0][key] for key in ("case", "backend", "dtype")), group) for group in by_case(records)
    )


def _table(title: str, records: Sequence[Record]) -> str:
    rows = []
    primitive = ""
    for record in records:
        if record["primitive"] != primitive:
            primitive = record["primitive"]
            rows.append(f'<tr class="group"><td colspan="9">{TITLES[primitive]}</td></tr>')
        word = held_text(record)
        cells = [
            two_digits(record["rmse"]),
            two_digits(record["max_certified_error"]),
            bound_text(record),
            word,
            two_digits(record["std_error"]),
            z_score_text(record),
            "" if record["products"] is None else str(record["products"]),
            f"{1000 * record['seconds']:.1f}",
        ]
        style = {"yes": "yes", "NO": "no"}.get(word, "")
        rows.append(
            f"<tr><td>{escape(record['method'])}</td>"
            + "".join(
                f'<td class="{style}">{escape(cell)}</td>' if i == 3 and style else f"<td>{escape(cell)}</td>"
                for i, cell in enumerate(cells)
            )
            + "</tr>"
        )
    heads = ("method", "rmse", "max error", "bound", "held", "std error", "z", "products", "ms")
    header = "".join(f"<th>{head}</th>" for head in heads)
    return (
        f"<details open><summary>{escape(title)}</summary>\n"
        f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "</details>\n"
    )
