"""The command line `iresnet`.

typer, rich and matplotlib come with the extra ``cli`` and are imported only when the command runs, so that a missing one
is answered with a sentence and not with a traceback.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from iresnet_core import example_data, validate
from iresnet_core.backends import available_backends, backend
from iresnet_core.errors import InvalidArgumentError, IResNetError, MissingDependencyError

if TYPE_CHECKING:
    import typer
    from rich.console import Console
    from rich.table import Table

__all__ = ["build_app", "main"]

USAGE_ERROR = 2
_EXTRA = ("typer", "rich", "matplotlib")
_FOR_TESTS = frozenset({"array_api_strict"})  # an engine, but nobody's choice
_TITLES = {
    "spectral_norm": "spectral norm",
    "lipschitz_bound": "Lipschitz bound",
    "inverse": "inverse",
    "logdet": "log-determinant",
}


def main() -> None:
    """Run the command line; the entry point of the script `iresnet`."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        print(
            f"iresnet needs {', '.join(missing)}, which this Python does not have. Install the command line with\n"
            '    pip install "iresnet-core[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(USAGE_ERROR)
    build_app()()


def build_app() -> "typer.Typer":
    """Return the typer application."""
    import typer
    from rich.console import Console

    app = typer.Typer(
        help="Invertible residual networks: spectral norms, inverses and log-determinants, each with its error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,
    )

    @app.callback()
    def root(
        show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    ) -> None:
        if show_version:
            typer.echo(f"iresnet-core {_version()}")
            raise typer.Exit

    @app.command("validate")
    def validate_command(
        backends: Annotated[
            list[str] | None,
            typer.Option("--backend", metavar="NAME", help="Engine, repeatable; 'all' takes those installed."),
        ] = None,
        cases: Annotated[
            list[str] | None,
            typer.Option("--case", metavar="CASE", help=f"Branch, repeatable: {', '.join(example_data.cases())}."),
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
    ) -> None:
        """Compare every method with the exact answer on trained branches that ship with the package.

        Exit status 1 means that a certified bound did not hold, 2 that the command could not run.
        """
        with _usage_errors():
            engines = _chosen_backends(backends or ["numpy"])
            chosen = _distinct(cases or example_data.cases(), example_data.cases(), "case")
            precisions = _distinct(dtypes or ["float64"], ("float64", "float32"), "dtype")
            _require_places(report, json_file)
            console = Console(highlight=False)
            begin = time.perf_counter()
            with _progress_bar() as progress:
                records = validate.run(engines, chosen, seed, progress, precisions)
            seconds = time.perf_counter() - begin
            for group in _groups(records):
                console.print(_table(group, several=len(engines) * len(precisions) > 1))
            _print_legend(console)
            if json_file is not None:
                _write_atomically(json_file, json.dumps([_finite(record) for record in records], indent=1) + "\n")
                console.print(f"Records: {json_file}", soft_wrap=True)
            if report is not None:
                console.print(f"Report: {_report(records, engines[0], chosen, seed, report)}", soft_wrap=True)
            _print_verdict(console, records, seconds)
        if validate.violated(records):
            raise typer.Exit(1)

    return app


def _version() -> str:
    try:
        return version("iresnet-core")
    except PackageNotFoundError:  # a source tree on the path
        return "(not installed)"


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit status 2."""
    try:
        yield
    except (IResNetError, OSError) as error:
        print(f"iresnet: {error}", file=sys.stderr)
        raise SystemExit(USAGE_ERROR) from None


def _distinct(asked: Sequence[str], known: Sequence[str], kind: str) -> list[str]:
    """The values asked for, each once, all of them known."""
    for value in asked:
        if value not in known:
            raise InvalidArgumentError(f"there is no {kind} {value!r}; choose from {', '.join(known)}.")
    return list(dict.fromkeys(asked))


def _chosen_backends(asked: Sequence[str]) -> list[str]:
    """Resolve "all", and fail early where a framework is absent."""
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
            print(f"skipped: {error}", file=sys.stderr)
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


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, and only where somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def update(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label)

        yield update


def _groups(records: Sequence[validate.Record]) -> list[list[validate.Record]]:
    """The records of each case, engine and dtype, in the order of the run."""
    groups: dict[tuple[str, ...], list[validate.Record]] = {}
    for record in records:
        groups.setdefault((record["case"], record["backend"], record["dtype"]), []).append(record)
    return list(groups.values())


def _table(records: Sequence[validate.Record], several: bool) -> "Table":
    """One case: a row a method, narrow enough for 80 columns."""
    from rich.table import Table
    from rich.text import Text

    first = records[0]
    engine = f" ({first['backend']}, {first['dtype']})" if several else ""
    table = Table(
        title=f"{first['case']}{engine}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", no_wrap=True)
    for name in ("rmse", "max error", "bound"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("held", no_wrap=True)
    for name in ("z", "products", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    primitive = ""
    for record in records:
        if record["primitive"] != primitive:
            primitive = record["primitive"]
            table.add_row(Text(_TITLES[primitive], style="cyan"))
        table.add_row(
            f"  {record['method']}",
            _number(record["rmse"]),
            _number(record["max_certified_error"]),
            _number(record["max_bound"]),
            Text(*_held(record)),
            _score(record),
            "" if record["products"] is None else str(record["products"]),
            f"{1000 * record['seconds']:.1f}" if record["seconds"] < 1 else f"{1000 * record['seconds']:.0f}",
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def _held(record: validate.Record) -> tuple[str, str]:
    """Say whether the bound held, and in which style."""
    if record["certificate"] == "unbiased":
        return "-", "dim"
    if not record["bound_violations"]:
        return "yes", "green"
    return ("no*", "yellow") if record["certificate"] == "probabilistic" else ("NO", "bold red")


def _score(record: validate.Record) -> str:
    if record["z"] is None:
        return ""
    return f"{record['z']:.1f}" + ("" if record["within_error_bar"] else "!")


def _print_legend(console: "Console") -> None:
    console.print(
        "\nrmse: against the exact answer, probe noise included. max error: the part that the bound is about (log-"
        "determinant estimators: the distance to the value of the same probes without truncation; bounds: their "
        "excess). z: mean error over its standard error; a truncated estimate may have a large one within its bound. "
        "products: operator or Jacobian products an answer, evaluations of g for the inverse.",
        style="dim",
    )


def _print_verdict(console: "Console", records: Sequence[validate.Record], seconds: float) -> None:
    """The last line: what held."""
    bounded = [r for r in records if r["certificate"] not in ("unbiased", "probabilistic")]
    answers = sum(r["samples"] for r in bounded)
    noisy = [r for r in records if r["within_error_bar"] is not None]
    outside = [r for r in noisy if not r["within_error_bar"]]
    unlikely = [r for r in records if r["certificate"] == "probabilistic" and r["bound_violations"]]
    wrong = validate.violated(records)
    console.print(
        f"{len(records)} comparisons on {len({r['case'] for r in records})} branches in {seconds:.0f} s. "
        f"{len(noisy) - len(outside)} of {len(noisy)} randomised estimates within 5 standard errors and their bias bound."
    )
    for record in outside:
        console.print(f"outside its error bar: {_name(record)}, z = {record['z']:.1f}", style="yellow")
    for record in unlikely:
        console.print(f"* probabilistic bound exceeded, which its probability allows: {_name(record)}", style="yellow")
    if not wrong:
        console.print(f"All certified bounds held ({answers} answers).", style="bold green")
        return
    for record in wrong:
        console.print(f"violated: {_name(record)}, {record['bound_violations']} of {record['samples']}", style="red")
    console.print(
        f"{sum(r['bound_violations'] for r in wrong)} of {answers} certified bounds VIOLATED.", style="bold red"
    )


def _name(record: validate.Record) -> str:
    keys = ("case", "backend", "dtype", "primitive", "method")
    return " ".join(str(record[key]) for key in keys)


def _finite(record: validate.Record) -> validate.Record:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _write_atomically(path: Path, text: str) -> None:
    """Write beside the target and rename, so that nobody ever reads half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes private files; give the mode that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _report(records: list[Any], engine: str, cases: Sequence[str], seed: int, directory: Path) -> Path:
    """Compute the curves and write the page."""
    from iresnet_core import report
    from iresnet_core.validation_curves import curves

    with _progress_bar() as progress:
        computed = curves(engine, cases, seed, progress)
    path = directory / "index.html"
    _write_atomically(path, report.page(records, computed))
    return path
