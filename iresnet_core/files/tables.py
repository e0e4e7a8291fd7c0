"""Tables of numbers in .csv and .parquet files: with the names of their columns, and gaps where values are missing."""

import csv
import re
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.errors import DataFileError, MissingDependencyError

__all__ = [
    "TABLE_SUFFIXES",
    "Table",
    "as_table",
    "column_holds_numbers",
    "pyarrow",
    "read_table",
    "table_bytes",
    "table_of_columns",
]

TABLE_SUFFIXES = (".csv", ".parquet")
_DELIMITERS = ",;\t "
_GAPS = {"", "na", "n/a", "nan", "null", "none", "?"}  # a cell that says that there is no value, in any case
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
_SHOWN = 40  # characters of a cell that is no number


@dataclass(frozen=True)
class Table:
    """Numbers in columns.

    Attributes
    ----------
    values : float64 array (n, columns)
        NaN where a value is missing, and in cells that hold text.
    names : tuple of str, or None
        Of the columns, where the file has any.
    texts : dict of int to str
        For every column that holds text, where the first one is, and what it says.
    """

    values: np.ndarray
    names: tuple[str, ...] | None
    texts: dict[int, str]

    def numbers(self) -> np.ndarray:
        """Return the values of a table without text.

        Raises
        ------
        DataFileError
            At the first column that holds text.
        """
        for text in self.texts.values():
            raise DataFileError(text)
        return self.values


def as_table(rows: np.ndarray | Table) -> Table:
    """Return an array of rows as a table without names, in which NaN is a gap."""
    if isinstance(rows, Table):
        return rows
    return Table(rows.reshape(len(rows), -1).astype(np.float64), None, {})


def read_table(path: Path) -> Table:
    """Read a table; the delimiter of a .csv file is the one that its first line holds.

    Raises
    ------
    DataFileError
        If the file holds no line of numbers, or lines of different lengths.
    MissingDependencyError
        For a .parquet file without pyarrow.
    """
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)


def table_bytes(suffix: str, array: np.ndarray, names: tuple[str, ...] | None) -> bytes:
    """Return the content of a file with the columns of an array (n, columns), under their names where there are any."""
    if suffix == ".parquet":
        buffer = BytesIO()
        named = names or tuple(str(k) for k in range(array.shape[1]))
        columns = dict(zip(named, np.ascontiguousarray(array.T), strict=True))
        pyarrow("pyarrow.parquet").write_table(pyarrow("pyarrow").table(columns), buffer)
        return buffer.getvalue()
    text = StringIO()
    if names is not None:
        csv.writer(text, lineterminator="\n").writerow(names)
    np.savetxt(text, array, delimiter=",", fmt="%.9g" if array.dtype == np.float32 else "%.17g")
    return text.getvalue().encode("utf-8")


def pyarrow(module: str) -> Any:
    """Return a module of pyarrow, or say how it is installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"a .parquet file needs pyarrow, which cannot be imported ({error}). Try: pip install "
            "'iresnet-core[parquet]'; or write the table as .csv."
        ) from error


def _read_parquet(path: Path) -> Table:
    reader, arrow = pyarrow("pyarrow.parquet"), pyarrow("pyarrow")
    try:
        table = reader.read_table(path)
    except arrow.ArrowException as error:
        raise DataFileError(f"{path} cannot be read: {str(error)[:300]}") from error
    found = table_of_columns(table, path)
    if not found.values.size:
        raise DataFileError(f"{path} holds no line of numbers.")
    return found


def column_holds_numbers(kind: Any) -> bool:
    """Whether a type of pyarrow is one of numbers."""
    types = pyarrow("pyarrow").types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def table_of_columns(table: Any, path: Path) -> Table:
    """Return a table of pyarrow as ours; `path` is named where a column holds text."""
    arrow = pyarrow("pyarrow")
    columns, texts = [], {}
    for k, name in enumerate(table.column_names):
        column, kind = table.column(k), table.schema.field(k).type
        if column_holds_numbers(kind):
            columns.append(column.cast(arrow.float64()).to_numpy().astype(np.float64))
        else:
            columns.append(np.full(len(column), np.nan))
            texts[k] = f"{path}, column {name!r} holds {kind}, no numbers. Leave it out (iresnet train --drop {name})."
    values = np.stack(columns, axis=1) if columns else np.empty((0, 0))
    return Table(values, tuple(map(str, table.column_names)), texts)


def _read_csv(path: Path) -> Table:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
        except UnicodeDecodeError as error:
            raise DataFileError(f"{path} is not a text in UTF-8 ({error}): save it in that encoding.") from error
        delimiter = next((mark for mark in _DELIMITERS if mark in first.strip()), ",")
        file.seek(0)
        names: tuple[str, ...] | None = None
        rows: list[list[float]] = []
        texts: dict[int, str] = {}
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        for row in reader:
            cells = [cell for cell in row if cell.strip()] if delimiter == " " else row
            if not any(cell.strip() for cell in cells):
                continue
            values = [_number(cell) for cell in cells]
            if names is None and not rows and reader.line_num == 1 and None in values:
                names = tuple(cell.strip() for cell in cells)
                continue
            width = len(names) if names is not None else len(rows[0]) if rows else len(values)
            if len(values) != width:
                raise DataFileError(f"{path}, line {reader.line_num}: {len(values)} columns, not {width} as before.")
            for k, value in enumerate(values):
                if value is None and k not in texts:
                    name = names[k] if names else str(k)
                    way = f"Leave the column out (iresnet train --drop {name}), or code it by numbers."
                    if delimiter != "," and _DECIMAL_COMMA.fullmatch(cells[k].strip()):
                        way = "Write numbers with a decimal point."
                    texts[k] = (
                        f"{path}, line {reader.line_num}: {cells[k][:_SHOWN]!r} in column {name} is not a number. {way}"
                    )
            rows.append([np.nan if value is None else value for value in values])
    if not rows:
        raise DataFileError(f"{path} holds no line of numbers.")
    return Table(np.array(rows), names, texts)


def _number(cell: str) -> float | None:
    """Return the number of a cell, NaN for a gap, and None for text."""
    try:
        return float(cell)
    except ValueError:
        return np.nan if cell.strip().lower() in _GAPS else None
