"""The command `iresnet reproduce`: a figure or a table again, beside its comparators, with its record and picture."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from iresnet_core.commands import INTERRUPTED
from iresnet_core.commands.terminal import FAILED, one_thread, usage_errors, wide_console
from iresnet_core.errors import (
    DataFileError,
    InvalidArgumentError,
    IResNetError,
    MissingDependencyError,
    RunError,
)
from iresnet_core.reproduction import (
    TARGETS,
    Record,
    Request,
    docs_folder,
    find_target,
    keep_record,
    write_page,
    write_record,
)

__all__ = ["reproduce_command"]

_PAGE = "page"


def reproduce_command(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help=f"{', '.join((*TARGETS, _PAGE))}; page writes the page of all results."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default runs/reproduce-WHAT.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="S", help="Training time of every model; default by WHAT.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of data, models and trainings.")] = 0,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAMES", help="Data sets, as a,b; default all of WHAT.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="NAMES", help="Models, as a,b; default all that can be made.")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The sizes of the paper, for a GPU.")] = False,
    device: Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu or cuda.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Put record and pictures onto the page docs/reproduction.md of this clone.")
    ] = False,
) -> None:
    """Make a figure or a table of the report again, beside its comparators.

    The run folder holds what is finished; after Ctrl-C the same command goes on from there. It ends with a record
    (WHAT.json) and pictures.
    """
    console = wide_console()
    with usage_errors():
        if what == _PAGE:
            console.print(f"Page: {write_page(Path.cwd())}", soft_wrap=True)
            return
        function = find_target(what)
        request = Request(
            out=out or Path("runs") / f"reproduce-{what}",
            seconds=seconds,
            seed=seed,
            data=_names(data),
            models=_names(models),
            paper=paper,
            device=device,
            say=lambda line: console.print(line, soft_wrap=True, markup=False),
        )
        if keep:
            _require_clone()
        request.out.mkdir(parents=True, exist_ok=True)
        try:
            with one_thread():
                record = function(request)
        except KeyboardInterrupt:
            console.print(
                f"Interrupted; what is finished stays in {request.out}. The same command goes on from there.",
                style="yellow",
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        except (DataFileError, InvalidArgumentError, MissingDependencyError, RunError):  # the user can mend these
            raise
        except IResNetError as error:
            print(f"iresnet: {error}", file=sys.stderr)
            raise typer.Exit(FAILED) from error
        path = write_record(request.out, record)
        console.print(_table(record))
        for note in record.notes:
            console.print(note, soft_wrap=True, markup=False)
        for picture in record.pictures:
            console.print(f"Picture: {request.out / picture}", soft_wrap=True)
        console.print(f"Record: {path}", soft_wrap=True)
        if keep:
            chosen = (*sorted(request.data), *sorted(request.models), *(["paper"] if request.paper else []))
            console.print(f"Page: {keep_record(Path.cwd(), request.out, record, chosen)}", soft_wrap=True)


def _names(listed: str | None) -> tuple[str, ...]:
    """Return the names in a list with commas."""
    return tuple(name.strip() for name in (listed or "").split(",") if name.strip())


def _require_clone() -> None:
    """Fail before the work, not after it."""
    docs_folder(Path.cwd())


def _table(record: Record) -> Table:
    table = Table(title=record.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in record.columns:
        table.add_column(column)
    for row in record.rows:
        table.add_row(
            *("-" if entry is None else f"{entry:.4g}" if isinstance(entry, float) else str(entry) for entry in row)
        )
    return table
