"""Images with labels: the labels go with their images into the three parts."""

import numpy as np
import pytest

from iresnet_core.errors import DataFileError, InvalidArgumentError, ShapeError
from iresnet_core.training.datasets import DatasetSource, load_dataset
from iresnet_core.training.labelled_data import labelled_fingerprint, load_labelled


def test_the_split_is_that_of_the_images_alone():
    plain, labelled = load_dataset(DatasetSource("digits", seed=3)), load_labelled(DatasetSource("digits", seed=3))
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(labelled.images, name))
    assert labelled.classes == tuple("0123456789")
    assert [len(part) for part in labelled.labels] == [1437, 180, 180]


def stored(path, n=40, **more):
    """Images whose first pixel is their label."""
    y = np.arange(n) % 3 + 5
    x = np.zeros((n, 4, 4), dtype=np.uint8)
    x[:, 0, 0] = y
    np.savez(path, **{"x": x, "y": y, **more})
    return str(path)


def test_labels_stay_with_their_images(tmp_path):
    path = stored(tmp_path / "a.npz", z=np.zeros(3))
    found = load_labelled(DatasetSource(path))
    assert found.classes == ("5", "6", "7")
    for images, labels in found.parts:
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels + 5)
    one_hot = np.eye(3)[np.arange(40) % 3]
    path = stored(tmp_path / "b.npz", other=one_hot)
    again = load_labelled(DatasetSource(path, key="x", label_key="other"))
    np.testing.assert_array_equal(again.labels[0], found.labels[0])
    x, y = np.zeros((40, 4, 4), dtype=np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y[:, None], x_test=x[:20], y_test=y[:20])
    parted = load_labelled(DatasetSource(str(tmp_path / "c.npz")))
    np.testing.assert_array_equal(parted.labels[2], y[:20])


def test_the_hash_is_that_of_images_and_labels(tmp_path):
    y = np.arange(40) % 3
    plain = labelled_fingerprint(load_labelled(DatasetSource(stored(tmp_path / "a.npz"))))
    other = labelled_fingerprint(load_labelled(DatasetSource(stored(tmp_path / "b.npz", y=y[::-1].copy()))))
    assert plain != other


@pytest.mark.parametrize(
    ("more", "options", "error", "words"),
    [
        ({"y": np.zeros(3)}, {}, ShapeError, "one number for each of 40"),
        ({"y": np.full(40, 0.5)}, {}, DataFileError, "whole numbers"),
        ({"y": np.zeros(40)}, {}, DataFileError, "two classes"),
        ({"x": np.zeros((40, 4))}, {}, ShapeError, "takes images"),
        ({}, {"key": "nothing"}, DataFileError, "--key"),
        ({}, {"label_key": "nothing"}, DataFileError, "--label-key"),
    ],
)
def test_refusals(tmp_path, more, options, error, words):
    with pytest.raises(error, match=words):
        load_labelled(DatasetSource(stored(tmp_path / "a.npz", **more), **options))


def test_what_has_no_labels(tmp_path):
    for name in ("moons", str(tmp_path / "a.csv")):
        with pytest.raises(InvalidArgumentError, match="to classify"):
            load_labelled(DatasetSource(name))
    with pytest.raises(InvalidArgumentError, match="known"):
        load_labelled(DatasetSource("digits", label_key="y"))
    x = np.zeros((20, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, x_test=x)
    with pytest.raises(DataFileError, match="no labels"):
        load_labelled(DatasetSource("mnist", file=str(tmp_path / "mnist.npz")))
