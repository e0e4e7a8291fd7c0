"""The command `iresnet validate`: every method against the exact answer, as a table, as JSON and as a page."""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from iresnet_core import validation
from iresnet_core.backends import available_backends, backend
from iresnet_core.commands.in_chunks import DaskOption
from iresnet_core.commands.terminal import FAILED, one_thread, progress_bar, usage_errors, wide_console
from iresnet_core.errors import InvalidArgumentError, IResNetError, MissingDependencyError
from iresnet_core.files import write_text
from iresnet_core.parallel import open_workers
from iresnet_core.validation import (
    AGREEMENT_HEADS,
    AGREEMENT_TITLE,
    TITLES,
    Record,
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

__all__ = ["validate_command"]

_FOR_TESTS = frozenset({"array_api_strict"})  # it checks the core against the standard; "all" leaves it out
_LEGEND = (
    "rmse: against the exact answer, probe noise included. max error: the part that the bound is about (randomised "
    "log-determinants: distance to what the same probes give without truncation; Lipschitz bounds: excess over the "
    'exact norm). held: no bound was exceeded; "-" has none, being unbiased. z: mean error over its standard error; '
    "the truncation of a short estimate may show in it, within its bound. products: operator or Jacobian products an "
    "answer, or evaluations of g."
)
_AGREEMENT_LEGEND = (
    "Every method once more on each backend, with noise and start vectors drawn with NumPy: the largest difference to "
    "NumPy's answer, relative to the size of the answer. counts: iterations and products an answer, which rounding may "
    "change in float32."
)


def validate_command(
    backends: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="Backend, repeatable; 'all' takes those that run here."),
    ] = None,
    cases: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="CASE", help=f"Case, repeatable: {', '.join(validation.cases())}."),
    ] = None,
    dtypes: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="DTYPE", help="float64 (default) or float32, repeatable."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write DIR/index.html, one page with table and plots.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the records, a list of objects.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random probes.")] = 0,
    dask: DaskOption = None,
) -> None:
    """Compare every method with the exact answer on trained branches, on convolutions and on a flow of eight blocks.

    Backends other than NumPy are also compared with NumPy on the same noise. Exit status 1 means that a certified
    bound did not hold, backends disagree or a method gave up, 2 that the command could not run.
    """
    with usage_errors():
        backends = _chosen_backends(backends or ["numpy"])
        chosen = _distinct(cases or validation.cases(), validation.cases(), "case")
        precisions = _distinct(dtypes or ["float64"], ("float64", "float32"), "dtype")
        if seed < 0:
            raise InvalidArgumentError(f"--seed {seed}: a seed must not be negative.")
        _require_places(report, json_file)
    console = wide_console()
    begin = time.perf_counter()
    try:
        records, common = _records(backends, chosen, precisions, seed, dask)
    except IResNetError as error:
        print(f"iresnet: the validation could not finish: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from error
    seconds = time.perf_counter() - begin
    number = f"{len(chosen)} case{'s' if len(chosen) > 1 else ''}"
    for group in by_case(records):
        console.print()
        console.print(_table(group, several=len(backends) * len(precisions) > 1))
    console.print(f"\n{_LEGEND}\n", style="dim")
    if common:
        console.print(_agreement_table(common))
        console.print(f"\n{_AGREEMENT_LEGEND}\n", style="dim")
    with usage_errors():
        if json_file is not None:
            write_text(json_file, json.dumps([_finite(record) for record in (*records, *common)], indent=1) + "\n")
            console.print(f"Records: {json_file}", soft_wrap=True)
        if report is not None:
            page = _write_report(records, common, backends[0], chosen, seed, report)
            console.print(f"Report: {page}", soft_wrap=True)
    for sentence in (*accuracy_remarks(records), *agreement_remarks(common)):
        console.print(sentence, style="bold red" if sentence.startswith(("violated", "disagrees")) else "yellow")
    console.print(f"{len(records)} comparisons on {number} in {seconds:.0f} s.")
    wrong, apart = validation.violated(records), validation.disagreeing(common)
    console.print(accuracy_verdict(records), style="bold red" if wrong else "bold green")
    if common:
        console.print(agreement_verdict(common), style="bold red" if apart else "bold green")
    if wrong or apart:
        raise typer.Exit(FAILED)


def _records(
    backends: Sequence[str], cases: Sequence[str], dtypes: Sequence[str], seed: int, dask: str | None
) -> tuple[list[Record], list[Record]]:
    """Return the records of all methods and those of the agreement, computed here or by workers."""
    if dask is None:
        with one_thread(), progress_bar() as progress:
            records = validation.run(backends, cases, seed, progress, dtypes)
            return records, validation.compare_backends(backends, cases, seed, progress)
    job = validation.ValidationJob(tuple(backends), tuple(cases), tuple(dtypes), seed)
    found = {}
    with open_workers(dask) as they, progress_bar() as progress:
        for k, part in they.chunks(job, range(job.count)):
            found[k] = part
            progress(len(found), job.count, "parts of the validation")
    return [record for k in range(job.count - 1) for record in found[k]], found[job.count - 1]


def _distinct(asked: Sequence[str], known: Sequence[str], kind: str) -> list[str]:
    """Return the values asked for, each once, all of them known."""
    for value in asked:
        if value not in known:
            raise InvalidArgumentError(f"there is no {kind} {value!r}; choose from {', '.join(known)}.")
    return list(dict.fromkeys(asked))


def _chosen_backends(asked: Sequence[str]) -> list[str]:
    """Resolve "all", and fail early where a framework is absent or cannot run here."""
    if "all" not in asked:
        names = list(dict.fromkeys(asked))
        for name in names:
            backend(name)
        return names
    installed = []
    for name in available_backends():
        if name in _FOR_TESTS:
            continue
        try:
            backend(name)
        except MissingDependencyError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            installed.append(name)
    return installed


def _require_places(report: Path | None, json_file: Path | None) -> None:
    """Fail before the work, not after it."""
    if json_file is not None:
        if json_file.is_dir():
            raise InvalidArgumentError(f"--json {json_file} is a folder, a file is needed.")
        json_file.parent.mkdir(parents=True, exist_ok=True)
    if report is not None:
        if report.exists() and not report.is_dir():
            raise InvalidArgumentError(f"--report {report} is a file, a folder is needed.")
        report.mkdir(parents=True, exist_ok=True)


def _table(records: Sequence[Record], several: bool) -> Table:
    """Lay out one case, one row for each method, narrow enough for 80 columns."""
    first = records[0]
    backend = f" ({first['backend']}, {first['dtype']})" if several else ""
    table = Table(
        title=f"{first['case']}{backend}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("method", "rmse", "max error", "bound", "held", "z", "products", "ms"):
        table.add_column(column, justify="left" if column in ("method", "held") else "right", no_wrap=True)
    primitive = ""
    for record in records:
        if record["primitive"] != primitive:
            primitive = record["primitive"]
            table.add_row(Text(TITLES[primitive], style="cyan"))
        word = held_text(record)
        table.add_row(
            f"  {record['method']}",
            two_digits(record["rmse"]),
            two_digits(record["max_certified_error"]),
            bound_text(record),
            Text(word, style={"yes": "green", "NO": "bold red", "no*": "yellow"}.get(word, "")),
            z_score_text(record),
            "" if record["products"] is None else str(record["products"]),
            f"{1000 * record['seconds']:.1f}" if record["seconds"] < 1 else f"{1000 * record['seconds']:.0f}",
        )
    return table


def _agreement_table(records: Sequence[Record]) -> Table:
    """Lay out the agreement, one row for each primitive and backend."""
    table = Table(
        title=AGREEMENT_TITLE, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in AGREEMENT_HEADS:
        table.add_column(
            column, justify="left" if column in ("primitive", "backend", "held") else "right", no_wrap=True
        )
    shown = ""
    for primitive, *cells, word in agreement_rows(records):
        table.add_row(
            primitive if primitive != shown else "",
            *cells,
            Text(word, style={"yes": "green", "NO": "bold red"}.get(word, "")),
        )
        shown = primitive
    return table


def _finite(record: Record) -> Record:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _write_report(
    records: Sequence[Record],
    common: Sequence[Record],
    backend: str,
    cases: Sequence[str],
    seed: int,
    directory: Path,
) -> Path:
    """Compute the curves and write the page."""
    from iresnet_core.validation import error_curves, write_report

    with one_thread(), progress_bar() as progress:
        computed = error_curves(backend, cases, seed, progress)
    return write_report(records, computed, directory, common)
