"""Arrays from .npy and .npz files and tables, with errors that say what a file holds instead."""

import csv
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from iresnet_core.errors import DataFileError, MissingDependencyError
from iresnet_core.files.atomic_write import write_bytes
from iresnet_core.files.tables import TABLE_SUFFIXES, Table, read_table, table_bytes

__all__ = ["SUFFIXES", "damage_named", "opened_table", "read_array", "read_arrays", "write_array"]

SUFFIXES = (".npy", ".npz", *TABLE_SUFFIXES)
_LONGEST = 300  # characters of what somebody else says about a file
# What NumPy, csv, zipfile and zlib raise for files that are damaged, encrypted, or packed in another way.
_DAMAGE = (
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    TokenError,
    OverflowError,
    RuntimeError,  # and its kinds NotImplementedError and RecursionError
    csv.Error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every array of a file.

    Parameters
    ----------
    path : str or path
        A .npy file, a .npz archive, a .parquet table, or a .csv table of numbers with or without a line of column
        names. Nothing is unpickled.

    Returns
    -------
    dict of arrays
        By the names in the archive; "" is that of the only array of a .npy or .csv file.

    Raises
    ------
    DataFileError
        If the file has another suffix, is damaged, or holds something that is not numbers.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataFileError(f"{path}: data are read from {', '.join(SUFFIXES)} files.")
    if path.is_dir():
        raise DataFileError(f"{path} is a folder, not a file.")
    with damage_named(path):
        if suffix in TABLE_SUFFIXES:
            return {"": read_table(path).numbers()}
        if suffix == ".npy":
            return {"": _numbers(np.load(path, allow_pickle=False), f"{path}")}
        with np.load(path, allow_pickle=False) as archive:
            return {name: _numbers(archive[name], f"{path}: {name}") for name in archive.files}


def read_array(path: str | os.PathLike[str], key: str | None = None) -> np.ndarray:
    """Read one array of a file.

    Parameters
    ----------
    path : str or path
        As for `read_arrays`.
    key : str, optional
        Which array of a .npz archive; needed where it holds several.

    Raises
    ------
    DataFileError
        As `read_arrays`, or if there is no such array, or several and no key; the message lists them.
    """
    arrays = read_arrays(path)
    if key is None:
        if len(arrays) == 1:
            return next(iter(arrays.values()))
        raise DataFileError(f"{path} holds {_listed(arrays)}; say which one with --key.")
    if key not in arrays:
        if "" in arrays:
            raise DataFileError(f"{path} holds one array without a name; leave out --key {key}.")
        raise DataFileError(f"{path} holds {_listed(arrays)}, but no {key}.")
    return arrays[key]


def write_array(path: Path, array: np.ndarray, names: tuple[str, ...] | None = None) -> None:
    """Write an array to a .npy, .npz (under the name "x"), .csv or .parquet file, by its suffix, whole or not at all.

    Tables have the names of their columns where they are given.

    Raises
    ------
    DataFileError
        For another suffix, or samples with more than one axis in a table.
    """
    buffer = BytesIO()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        np.save(buffer, array)
    elif suffix == ".npz":
        np.savez_compressed(buffer, x=array)
    elif suffix in TABLE_SUFFIXES:
        if array.ndim > 2:
            raise DataFileError(f"{path}: a table cannot hold samples of shape {array.shape[1:]}; write .npy or .npz.")
        buffer.write(table_bytes(suffix, array.reshape(len(array), -1), names))
    else:
        raise DataFileError(f"{path}: arrays are written to {', '.join(SUFFIXES)} files.")
    write_bytes(path, buffer.getvalue())


def opened_table(path: str | os.PathLike[str]) -> Table:
    """Return the table in a .csv or .parquet file, with the errors of `read_arrays`."""
    with damage_named(Path(path)):
        return read_table(Path(path))


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what NumPy and zipfile raise for a damaged file into an error that names it."""
    try:
        yield
    except (DataFileError, MissingDependencyError):
        raise
    except MemoryError as error:
        raise DataFileError(f"{path} asks for more memory than there is; it may be damaged.") from error
    # The header of a .npy file is a literal of Python, of which a damaged one is any text.
    except _DAMAGE as error:
        raise DataFileError(f"{path} cannot be read: {str(error)[:_LONGEST]}") from error


def _numbers(array: Any, name: str) -> np.ndarray:
    host = np.asarray(array)
    if host.dtype.kind not in "biuf":
        raise DataFileError(f"{name} holds {host.dtype}, expected real numbers.")
    return host


def _listed(arrays: dict[str, np.ndarray]) -> str:
    if not arrays:
        return "no array"
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
