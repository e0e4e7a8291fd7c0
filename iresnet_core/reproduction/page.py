"""The page `docs/reproduction.md`, written from the records that are kept beside it; nothing on it is typed by hand."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.files import write_text
from iresnet_core.reproduction.record import Record, read_record, write_record
from iresnet_core.reproduction.targets import TARGETS

__all__ = ["docs_folder", "keep_record", "page_text", "write_page"]

_HEAD = """# The report, reproduced

<!-- This page is written by `iresnet reproduce page` from the records in docs/reproduction. Do not edit it. -->

Every figure and every table of the reading report from which this project began is one command. Each stands here
beside the comparators of the report, trained in the same run on the same data, and beside what was published.
All numbers come from the records that the commands wrote.

- **Time.** Models that are compared are trained for the same time, in table 1 for the same steps. On a CPU the clock is
  the processor time of a process with one thread, and of the compilers that it calls, so that a busy machine changes
  nothing; on a GPU it is wall time. Evaluations are not counted. During the time the learning rate goes down along
  half a cosine, and the state that is best on the validation set is scored on the test set.
- **Size.** Outside of table 1 the widths of the comparators are chosen so that they have as many parameters as our
  model, within some per cent.
- **Errors.** The number after ± is one standard error of a mean over the test samples. Our own densities come from
  certified log-determinants; where they are not exact, the bound on their bias is given too.
- **Comparators.** They come from other packages: `python -m pip install ".[cli,torch,peers]"` in a clone.
  Without them, our own models are trained alone.
- **Versions.** The date and the settings of a run are at the end of its section. Where defaults have changed since, as
  the changelog says, the command gives what today's come to.

`iresnet reproduce TARGET` makes one of these sections again; it keeps what is finished, so that after Ctrl-C the same
command goes on. `iresnet reproduce TARGET --keep` puts the result onto this page, in a clone of the repository.
Targets, options and the files that are needed are in [Reproducing the figures and tables](reproduce.md).
"""


def docs_folder(root: Path) -> Path:
    """Return the folder of the records below the root of a clone.

    Raises
    ------
    InvalidArgumentError
        If `root` is no clone.
    """
    if not (root / "mkdocs.yml").is_file() or not (root / "docs").is_dir():
        raise InvalidArgumentError(
            f"{root} is not the root of a clone of iresnet-core: it has no mkdocs.yml and docs. Run the command there."
        )
    return root / "docs" / "reproduction"


def keep_record(root: Path, run: Path, record: Record, chosen: Sequence[str] = ()) -> Path:
    """Copy a record and its pictures from a run folder to the page, and write the page.

    A record of the `chosen` data sets and models alone gets a section of its own, beside that of the run of all.
    """
    folder = docs_folder(root)
    folder.mkdir(exist_ok=True)
    label = "-".join(("", *chosen))
    kept = [f"{Path(picture).stem}{label}{Path(picture).suffix}" for picture in record.pictures]
    for picture, name in zip(record.pictures, kept, strict=True):
        shutil.copyfile(run / picture, folder / name)
    write_record(folder, replace(record, pictures=tuple(kept)), label)
    return write_page(root)


def write_page(root: Path) -> Path:
    """Write `docs/reproduction.md` again, and return its path."""
    path = docs_folder(root).with_suffix(".md")
    write_text(path, page_text(docs_folder(root)))
    return path


def page_text(folder: Path) -> str:
    """Return the page for the records in a folder, in the order of the table of targets."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem) if folder.is_dir() else []
    records = [(read_record(path), path.stem) for path in paths]
    order = list(TARGETS)
    records.sort(key=lambda one: order.index(one[0].name) if one[0].name in order else len(order))
    sections = [_section(record, ", ".join(stem.removeprefix(record.name).split("-")[1:])) for record, stem in records]
    sections = sections or ["No run has been kept yet.\n"]
    return "\n".join((_HEAD, *sections))


def _section(record: Record, chosen: str = "") -> str:
    """Return the section of a record; the title says which data sets and models it is of, where not of all."""
    title = f"{record.title} ({chosen})" if chosen else record.title
    lines = [f"## {title}", "", "```console", f"$ {record.command}", "```", ""]
    lines += _table(record.columns, record.rows)
    for note in record.notes:
        lines += ["", note]
    for picture in record.pictures:
        lines += ["", f"![{record.title}](reproduction/{picture})"]
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    settings = ", ".join(f"{name} {_entry(value)}" for name, value in record.settings.items())
    lines += ["", f"Run of {record.date} on {record.machine}; seed {record.seed}; {_duration(record.seconds)} in all, "]
    lines[-1] += f"evaluations included. {versions}." + (f" Settings: {settings}." if settings else "")
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def line(entries: Sequence[str]) -> str:
        return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"

    return [line(columns), "|" + "---|" * len(columns), *(line(tuple(map(_entry, row))) for row in rows)]


def _entry(value: Any) -> str:
    """Return a number with three decimals, or two digits where it is small."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.3f}".rstrip("0").rstrip(".") if value == round(value) else f"{value:.3f}"
    return f"{value:.1e}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
