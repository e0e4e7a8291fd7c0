"""Images with labels, for classifiers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, ShapeError
from iresnet_core.files import CIFAR, read_arrays
from iresnet_core.training.datasets import (
    IMAGES,
    Dataset,
    DatasetSource,
    fingerprint,
    image_arrays,
    image_levels,
    split_samples,
)
from iresnet_core.training.sample_arrays import as_samples

__all__ = ["LabelledDataset", "labelled_fingerprint", "load_labelled"]


@dataclass(frozen=True)
class LabelledDataset:
    """Images in three parts, with a class for each.

    Attributes
    ----------
    images : Dataset
        The images.
    labels : tuple of three int64 arrays (n,)
        Numbers of their classes, from 0.
    classes : tuple of str
        The names of the classes.
    """

    images: Dataset
    labels: tuple[np.ndarray, np.ndarray, np.ndarray]
    classes: tuple[str, ...]

    @property
    def parts(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Images and labels to train on, to validate and to test."""
        images = self.images
        return tuple(zip((images.train, images.validation, images.test), self.labels, strict=True))


def load_labelled(source: DatasetSource) -> LabelledDataset:
    """Load images with their labels, and split them as `load_dataset` does.

    Parameters
    ----------
    source : DatasetSource
        "digits", "mnist", "cifar10", "cifar100", or a .npz file with images and labels: the arrays x and y, or x_train,
        y_train, x_test and y_test, or those that `key` and `label_key` name.

    Raises
    ------
    InvalidArgumentError
        If there are no labels for such data.
    DataFileError, ShapeError, NonFiniteError
        If a file does not hold images with labels.
    """
    rng = np.random.default_rng([source.seed, 0])
    where = source.name
    if source.name in IMAGES:
        if source.label_key is not None and source.name not in CIFAR:
            raise InvalidArgumentError(f"the labels of {source.name} are known; leave out --label-key.")
        arrays, levels = image_arrays(source), image_levels(source)
    else:
        arrays, levels = _of_file(source), source.levels
        where = Path(source.name).name
    if "y_train" not in arrays:
        raise DataFileError(f"{where} holds images, but no labels.")
    train, levels = as_samples(arrays["x_train"], f"{where}: images", levels)
    if train.ndim < 3:
        raise ShapeError(f"a classifier takes images (channels, *spatial), got samples of shape {train.shape[1:]}.")
    test = arrays.get("x_test")
    test = None if test is None else as_samples(test, f"{where}: x_test", levels)[0]
    images, (first, second, third) = split_samples(where, train, levels, rng, source.samples, test)
    given = _one_each(arrays["y_train"], len(train), f"{where}: the labels")
    known = np.unique(given)
    of_test = given[third] if third is not None else None
    if of_test is None:
        assert test is not None
        of_test = _one_each(arrays.get("y_test"), len(test), f"{where}: y_test")
        if not np.all(np.isin(of_test, known)):
            raise DataFileError(f"{where}: y_test holds a label that no sample to train on has.")
    labels = tuple(np.searchsorted(known, part).astype(np.int64) for part in (given[first], given[second], of_test))
    names = arrays.get("names")
    if names is None or len(names) <= int(known[-1]):
        classes = tuple(map(str, known))
    else:
        classes = tuple(names[int(label)] for label in known)
    if len(classes) < 2:
        raise DataFileError(f"{where}: all labels are {classes[0]}; a classifier needs at least two classes.")
    return LabelledDataset(images, (labels[0], labels[1], labels[2]), classes)


def labelled_fingerprint(dataset: LabelledDataset) -> str:
    """Return a hash of images and labels."""
    labels = tuple(part[:, None] for part in dataset.labels)
    images = dataset.images
    return fingerprint(
        Dataset(images.name, images.train, images.validation, images.test, contexts=(labels[0], labels[1], labels[2]))
    )


def _of_file(source: DatasetSource) -> dict[str, Any]:
    path = Path(source.name)
    if not path.is_file():
        raise InvalidArgumentError(
            f"there is no data set or file {source.name!r} to classify; there are {', '.join(IMAGES)}, and .npz files "
            "with images and labels."
        )
    if path.suffix.lower() != ".npz":
        raise InvalidArgumentError(f"{path}: images with labels are read from .npz files, as x and y.")
    arrays = read_arrays(path)
    if source.key is None and source.label_key is None and {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
        return dict(arrays)
    key, label_key = source.key or "x", source.label_key or "y"
    for name, option in ((key, "--key"), (label_key, "--label-key")):
        if name not in arrays:
            raise DataFileError(
                f"{path} holds {', '.join(arrays) or 'nothing'}, but no {name}. Say which array it is with {option}."
            )
    return {"x_train": arrays[key], "y_train": arrays[label_key]}


def _one_each(labels: np.ndarray | None, n: int, name: str) -> np.ndarray:
    """Return labels (n,), which may come as a column or one-hot."""
    if labels is None:
        raise DataFileError(f"{name}: there are none.")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(axis=1) == 1):
        labels = np.argmax(labels, axis=1)
    if labels.shape != (n,):
        raise ShapeError(f"{name} have shape {labels.shape}, expected one number for each of {n} images.")
    if not np.all(np.isfinite(labels)) or not np.array_equal(labels, np.floor(labels)):
        raise DataFileError(f"{name} must be whole numbers.")
    return labels.astype(np.int64)
