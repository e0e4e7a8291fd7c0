"""Files of which single rows can be read, so that the whole need not fit into memory: .npy, .zarr and .parquet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.errors import DataFileError, MissingDependencyError
from iresnet_core.files.array_files import damage_named
from iresnet_core.files.tables import Table, column_holds_numbers, pyarrow, table_of_columns

__all__ = ["ROW_SUFFIXES", "RowFile", "open_rows", "zarr_module"]

ROW_SUFFIXES = (".npy", ".zarr", ".parquet")


@dataclass(frozen=True)
class RowFile:
    """A file of rows. It is small and can be pickled: every `read` opens the file anew.

    Attributes
    ----------
    path : str
        An absolute path: a .npy file, a .zarr folder, a .parquet file or a folder of such.
    key : str or None
        Which array of a .zarr group.
    shape : tuple of int
        Rows, and the shape of each.
    dtype : str
        Of the numbers; "float64" for the columns of a table.
    groups : tuple of (str, int, int)
        For .parquet files: the file, the number of a row group in it, and how many rows that has, in their order.
    rows_together : int
        Rows that are read from the disk together, whichever of them is asked for: the chunk of a .zarr array.
    changed : int
        When the file, or the last one of a folder, was written, in nanoseconds.
    """

    path: str
    key: str | None
    shape: tuple[int, ...]
    dtype: str
    groups: tuple[tuple[str, int, int], ...] = ()
    rows_together: int = 1
    changed: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, begin: int, end: int) -> np.ndarray | Table:
        """Return the rows begin .. end - 1: an array, or a `Table` of a .parquet file.

        Memory: these rows; for a .parquet file the row groups that hold them.

        Raises
        ------
        DataFileError
            If the file is damaged, or has another shape than when it was opened.
        FileNotFoundError
            If it is not there, as on a machine with another file system.
        """
        if self.groups:
            return self._table(begin, end)
        with damage_named(Path(self.path)):
            array = _opened_array(Path(self.path), self.key)
            if tuple(array.shape) != self.shape:
                raise DataFileError(f"{self.path} had the shape {self.shape} and has {tuple(array.shape)} now.")
            return np.array(array[begin:end])

    def _table(self, begin: int, end: int) -> Table:
        reader, arrow = pyarrow("pyarrow.parquet"), pyarrow("pyarrow")
        parts, first, opened = [], 0, {}
        try:
            for file, group, rows in self.groups:
                low, high = max(begin - first, 0), min(end - first, rows)
                if low < high:
                    if file not in opened:
                        opened = {file: reader.ParquetFile(file)}
                    rows_of_group = opened[file].read_row_group(group).slice(low, high - low)
                    parts.append(table_of_columns(rows_of_group, Path(file)))
                first += rows
        except arrow.ArrowException as error:
            raise DataFileError(f"{self.path} cannot be read: {str(error)[:300]}") from error
        return Table(np.concatenate([part.values for part in parts]), parts[0].names, parts[0].texts)


def open_rows(path: str | os.PathLike[str], key: str | None = None) -> RowFile:
    """Return a file by its suffix; only its shape is read.

    Parameters
    ----------
    path : str or path
        A .npy file, a .zarr folder, a .parquet file, or a folder of .parquet files, which are read in the order of
        their names.
    key : str, optional
        Which array of a .zarr group; needed where that has several, and refused where arrays have no name.

    Raises
    ------
    DataFileError
        If it has another suffix, is damaged, or holds no numbers.
    FileNotFoundError
        If it is not there.
    MissingDependencyError
        If zarr or pyarrow is needed and not installed.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(2, "there is no such file", str(path))
    if path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        _require_no_key(path, key, "a table")
        return _opened_tables(path)
    if path.suffix.lower() not in ROW_SUFFIXES:
        raise DataFileError(
            f"{path}: rows are read chunk by chunk from .npy, .zarr and .parquet. Write the data as one of these."
        )
    with damage_named(path):
        array = _opened_array(path, key)
        if np.dtype(array.dtype).kind not in "biuf":
            raise DataFileError(f"{path} holds {array.dtype}, expected real numbers.")
        if not array.ndim:
            raise DataFileError(f"{path} holds one number, expected rows along the first axis.")
        shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype).name
        together = int((getattr(array, "shards", None) or getattr(array, "chunks", None) or (1,))[0])
    return RowFile(str(path), key, shape, dtype, rows_together=together, changed=_last_change([path]))


def zarr_module() -> Any:
    """Return zarr, or say how it is installed."""
    try:
        return import_module("zarr")
    except ImportError as error:
        raise MissingDependencyError(
            f"a .zarr array needs zarr, which cannot be imported ({error}). Try: pip install 'iresnet-core[dask]'; or "
            "write the array as .npy."
        ) from error


def _opened_array(path: Path, key: str | None) -> Any:
    if path.suffix.lower() == ".npy":
        _require_no_key(path, key)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    zarr = zarr_module()
    found = zarr.open(str(path), mode="r")
    if isinstance(found, zarr.Array):
        _require_no_key(path, key)
        return found
    names = sorted(found.array_keys())
    if key is None and len(names) == 1:
        return found[names[0]]
    if key is None or key not in names:
        asked = "say which one with --key" if key is None else f"there is no {key}"
        raise DataFileError(f"{path} is a group of {', '.join(names) or 'no array'}; {asked}.")
    return found[key]


def _require_no_key(path: Path, key: str | None, what: str = "one array without a name") -> None:
    if key is not None:
        raise DataFileError(f"{path} holds {what}; leave out --key {key}.")


def _opened_tables(path: Path) -> RowFile:
    reader, arrow = pyarrow("pyarrow.parquet"), pyarrow("pyarrow")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataFileError(f"{path} holds no .parquet file.")
    groups: list[tuple[str, int, int]] = []
    columns: tuple[str, ...] | None = None
    numeric: list[bool] | None = None
    for file in files:
        try:
            found = reader.ParquetFile(file)
        except arrow.ArrowException as error:
            raise DataFileError(f"{file} cannot be read: {str(error)[:300]}") from error
        names = tuple(found.schema_arrow.names)
        if columns is not None and names != columns:
            raise DataFileError(f"{file} has the columns {', '.join(names)}, {files[0]} has {', '.join(columns)}.")
        columns = names
        own = [column_holds_numbers(kind) for kind in found.schema_arrow.types]
        if numeric is not None and own != numeric:
            k = next(k for k, (one, other) in enumerate(zip(own, numeric, strict=True)) if one != other)
            raise DataFileError(
                f"{file} holds {found.schema_arrow.types[k]} in its column {names[k]}, {files[0]} holds "
                f"{reader.ParquetFile(files[0]).schema_arrow.types[k]}. A column has numbers in all files, or in none."
            )
        numeric = own
        counts = [found.metadata.row_group(k).num_rows for k in range(found.num_row_groups)]
        groups += [(str(file), k, rows) for k, rows in enumerate(counts)]
    assert columns is not None
    n = sum(rows for _, _, rows in groups)
    return RowFile(str(path), None, (n, len(columns)), "float64", tuple(groups), changed=_last_change([path, *files]))


def _last_change(paths: Sequence[Path]) -> int:
    """Return the latest time at which one of them, or anything in a folder among them, was written."""
    inside = (inner for path in paths if path.is_dir() for inner in path.rglob("*"))
    return max(path.stat().st_mtime_ns for path in chain(paths, inside))
