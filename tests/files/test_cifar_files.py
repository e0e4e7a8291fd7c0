"""Small files of the layouts in which CIFAR-10 and CIFAR-100 are published, and files that would do harm."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from iresnet_core.errors import DataFileError, InvalidArgumentError
from iresnet_core.files.cifar_files import read_cifar
from iresnet_core.training.datasets import DatasetSource, load_dataset
from iresnet_core.training.labelled_data import load_labelled

FINE, COARSE = [f"class {k}" for k in range(10)], ["a", "b", "c"]


def parts_of(kind):
    rng = np.random.default_rng(0)
    names = ("train", "test") if kind == "cifar100" else (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
    return {
        name: (rng.integers(0, 256, (12, 3072), dtype=np.uint8), np.arange(12) % 10, np.arange(12) % 3)
        for name in names
    }


def pickled(kind):
    """Files as Python 2 wrote them: protocol 2, with bytes as keys."""
    files = {}
    for name, (x, fine, coarse) in parts_of(kind).items():
        node = {b"data": x, b"filenames": [b"a.png"] * 12, b"batch_label": b"one"}
        labels = {b"labels": fine} if kind == "cifar10" else {b"fine_labels": fine, b"coarse_labels": coarse}
        files[name] = pickle.dumps({**node, **{key: list(map(int, y)) for key, y in labels.items()}}, protocol=2)
    if kind == "cifar10":
        files["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in FINE]}, protocol=2)
    else:
        names = {b"fine_label_names": FINE, b"coarse_label_names": COARSE}
        files["meta"] = pickle.dumps({key: [n.encode() for n in own] for key, own in names.items()}, protocol=2)
    return files


def binary(kind):
    files = {}
    for name, (x, fine, coarse) in parts_of(kind).items():
        labels = fine[:, None] if kind == "cifar10" else np.stack([coarse, fine], axis=1)
        files[f"{name}.bin"] = np.concatenate([labels.astype(np.uint8), x], axis=1).tobytes()
    if kind == "cifar10":
        files["batches.meta.txt"] = "\n".join(name.replace(" ", "_") for name in FINE).encode()
    else:
        files["coarse_label_names.txt"] = "\n".join(COARSE).encode()
    return files


def written(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(path, files, inside="cifar"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [pickled, binary])
@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_every_layout_holds_the_same(tmp_path, kind, form):
    parts = parts_of(kind)
    x_test, fine, coarse = parts.popitem()[1]
    x_train = np.concatenate([x for x, _, _ in parts.values()]).reshape(-1, 3, 32, 32)
    files = form(kind)
    inside = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-binary"}[kind]
    written(tmp_path / "outer" / inside, files)
    places = [tmp_path / "outer", tmp_path / "outer" / inside, packed(tmp_path / "c.tar.gz", files)]
    for place in places:
        found = read_cifar(place, kind)
        np.testing.assert_array_equal(found.x_train, x_train)
        np.testing.assert_array_equal(found.x_test, x_test.reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(found.y_test, fine)
        assert found.y_train.shape == (len(x_train),)
        if kind == "cifar100":
            groups = read_cifar(place, kind, "coarse")
            np.testing.assert_array_equal(groups.y_test, coarse)
            assert groups.names == tuple(COARSE)
    with pytest.raises(InvalidArgumentError, match="labels"):
        read_cifar(places[0], kind, "other")


def test_labels_may_be_an_array(tmp_path):
    files = pickled("cifar10")
    node = {"data": parts_of("cifar10")["test_batch"][0], "labels": np.arange(12)}
    files["test_batch"] = pickle.dumps(node, protocol=2)
    np.testing.assert_array_equal(read_cifar(written(tmp_path / "c", files), "cifar10").y_test, np.arange(12))


class Harm:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(tmp_path):
    mark = tmp_path / "mark"
    yield Harm(open, str(mark), "w")
    yield Harm(eval, f"open({str(mark)!r}, 'w')")
    yield Harm(np.fromfile, str(mark))
    yield Harm(getattr, "text", "upper")
    yield {b"data": np.array([Harm(open, str(mark), "w")], dtype=object)}
    yield {b"data": np.zeros((2, 3072), dtype="u1, u1")}


def test_a_pickle_runs_nothing(tmp_path):
    for k, what in enumerate(harmful(tmp_path)):
        files = {**pickled("cifar10"), "data_batch_3": pickle.dumps(what, protocol=2)}
        with pytest.raises(DataFileError, match="data_batch_3 cannot be read"):
            read_cifar(written(tmp_path / str(k), files), "cifar10")
        files = {**pickled("cifar10"), "batches.meta": pickle.dumps(what, protocol=2)}
        with pytest.raises(DataFileError, match=r"batches.meta cannot be read"):
            read_cifar(packed(tmp_path / f"{k}.tar.gz", files), "cifar10")
    assert not (tmp_path / "mark").exists()


def test_an_encoding_with_a_bomb_is_refused(tmp_path):
    program = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R."
    files = {**pickled("cifar10"), "data_batch_1": program}
    with pytest.raises(DataFileError, match="unknown way"):
        read_cifar(written(tmp_path / "c", files), "cifar10")


def damaged(kind):
    files, first = pickled(kind), "data_batch_1"
    yield {name: content for name, content in files.items() if name != "data_batch_2"}, "does not hold"
    yield {**files, first: files[first][:-100]}, "cannot be read"
    yield {**files, first: b""}, "cannot be read"
    for node in ([1], {b"data": 3}, {b"data": np.zeros((12, 3), dtype=np.uint8), b"labels": [0] * 12}):
        yield {**files, first: pickle.dumps(node, protocol=2)}, "data"
    for labels in ([0] * 11, [-1] * 12, ["a"] * 12, None):
        node = {b"data": np.zeros((12, 3072), dtype=np.uint8), b"labels": labels}
        yield {**files, first: pickle.dumps(node, protocol=2)}, "labels"
    binaries = binary(kind)
    yield {**binaries, f"{first}.bin": binaries[f"{first}.bin"][:-1]}, "multiple of 3073"


def test_damage_is_named(tmp_path):
    for k, (files, words) in enumerate(damaged("cifar10")):
        with pytest.raises(DataFileError, match=words):
            read_cifar(written(tmp_path / str(k), files), "cifar10")
    (tmp_path / "c.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataFileError, match=r"as a \.tar\.gz"):
        read_cifar(tmp_path / "c.tar.gz", "cifar10")
    with pytest.raises(DataFileError, match="no file or folder"):
        read_cifar(tmp_path / "nowhere", "cifar10")


def test_data_sets_of_a_training(tmp_path, monkeypatch):
    packed(tmp_path / "cifar-10-python.tar.gz", pickled("cifar10"))
    monkeypatch.setenv("IRESNET_SHARED_DATA", str(tmp_path))
    dataset = load_dataset(DatasetSource("cifar10"))
    assert (dataset.train.shape, dataset.validation.shape, dataset.test.shape) == (
        (54, 3, 32, 32),
        (6, 3, 32, 32),
        (12, 3, 32, 32),
    )
    assert dataset.levels == 256
    labelled = load_labelled(DatasetSource("cifar10"))
    assert labelled.classes == tuple(FINE)
    np.testing.assert_array_equal(labelled.images.train, dataset.train)
    where = packed(tmp_path / "other.tar.gz", binary("cifar100"))
    groups = load_labelled(DatasetSource("cifar100", file=str(where), label_key="coarse"))
    assert groups.classes == tuple(COARSE)
    np.testing.assert_array_equal(groups.labels[2], np.arange(12) % 3)
