"""Data to train and to score on: toy sets drawn from a seed, the digits, MNIST and files, split in three.

A `Dataset` holds samples as they are stored: real vectors, or images of whole grey levels. `dequantized` turns levels
into numbers in [0, 1) by adding uniform noise, so that a density of real numbers bounds the probability of the levels
(Theis et al. 2016, Sec. 3.1).

The digits that ship with the package are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998, doi:10.24432/C50P49; CC BY 4.0, see examples/LICENSE-digits.txt):
1797 images of 8 x 8 pixels with 17 levels.
"""

import difflib
import hashlib
import os
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, ShapeError
from iresnet_core.files import (
    CIFAR,
    ROW_SUFFIXES,
    SUFFIXES,
    TABLE_SUFFIXES,
    Table,
    opened_table,
    read_array,
    read_arrays,
    read_cifar,
)
from iresnet_core.training.condition_columns import ConditionPlan, planned_condition, split_columns
from iresnet_core.training.sample_arrays import as_samples
from iresnet_core.training.stored_samples import FEWEST, USUAL_MEMORY, StoredSamples, open_stored
from iresnet_core.training.table_columns import TableColumns, require_varying
from iresnet_core.training.toy_data import draw_toy, toy_names

__all__ = [
    "Dataset",
    "DatasetSource",
    "array_to_score",
    "dequantized",
    "fingerprint",
    "image_arrays",
    "image_levels",
    "load_dataset",
    "samples_from_file",
    "split_samples",
]

IMAGES = ("digits", "mnist", *CIFAR)
TOY_SAMPLES = 100_000
HELD_OUT = 0.1  # of the data, for validation and again for the test
MOST = 10**8
_LARGE = 2**31  # bytes of a file whose samples are not held in memory unless that is asked for
SHARED_DATA = "IRESNET_SHARED_DATA"


@dataclass(frozen=True)
class DatasetSource:
    """Which data, and how they are split; written into the configuration of a run.

    Attributes
    ----------
    name : str
        A toy set, "digits", "mnist", "cifar10", "cifar100", or the path of a .npy, .npz, .csv or .parquet file, of a
        .zarr array, or of a folder of .parquet files.
    seed : int
        Seed of the split, and of the drawing of a toy set.
    samples : int, optional
        How many points to draw of a toy set (default 100 000), or how many samples to use of others (default all).
    file : str, optional
        Where mnist.npz, or the folder or archive of CIFAR, is, if not in one of the usual places: the folder that the
        variable IRESNET_SHARED_DATA names, ../shared/data, and ~/.keras/datasets.
    key : str, optional
        Which array of a .npz archive or a .zarr group.
    levels : int, optional
        Number of grey levels of a file of whole numbers 0 .. levels - 1; default 256 for images of uint8.
    condition, labels : str, optional
        Columns of a table that are conditions and no part of the samples, as "2,3" or by their names; and which of them
        hold labels.
    drop : str, optional
        Columns that are left out.
    missing : {"drop", "impute"}, optional
        What becomes of rows with missing values: they are left out, or medians of the training set are put in; by
        default they are refused.
    label_key : str, optional
        For a classifier: which array of a .npz archive holds the labels (default y), or which labels of CIFAR-100:
        "fine" (default) or "coarse".
    memory : int, optional
        MiB that the samples of a .npy, .zarr or .parquet file may take; the file is then read in shuffled blocks while
        the training runs. Default all of it is held, but of files above 2 GiB, .zarr arrays and folders 1024 MiB.
    """

    name: str
    seed: int = 0
    samples: int | None = None
    file: str | None = None
    key: str | None = None
    levels: int | None = None
    condition: str | None = None
    labels: str | None = None
    drop: str | None = None
    missing: str | None = None
    label_key: str | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Dataset:
    """Samples in three parts.

    Attributes
    ----------
    name : str
        Name of the data, for titles.
    train, validation, test : array (n, *event_shape)
        float64; or unsigned whole numbers where `levels` is given. Images have their channels first.
    levels : int or None
        Number of grey levels of images, None for real numbers.
    contexts : tuple of three arrays (n, k), or None
        The conditions of the three parts.
    condition : ConditionPlan or None
        What enters a flow for them: means and scales of those to train on, labels of all.
    columns : TableColumns or None
        The columns of a table that are used, those of the conditions among them.
    notes : tuple of str
        What was done to the data, for the user to see.
    stored : StoredSamples or None
        Where the samples to train on stay in their file, what reads them; `train` is then a random part of them, as
        many as are needed to know the data by.
    condition_columns : str or None
        Which columns of what `stored` reads are conditions.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    levels: int | None = None
    contexts: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    condition: ConditionPlan | None = None
    columns: TableColumns | None = None
    notes: tuple[str, ...] = ()
    stored: StoredSamples | None = None
    condition_columns: str | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def train_count(self) -> int:
        """How many samples there are to train on."""
        return len(self.train) if self.stored is None else len(self.stored)

    def parted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what `stored` reads as samples and their conditions."""
        if self.condition_columns is None:
            return rows, None
        return split_columns(rows, self.condition_columns, self.name)


def load_dataset(source: DatasetSource) -> Dataset:
    """Load or draw a data set and split it.

    Returns
    -------
    Dataset
        80 % for training, 10 % for validation, 10 % for the test, by a random permutation; where a file comes with
        `x_train` and `x_test` (the layout of Keras), the test set is as given and 10 % of the rest is for validation.

    Raises
    ------
    InvalidArgumentError
        If there is no such data set or file, or an option does not fit it.
    DataFileError, ShapeError, NonFiniteError
        If a file does not hold samples.
    """
    dataset = _whole(source)
    if dataset.columns is None:
        _refuse_options(source, "drop", "missing")
    if source.labels is not None and source.condition is None:
        raise InvalidArgumentError("--labels names columns of --condition; give that too.")
    if source.labels is not None and dataset.stored is not None:
        raise InvalidArgumentError(
            "all labels have to be known before the training, and data that stay in their file are not read then. "
            "Write the labels as columns of 0 and 1 and leave --labels out, or hold the data in memory."
        )
    if dataset.columns is not None:
        names = list(map(dataset.columns.label, range(len(dataset.columns.used))))
        require_varying(dataset.train, names, dataset.name)
    if source.condition is not None:
        dataset = _conditional(dataset, source.condition, source.labels)
    return dataset


def _conditional(dataset: Dataset, condition: str, labels: str | None) -> Dataset:
    """Return a data set with some of its columns as conditions."""
    if dataset.levels is not None:
        raise InvalidArgumentError(f"--condition takes columns of real numbers; {dataset.name} holds grey levels.")
    if dataset.columns is not None:
        condition = dataset.columns.placed(condition, "--condition")
        labels = None if labels is None else dataset.columns.placed(labels, "--labels")
    parts = [split_columns(part, condition, dataset.name) for part in (dataset.train, dataset.validation, dataset.test)]
    (train, validation, test), (first, second, third) = zip(*parts, strict=True)
    plan = planned_condition(first, condition, labels, dataset.train.shape[1], others=(second, third))
    contexts = first, second, third
    dataset = replace(dataset, train=train, validation=validation, test=test, contexts=contexts, condition=plan)
    return dataset if dataset.stored is None else replace(dataset, condition_columns=condition)


def _whole(source: DatasetSource) -> Dataset:
    """Load or draw a data set with all its columns."""
    if source.seed < 0:
        raise InvalidArgumentError(f"seed {source.seed}: a seed must not be negative.")
    if source.samples is not None and source.samples < FEWEST:
        raise InvalidArgumentError(f"{source.samples} samples are too few to be split; at least {FEWEST} are needed.")
    if source.samples is not None and source.samples > MOST:
        raise InvalidArgumentError(f"{source.samples} samples are too many to be held; at most {MOST} are taken.")
    rng = np.random.default_rng([source.seed, 0])
    if source.name in (*toy_names(), *IMAGES):
        _refuse_options(source, "memory")
    if source.name in toy_names():
        _refuse_options(source, "file", "key", "levels")
        return split_samples(source.name, draw_toy(source.name, source.samples or TOY_SAMPLES, rng), None, rng, None)[0]
    if source.name in IMAGES:
        found = image_arrays(source)
        train, levels = as_samples(found["x_train"], f"{source.name}: x_train", image_levels(source))
        test = found.get("x_test")
        test = None if test is None else as_samples(test, f"{source.name}: x_test", levels)[0]
        return split_samples(source.name, train, levels, rng, source.samples, test)[0]
    _refuse_options(source, "file")
    path = Path(source.name)
    return _stored(source, path) if _stays_in_file(source, path) else _from_file(source, rng)


def image_levels(source: DatasetSource) -> int | None:
    """Return the number of grey levels of one of `IMAGES`; None where it follows from the dtype."""
    return 17 if source.name == "digits" else None


def image_arrays(source: DatasetSource) -> dict[str, Any]:
    """Return images and labels of one of `IMAGES`, under the names that Keras gives them.

    Where a data set has no test set of its own there is no "x_test". The labels of MNIST are there if its file has
    them; "names" are those of the classes.
    """
    if source.name == "digits":
        _refuse_options(source, "file", "key", "levels")
        with files("iresnet_core").joinpath("examples", "digits.npz").open("rb") as file, np.load(file) as archive:
            return {"x_train": archive["x"][:, None], "y_train": archive["y"]}
    _refuse_options(source, "key", "levels")
    if source.name in CIFAR:
        folders = CIFAR[source.name].folders
        path = _find_file(source, (*folders, *(f"{folder}.tar.gz" for folder in folders)), "")
        return read_cifar(path, source.name, source.label_key or "fine")._asdict()
    path = _find_file(source, ("mnist.npz",), " Keras fetches it with keras.datasets.mnist.load_data().")
    arrays = read_arrays(path)
    if not {"x_train", "x_test"} <= set(arrays):
        raise DataFileError(f"{path} lacks x_train and x_test; it holds {', '.join(arrays) or 'nothing'}.")
    return dict(arrays)


def samples_from_file(
    path: str | os.PathLike[str], *, key: str | None = None, levels: int | None = None
) -> tuple[np.ndarray, int | None]:
    """Read samples from a .npy, .npz, .csv or .parquet file.

    Parameters
    ----------
    path : str or path
        The file.
    key : str, optional
        Which array of a .npz archive; one called x_test is taken where there are several.
    levels : int, optional
        Number of grey levels, for whole numbers 0 .. levels - 1; default 256 for images of uint8.

    Returns
    -------
    samples : array (n, *event_shape)
        float64, or the whole numbers as they are. Images have their channels first.
    levels : int or None
        Number of grey levels.

    Raises
    ------
    DataFileError, ShapeError, NonFiniteError, InvalidArgumentError
        If the file does not hold samples.
    """
    return as_samples(array_to_score(path, key), f"{path}", levels)


def array_to_score(path: str | os.PathLike[str], key: str | None = None) -> np.ndarray:
    """Return the array of a file that is scored where no `key` says which: x_test of a .npz archive of several."""
    if key is None and str(path).lower().endswith(".npz"):
        arrays = read_arrays(path)
        if len(arrays) > 1 and "x_test" in arrays:
            return arrays["x_test"]
    return read_array(path, key)


def dequantized(x: np.ndarray, levels: int | None, rng: np.random.Generator) -> np.ndarray:
    """Add uniform noise in [0, 1) to grey levels and divide by their number; real numbers are returned as they are.

    Examples
    --------
    >>> import numpy as np
    >>> x = dequantized(np.array([[0, 255]]), 256, np.random.default_rng(0))
    >>> bool(0 <= x[0, 0] < 1 / 256 and 255 / 256 <= x[0, 1] < 1)
    True
    """
    if levels is None:
        return x
    return (x + rng.random(x.shape)) / levels


def fingerprint(dataset: Dataset) -> str:
    """Return a hash of the data, by which a run knows them again."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (dataset.train, dataset.validation, dataset.test, *(dataset.contexts or ())):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(part.tobytes())
    if dataset.stored is not None:  # of samples that stay in their file, those above stand for all
        file = dataset.stored.file
        digest.update(f"{file.shape}{file.dtype}{[rows for _, _, rows in file.groups]}".encode())
    return digest.hexdigest()


def _refuse_options(source: DatasetSource, *names: str) -> None:
    for name in names:
        if getattr(source, name) is not None:
            raise InvalidArgumentError(f"the option {name} does not apply to the data set {source.name}.")


def _find_file(source: DatasetSource, names: tuple[str, ...], hint: str) -> Path:
    """Return the file of a data set, as given or from the usual places."""
    if source.file is not None:
        path = Path(source.file)
        if not (path.is_file() or (source.name in CIFAR and path.is_dir())):
            raise InvalidArgumentError(f"there is no file {path}.")
        return path
    folders = [Path(os.environ[SHARED_DATA])] if SHARED_DATA in os.environ else []
    folders += [Path.cwd().parent / "shared" / "data", Path.home() / ".keras" / "datasets"]
    for folder in folders:
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise InvalidArgumentError(
        f"{names[-1]} is in none of {', '.join(map(str, folders))}. Put it into one of these, name its folder by the "
        f"variable {SHARED_DATA}, or give its path with --file, which `train` and `classify` have.{hint}"
    )


def _stays_in_file(source: DatasetSource, path: Path) -> bool:
    """Whether the samples of a file are read while the training runs, instead of being held in memory."""
    if not path.exists():
        return False
    rows = path.suffix.lower() in ROW_SUFFIXES
    return source.memory is not None or path.is_dir() or (rows and path.stat().st_size > _LARGE)


def _stored(source: DatasetSource, path: Path) -> Dataset:
    """Return the data set of a file whose samples to train on stay in it."""
    _refuse_options(source, "samples")
    memory = USUAL_MEMORY if source.memory is None else source.memory
    options = {name: getattr(source, name) for name in ("key", "levels", "drop", "missing")}
    stored, train, validation, test = open_stored(path, memory, HELD_OUT, source.seed, **options)
    note = f"the samples to train on stay in {path.name}, which is read in shuffled blocks: {memory} MiB of memory"
    columns, levels = stored.columns, stored.levels
    return Dataset(path.name, train, validation, test, levels, columns=columns, notes=(note,), stored=stored)


def _from_file(source: DatasetSource, rng: np.random.Generator) -> Dataset:
    path = Path(source.name)
    if not path.is_file():
        known = (*toy_names(), *IMAGES)
        near = difflib.get_close_matches(source.name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        what = "file" if path.suffix.lower() in SUFFIXES else "data set or file"
        raise InvalidArgumentError(
            f"there is no {what} {source.name!r}.{hint} Data sets: {', '.join(known)}; files: "
            f"{', '.join(SUFFIXES)}, .zarr arrays, and folders of .parquet files."
        )
    if path.suffix.lower() == ".npz" and source.key is None:
        arrays = read_arrays(path)
        if {"x_train", "x_test"} <= set(arrays):
            train, levels = as_samples(arrays["x_train"], f"{path}: x_train", source.levels)
            test, _ = as_samples(arrays["x_test"], f"{path}: x_test", levels)
            return split_samples(path.name, train, levels, rng, source.samples, test)[0]
    if path.suffix.lower() in TABLE_SUFFIXES and source.levels is None:
        _refuse_options(source, "key")
        return _of_table(source, opened_table(path), path, rng)
    array = read_array(path, source.key)
    if source.levels is None and array.ndim in (1, 2) and array.size and array.dtype.kind in "biuf":
        return _of_table(source, Table(array.reshape(len(array), -1).astype(np.float64), None, {}), path, rng)
    samples, levels = as_samples(array, f"{path}", source.levels)
    return split_samples(path.name, samples, levels, rng, source.samples)[0]


def _of_table(source: DatasetSource, table: Table, path: Path, rng: np.random.Generator) -> Dataset:
    """Return the samples in the rows of a table, without gaps."""
    columns = TableColumns.of_table(table, source.drop, source.missing)
    values, notes = columns.values_of(table, f"{path}"), []
    if len(columns.used) < columns.width:
        notes.append(f"{columns.width - len(columns.used)} of {columns.width} columns are left out")
    kept = columns.rows_to_keep(values, f"{path}")
    if not kept.all():
        notes.append(f"{np.sum(~kept)} of {len(kept)} rows have missing values and are left out")
    dataset = split_samples(path.name, values[kept], None, rng, source.samples)[0]
    if columns.missing == "impute":
        gaps = np.isnan(dataset.train)
        if np.any(gaps.all(axis=0)):
            empty = columns.label(int(np.argmax(gaps.all(axis=0))))
            raise DataFileError(
                f"{path}: column {empty} has no value in the samples to train on. Leave it out: --drop {empty}."
            )
        columns = replace(columns, fill=tuple(map(float, np.nanmedian(dataset.train, axis=0))))
        notes.append(f"{np.sum(np.isnan(values))} missing values became the medians of the training set")
    train, validation, test = map(columns.imputed, (dataset.train, dataset.validation, dataset.test))
    return replace(dataset, train=train, validation=validation, test=test, columns=columns, notes=tuple(notes))


def split_samples(
    name: str,
    samples: np.ndarray,
    levels: int | None,
    rng: np.random.Generator,
    keep: int | None,
    test: np.ndarray | None = None,
) -> tuple[Dataset, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Return the three parts, and which of the samples each holds; None for the last where `test` is given."""
    order = rng.permutation(len(samples))[:keep]
    if len(order) < FEWEST:
        raise ShapeError(f"{name} has {len(order)} samples; at least {FEWEST} are needed to split them.")
    held = max(1, round(HELD_OUT * len(order)))
    validation, rest, third = order[:held], order[held:], None
    if test is None:
        third, rest = rest[:held], rest[held:]
        test = samples[third]
    if test.shape[1:] != samples.shape[1:]:
        raise ShapeError(f"{name}: samples of shape {samples.shape[1:]} to train on, {test.shape[1:]} to test on.")
    return Dataset(name, samples[rest], samples[validation], test, levels), (rest, validation, third)
