"""The five tables of Papamakarios et al. (2017), read and prepared as the authors of masked autoregressive flows did.

The files are those that the authors published, in the folders of their archive: `power/data.npy`, `gas/ethylene_CO.*`,
`hepmass/1000_train.csv` and `1000_test.csv`, `miniboone/data.npy`, `BSDS300/BSDS300.hdf5`. What is done to them is what
makes log-densities comparable with the published ones, so it is done to the letter: which columns and rows are left
out, the noise of POWER with its seed, the split, and the mean and standard deviation that samples are divided by.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, MissingDependencyError
from iresnet_core.files import opened_table, read_array, read_arrays
from iresnet_core.training.datasets import Dataset

__all__ = ["load_maf_table", "maf_table_names"]

_CORRELATED = 0.98  # columns of GAS that are that much alike are left out
_RECURRING = 5  # times that the smallest value of a column of HEPMASS may occur
_LABELS_OF_GAS = ("Meth", "Eth", "Time")
_CONVERT = (
    "python -c \"import pandas; pandas.read_pickle('ethylene_CO.pickle').to_csv('ethylene_CO.csv', index=False)\""
)
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def maf_table_names() -> tuple[str, ...]:
    """Return the names that `load_maf_table` knows.

    Examples
    --------
    >>> maf_table_names()
    ('power', 'gas', 'hepmass', 'miniboone', 'bsds300')
    """
    return tuple(_READERS)


def load_maf_table(name: str, root: Path) -> Dataset:
    """Read one of the tables from the folder that holds the authors' archive.

    Parameters
    ----------
    name : str
        One of `maf_table_names()`.
    root : Path
        The folder in which `power`, `gas`, `hepmass`, `miniboone` and `BSDS300` are.

    Returns
    -------
    Dataset
        float64; standardised as published, but for BSDS300, which is as it stands in its file.

    Raises
    ------
    InvalidArgumentError
        If there is no table of that name, or no file.
    DataFileError
        If a file does not have the published layout, or is a pickle, which would run whatever it holds.
    MissingDependencyError
        For BSDS300 without h5py.
    """
    if name not in _READERS:
        raise InvalidArgumentError(f"there is no table {name!r}; there are {', '.join(_READERS)}.")
    reader, columns = _READERS[name]
    parts = reader(root)
    for part in parts:
        if part.ndim != 2 or part.shape[1] != parts[0].shape[1] or not len(part):
            raise DataFileError(f"{name}: the parts have shapes {', '.join(str(one.shape) for one in parts)}.")
        if not np.all(np.isfinite(part)):
            raise DataFileError(f"{name} holds values that are not finite, or a constant column.")
    if parts[0].shape[1] != columns:
        raise DataFileError(
            f"{name} has {parts[0].shape[1]} columns after its preparation instead of {columns}: the file is not the "
            "one that was published."
        )
    return Dataset(name, *parts)


def _found(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise InvalidArgumentError(f"{root} does not hold {' or '.join(names)}, as in the archive of Papamakarios et al.")


def _matrix(path: Path, columns: int) -> np.ndarray:
    """Return a .npy file of so many columns, in float64."""
    array = read_array(path, None)
    if array.ndim != 2 or array.shape[1] != columns or array.dtype.kind not in "fiu":
        raise DataFileError(f"{path} has shape {array.shape} and {array.dtype}, expected numbers in {columns} columns.")
    return array.astype(np.float64)


def _split(data: np.ndarray) -> Parts:
    """The last tenth is the test set, and the last tenth of the rest is for validation."""
    n_test = int(0.1 * len(data))
    rest, test = data[: len(data) - n_test], data[len(data) - n_test :]
    n_validation = int(0.1 * len(rest))
    return rest[: len(rest) - n_validation], rest[len(rest) - n_validation :], test


def _standardised(parts: Parts) -> Parts:
    """Divide by the standard deviation of the samples for training and validation together."""
    both = np.concatenate(parts[:2])
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant column is found afterwards
        train, validation, test = ((part - both.mean(axis=0)) / both.std(axis=0) for part in parts)
    return train, validation, test


def _power(root: Path) -> Parts:
    """POWER: shuffled, two of eight columns left out, noise as wide as the steps of the instruments."""
    data = _matrix(_found(root, "power/data.npy"), 8)
    rng = np.random.RandomState(42)
    rng.shuffle(data)
    data = np.delete(data, (1, 3), axis=1)
    n = len(data)
    voltage, power, metering = 0.01 * rng.rand(n, 1), 0.001 * rng.rand(n, 1), rng.rand(n, 3)
    return _standardised(_split(data + np.hstack((power, voltage, metering, np.zeros((n, 1))))))


def _gas(root: Path) -> Parts:
    """GAS: without time and labels, and without the first of two columns while any two are nearly the same."""
    pickled, converted = root / "gas/ethylene_CO.pickle", ("gas/ethylene_CO.csv", "gas/ethylene_CO.parquet")
    if pickled.is_file() and not any((root / name).is_file() for name in converted):
        raise DataFileError(
            f"{pickled} is a pickle, which runs whatever it holds when it is read. If you trust it, convert it in its "
            f"folder: {_CONVERT}"
        )
    path = _found(root, *converted)
    table = opened_table(path)
    if table.names is None or not set(_LABELS_OF_GAS) <= set(table.names):
        raise DataFileError(f"{path} lacks the columns {', '.join(_LABELS_OF_GAS)}.")
    kept = [k for k, name in enumerate(table.names) if name not in _LABELS_OF_GAS]
    data = table.numbers()[:, kept]
    while True:
        with np.errstate(invalid="ignore", divide="ignore"):
            alike = np.sum(np.corrcoef(data, rowvar=False) > _CORRELATED, axis=1)
        if not np.any(alike > 1):
            break
        data = np.delete(data, int(np.argmax(alike > 1)), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _split((data - data.mean(axis=0)) / data.std(axis=0, ddof=1))


def _hepmass(root: Path) -> Parts:
    """HEPMASS: the samples of class 1, without columns whose smallest value recurs; the files have their own split."""
    train = _of_class_one(_found(root, "hepmass/1000_train.csv"))
    path = _found(root, "hepmass/1000_test.csv")
    test = _of_class_one(path)
    if test.shape[1] != train.shape[1] + 1:
        raise DataFileError(f"{path} has {test.shape[1] + 1} columns, expected one more than 1000_train.csv.")
    mean, std = train.mean(axis=0), train.std(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        train, test = (train - mean) / std, (test[:, :-1] - mean) / std
    kept = [k for k, column in enumerate(train.T) if np.sum(column == column.min()) <= _RECURRING]
    train, test = train[:, kept], test[:, kept]
    n_validation = int(0.1 * len(train))
    return train[: len(train) - n_validation], train[len(train) - n_validation :], test


def _of_class_one(path: Path) -> np.ndarray:
    """Return the rows of a file with a line of names whose first column is 1, without that column."""
    try:  # in compiled code, for these are millions of lines
        data = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2, dtype=np.float64)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path} is no table of numbers below one line of names: {error}") from error
    if not np.any(data[:, 0] == 1):
        raise DataFileError(f"{path} has no row of class 1 in its first column.")
    rows: np.ndarray = data[data[:, 0] == 1, 1:]
    return rows


def _miniboone(root: Path) -> Parts:
    """MINIBOONE: the authors' file holds the columns that they kept."""
    return _standardised(_split(_matrix(_found(root, "miniboone/data.npy"), 43)))


def _bsds300(root: Path) -> Parts:
    """BSDS300: patches of photographs in three parts."""
    path = _found(root, "BSDS300/BSDS300.npz", "BSDS300/BSDS300.hdf5")
    names = ("train", "validation", "test")
    if path.suffix == ".npz":
        arrays = read_arrays(path)
    else:
        try:
            h5py = import_module("h5py")
        except ImportError as error:
            raise MissingDependencyError(
                f"a .hdf5 file needs h5py, which cannot be imported ({error}). Try: pip install h5py, which the extra "
                f"peers has too; or write the parts {', '.join(names)} to BSDS300.npz."
            ) from error
        try:
            with h5py.File(path, "r") as file:
                arrays = {name: np.asarray(file[name]) for name in names if name in file}
        except OSError as error:
            raise DataFileError(f"{path} cannot be read: {error}") from error
    if not set(names) <= set(arrays):
        raise DataFileError(f"{path} lacks {', '.join(sorted(set(names) - set(arrays)))}.")
    train, validation, test = (np.asarray(arrays[name], dtype=np.float64) for name in names)
    return train, validation, test


# name -> (reader, columns after the preparation)
_READERS: dict[str, tuple[Callable[[Path], Parts], int]] = {
    "power": (_power, 6),
    "gas": (_gas, 8),
    "hepmass": (_hepmass, 21),
    "miniboone": (_miniboone, 43),
    "bsds300": (_bsds300, 63),
}
