"""Chunks put together to one file, a chunk in memory at a time: .npy, .csv, .parquet or .zarr."""

import csv
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError
from iresnet_core.files import pyarrow, zarr_module
from iresnet_core.parallel.jobs import Chunk

__all__ = ["OUTPUT_SUFFIXES", "require_output", "write_chunks"]


def require_output(path: Path, shape: tuple[int, ...] = ()) -> None:
    """Fail before the work, not after it.

    Parameters
    ----------
    path : Path
        Where the chunks are to be written.
    shape : tuple of int
        That of a row.

    Raises
    ------
    InvalidArgumentError
        If the name has another ending, or is that of a folder that is there.
    DataFileError
        If rows of several axes are to become a table.
    MissingDependencyError
        If the package that writes the format is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise InvalidArgumentError(f"{path}: chunks are written to {', '.join(_WRITERS)}.")
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is there already. Delete it, or give another --out.")
    if suffix in (".csv", ".parquet"):
        _require_columns(shape)
    if suffix == ".zarr":
        zarr_module()
    if suffix == ".parquet":
        pyarrow("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_chunks(path: Path, chunks: Iterable[Chunk], n: int, together: int) -> None:
    """Write chunks of n rows in all to one file by its suffix, whole or not at all.

    Several arrays of single numbers are the columns of a table, in .npy the fields of a structured array; one array is
    itself; in .zarr several are the arrays of a group, which have `together` rows in each of their own chunks.

    Raises
    ------
    DataFileError
        If rows of several axes are to become a table.
    OSError
        If the file cannot be written.
    """
    writer = _WRITERS[path.suffix.lower()]
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        writer(draft, chunks, n, together)
        os.replace(draft, path)
    except BaseException:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        raise


def _write_npy(draft: Path, chunks: Iterable[Chunk], n: int, together: int) -> None:
    target, begin = None, 0
    for chunk in chunks:
        if target is None:
            target = _mapped(draft, chunk, n)
        rows = len(next(iter(chunk.values())))
        if target.dtype.names is None:
            target[begin : begin + rows] = next(iter(chunk.values()))
        else:
            for name, column in chunk.items():
                target[name][begin : begin + rows] = column
        begin += rows
    assert target is not None
    target.flush()
    del target
    with open(draft, "rb+") as file:
        os.fsync(file.fileno())


def _mapped(draft: Path, chunk: Chunk, n: int) -> Any:
    if len(chunk) == 1:
        (array,) = chunk.values()
        return np.lib.format.open_memmap(draft, mode="w+", dtype=array.dtype, shape=(n, *array.shape[1:]))
    fields = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in chunk.items()])
    return np.lib.format.open_memmap(draft, mode="w+", dtype=fields, shape=(n,))


def _write_csv(draft: Path, chunks: Iterable[Chunk], n: int, together: int) -> None:
    with open(draft, "x", encoding="utf-8", newline="") as file:
        writer, begun = csv.writer(file, lineterminator="\n"), False
        for chunk in chunks:
            columns = _columns(chunk)
            # Samples whose columns have no names are written as without chunks: a line of numbers is no heading.
            if not begun and any(array.ndim == 1 for array in chunk.values()):
                writer.writerow(columns)
            begun = True
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(draft: Path, chunks: Iterable[Chunk], n: int, together: int) -> None:
    arrow, writers = pyarrow("pyarrow"), pyarrow("pyarrow.parquet")
    with _closed() as held:
        for chunk in chunks:
            table = arrow.table(_columns(chunk))
            if not held:
                held.append(writers.ParquetWriter(draft, table.schema))
            held[0].write_table(table)


@contextmanager
def _closed() -> Iterator[list[Any]]:
    held: list[Any] = []
    try:
        yield held
    finally:
        for one in held:
            one.close()


def _write_zarr(draft: Path, chunks: Iterable[Chunk], n: int, together: int) -> None:
    zarr = zarr_module()
    group = zarr.open_group(str(draft), mode="w-")
    targets: dict[str, Any] = {}
    begin = 0
    for chunk in chunks:
        for name, array in chunk.items():
            if name not in targets:
                targets[name] = group.create_array(
                    name, shape=(n, *array.shape[1:]), chunks=(min(n, together), *array.shape[1:]), dtype=array.dtype
                )
            targets[name][begin : begin + len(array)] = array
        begin += len(next(iter(chunk.values())))


def _columns(chunk: Chunk) -> Chunk:
    """Return the columns of a table; a row of several numbers is as many columns, numbered from 0."""
    columns: Chunk = {}
    for name, array in chunk.items():
        _require_columns(array.shape[1:])
        if array.ndim == 1:
            columns[name] = array
        else:
            columns |= {str(k): np.ascontiguousarray(array[:, k]) for k in range(array.shape[1])}
    return columns


def _require_columns(shape: tuple[int, ...]) -> None:
    if len(shape) > 1:
        raise DataFileError(f"a table cannot hold samples of shape {shape}; write .npy or .zarr instead.")


_Writer = Callable[[Path, Iterable[Chunk], int, int], None]
_WRITERS: dict[str, _Writer] = {
    ".npy": _write_npy,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".zarr": _write_zarr,
}
OUTPUT_SUFFIXES = tuple(_WRITERS)
