"""The log of a training: a table with one row for each evaluation, to which rows are only added."""

import csv
import hashlib
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iresnet_core.errors import RunError
from iresnet_core.files import write_text

__all__ = ["append_row", "forget_after", "log_digest", "read_log"]

_COLUMNS = {"step", "seconds", "train_nats", "validation_nats", "validation_error", "lipschitz", "learning_rate"}
_MAY_BE_EMPTY = ("gradient_norm", "lipschitz")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row; the first one sets the columns."""
    new = not path.exists()
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(row)
        writer.writerow(["" if value is None else value for value in row.values()])
        file.flush()
        os.fsync(file.fileno())


def log_digest(path: Path) -> str:
    """Return the SHA-256 of the log; that of nothing where there is none yet."""
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()


def read_log(path: Path) -> list[dict[str, float | None]]:
    """Return the rows; none where there is no log.

    Raises
    ------
    RunError
        If it is not the log of a training, or damaged.
    """
    if not path.is_file():
        return []
    head, rows = _cells(path)
    return [_numbers(path, head, row) for row in rows]


def forget_after(path: Path, step: int, digest: str | None = None) -> None:
    """Drop the rows beyond a step: the training goes on from there and writes them again.

    Parameters
    ----------
    path : Path
        The log; where somebody has deleted it, a new one begins.
    step : int
        The step.
    digest : str, optional
        `log_digest` at that step.

    Raises
    ------
    RunError
        If the log is damaged, or is not that of the digest.
    """
    if not path.is_file():
        return
    head, rows = _cells(path)
    if rows and len(rows[-1]) < len(head):
        rows.pop()  # cut off in the middle of writing
    kept = [row for row in rows if (_numbers(path, head, row)["step"] or 0) <= step]
    text = io.StringIO()
    if kept:
        csv.writer(text).writerows([head, *kept])
    if digest is not None and digest != hashlib.sha256(text.getvalue().encode()).hexdigest():
        raise RunError(
            f"{path} is damaged: up to step {step} it is not what the checkpoint was written with (SHA-256 differs). "
            "Delete it to go on with a new log."
        )
    if kept:
        write_text(path, text.getvalue())
    else:
        path.unlink()


def _cells(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path} is no log of a training: {error}.") from error
    if rows and not set(head) >= _COLUMNS:
        raise RunError(f"{path} is no log of a training: it lacks {', '.join(sorted(_COLUMNS - set(head)))}.")
    return head, rows


def _numbers(path: Path, head: list[str], row: list[str]) -> dict[str, float | None]:
    try:
        found = {
            name: None if name in _MAY_BE_EMPTY and not cell else float(cell)
            for name, cell in zip(head, row, strict=True)
        }
    except ValueError as error:
        raise RunError(f"{path} is no log of a training: {error} in the row {','.join(row)[:80]!r}.") from error
    if not all(value is None or math.isfinite(value) for value in found.values()):
        raise RunError(f"{path} is no log of a training: NaN or infinity in the row {','.join(row)[:80]!r}.")
    return found
