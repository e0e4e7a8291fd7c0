"""Samples that stay in their file: each once an epoch, in an order of seed and step, in the memory that is told."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iresnet_core.errors import DataFileError, InvalidArgumentError, NonFiniteError, ShapeError
from iresnet_core.training import DatasetSource, default_settings, fingerprint, load_dataset
from iresnet_core.training.batches import Batches
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.stored_samples import ShuffledBlocks, open_stored

MIB = 2**20
PACKAGES = {".parquet": "pyarrow", ".zarr": "zarr"}
every_format = pytest.mark.parametrize("suffix", [".npy", ".parquet", ".zarr", "folder"])


def numbered(n, d=64):
    """Rows that say which ones they are."""
    return np.arange(float(n))[:, None] + np.linspace(0, 0.5, d)


def written(tmp_path, suffix, rows, together=1000):
    """A file of rows, of which the format keeps `together` together."""
    package = pytest.importorskip({**PACKAGES, "folder": "pyarrow"}.get(suffix, "numpy"))
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, rows)
    elif suffix == ".zarr":
        package.create_array(str(path), data=rows, chunks=(together, *rows.shape[1:]))
    else:
        writer = pytest.importorskip("pyarrow.parquet")
        path.mkdir() if suffix == "folder" else None
        parts = np.array_split(rows, 2) if suffix == "folder" else [rows]
        for k, part in enumerate(parts):
            table = package.table({f"c{j}": column for j, column in enumerate(part.T)})
            writer.write_table(table, path / f"{k}.parquet" if len(parts) > 1 else path, row_group_size=together)
    return path


def epoch_of(blocks, epoch=0):
    return np.concatenate([blocks.at(epoch * blocks.per_epoch + k)[:, 0] for k in range(blocks.per_epoch)])


@every_format
def test_every_sample_comes_once_an_epoch(tmp_path, suffix):
    n = 10_000
    stored, train, validation, test = open_stored(written(tmp_path, suffix, numbered(n), together=100), 1, 0.1, seed=0)
    blocks = ShuffledBlocks(stored, batch=100, seed=3)
    held_out = np.concatenate([validation, test])[:, 0]
    first, second = epoch_of(blocks), epoch_of(blocks, 1)
    assert len(blocks.stored.starts) > 8  # blocks
    everything = np.sort(np.concatenate([first, held_out]))
    assert len(np.unique(everything)) == len(everything) > n - 100  # but for what is less than a batch
    assert len(np.unique(second)) == len(second)
    assert not np.array_equal(first, second)
    assert np.isin(train[:, 0], np.setdiff1d(np.arange(n), held_out)).all()
    assert len(validation) == len(test) >= 50


def test_the_order_is_a_function_of_seed_and_step(tmp_path):
    path = written(tmp_path, ".npy", numbered(10_000))
    stored = open_stored(path, 1, 0.1, seed=0).stored
    going = ShuffledBlocks(stored, 77, seed=3)
    steps = [going.at(step) for step in range(2 * going.per_epoch)]
    for step in (150, 3, 151, 2 * going.per_epoch - 1):
        np.testing.assert_array_equal(
            ShuffledBlocks(open_stored(path, 1, 0.1, seed=0).stored, 77, 3).at(step), steps[step]
        )
    assert not np.array_equal(ShuffledBlocks(stored, 77, seed=4).at(0), steps[0])


def test_neighbours_in_the_file_come_apart(tmp_path):
    """A file in order, as by its labels: the means of batches are those of samples from all over the file."""
    n, batch = 60_000, 200
    stored = open_stored(written(tmp_path, ".npy", numbered(n)), 4, 0.1, seed=0).stored
    blocks = ShuffledBlocks(stored, batch, seed=0)
    means = np.array([blocks.at(k)[:, 0].mean() for k in range(blocks.per_epoch)])
    buffers = len(blocks._firsts)
    assert buffers > 5
    # The variance of the mean of a buffer of 32 blocks that are drawn without replacement, plus that of a batch in it.
    expected = n**2 / 12 * (1 / 32 + 1 / batch)
    assert np.mean((means - n / 2) ** 2) < expected * (1 + 5 * np.sqrt(2 / buffers))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    path = written(tmp_path_factory.mktemp("rows"), ".npy", numbered(11_111))
    return {memory: open_stored(path, memory, 0.1, seed=1).stored for memory in (1, 2, 16)}


@given(memory=st.sampled_from([1, 2, 16]), batch=st.integers(1, 5000), step=st.integers(0, 10**9))
def test_a_batch_has_different_samples_whatever_the_buffers_are(opened, memory, batch, step):
    blocks = ShuffledBlocks(opened[memory], batch, seed=0)
    found = blocks.at(step % (3 * blocks.per_epoch))[:, 0]
    assert len(np.unique(found)) == batch
    assert not np.isin(found, opened[memory].held_out).any()


@every_format
def test_the_memory_is_what_was_told(tmp_path, suffix):
    path = written(tmp_path, suffix, numbered(40_000))
    tracemalloc.start()
    try:
        opened = open_stored(path, 8, 0.1, seed=0)
        blocks = ShuffledBlocks(opened.stored, 500, seed=0)
        for step in range(0, blocks.per_epoch, 10):
            blocks.at(step)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4 * MIB < peak < 12 * MIB  # of 20: the samples, a block on its way through the format, and numbers of rows


def test_images_keep_their_levels(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (3000, 28, 28)).astype(np.uint8)
    path = written(tmp_path, ".npy", levels)
    dataset = load_dataset(DatasetSource(str(path), memory=1))
    assert (dataset.levels, dataset.event_shape, dataset.train.dtype) == (256, (1, 28, 28), np.uint8)
    assert dataset.train_count + len(dataset.validation) + len(dataset.test) == 3000
    settings = default_settings(DatasetSource(str(path)), dataset, "torch", {"kind": "mlp", "dtype": "float64"})
    x = Batches(dataset, SampleLayout((1, 28, 28), (784,)), settings.training).at(5).x
    assert x.shape == (settings.training.batch, 784)
    assert 0 <= x.min() < x.max() < 1
    pixels = {image.tobytes() for image in levels}
    assert all(np.floor(256 * image.astype(float)).astype(np.uint8).tobytes() in pixels for image in x)


def test_conditions_come_along(tmp_path):
    rows = numbered(5000, d=4)
    path = written(tmp_path, ".npy", rows)
    source = DatasetSource(str(path), memory=1, condition="2")
    dataset = load_dataset(source)
    settings = default_settings(source, dataset, "torch", {"dtype": "float64"}).training
    x, context = Batches(dataset, SampleLayout((3,), (3,)), settings).at(7)
    assert x.shape == (settings.batch, 3)
    np.testing.assert_allclose(context[:, 0] - x[:, 0], rows[0, 2] - rows[0, 0], rtol=0, atol=1e-9)


def test_gaps_are_imputed(tmp_path):
    rows = np.random.default_rng(0).standard_normal((40_000, 8))
    rows[::7, 3] = np.nan
    path = written(tmp_path, ".npy", rows)
    dataset = load_dataset(DatasetSource(str(path), memory=1, missing="impute"))
    assert abs(dataset.columns.fill[3]) < 0.1
    batch = ShuffledBlocks(dataset.stored, 4000, seed=0).at(2)
    assert np.mean(batch[:, 3] == dataset.columns.fill[3]) == pytest.approx(1 / 7, abs=0.03)
    with pytest.raises(InvalidArgumentError, match="impute"):
        load_dataset(DatasetSource(str(path), memory=1, missing="drop"))


def test_what_is_no_sample_is_named_with_its_row(tmp_path):
    rows = numbered(40_000)
    opened = open_stored(written(tmp_path, ".npy", rows), 1, 0.1, seed=0)
    trained = int(np.setdiff1d(np.arange(30_000, 40_000), opened.stored.held_out)[0])
    rows[trained, 5] = np.nan
    np.save(tmp_path / "x.npy", rows)
    blocks = ShuffledBlocks(opened.stored, 500, seed=0)
    with pytest.raises(NonFiniteError, match=rf"NaN in row {trained}, column 5. Mend the file"):
        epoch_of(blocks)


def test_nan_in_the_middle_of_a_training_has_the_advice_for_data(tmp_path):
    pytest.importorskip("torch")
    from runs_for_tests import iresnet

    rows = np.random.default_rng(0).standard_normal((4000, 64))
    data = written(tmp_path, ".npy", rows)
    few = ("--blocks", 1, "--hidden", 8, "--layers", 1, "--evaluate-every", 2, "--memory", 1, "--no-tensorboard")
    assert iresnet("train", data, "--out", tmp_path / "run", "--steps", 2, *few).exit_code == 0
    held_out = load_dataset(DatasetSource(str(data), memory=1)).stored.held_out
    rows[int(np.setdiff1d(np.arange(4000), held_out)[-1]), 5] = np.nan
    written(tmp_path, ".npy", rows)
    result = iresnet("train", data, "--out", tmp_path / "run", "--steps", 90, *few)
    assert result.exit_code == 2
    assert "Mend the file" in result.stderr
    assert "smaller" not in result.stderr  # as of a rate that is too large


def test_other_data_are_told_apart(tmp_path):
    rows = numbered(20_000)
    source = DatasetSource(str(written(tmp_path, ".npy", rows)), memory=1)
    known = fingerprint(load_dataset(source))
    assert fingerprint(load_dataset(source)) == known
    np.save(tmp_path / "x.npy", rows[:-1])
    assert fingerprint(load_dataset(source)) != known
    np.save(tmp_path / "x.npy", rows + 1)
    assert fingerprint(load_dataset(source)) != known


@pytest.mark.parametrize(
    ("rows", "options", "error", "words"),
    [
        (numbered(9), {}, ShapeError, "at least 10"),
        (numbered(100), {"memory": 0}, InvalidArgumentError, "at least 1 MiB"),
        (numbered(100), {"samples": 50}, InvalidArgumentError, "samples does not apply"),
        (np.full((100, 3), 0.5), {"levels": 4}, DataFileError, "whole numbers"),
        (np.full((100, 3), np.nan), {"missing": "impute"}, DataFileError, "has no value"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, rows, options, error, words):
    source = DatasetSource(str(written(tmp_path, ".npy", rows)), **{"memory": 1, **options})
    with pytest.raises(error, match=words):
        load_dataset(source)


def test_a_memory_too_small_to_shuffle_is_refused(tmp_path):
    """One large row group, or a handful of large samples, would tell too little of the data; what would do is said."""
    path = written(tmp_path, ".parquet", numbered(4000, 32), together=1000)
    with pytest.raises(InvalidArgumentError, match=r"1000 are stored together.*--memory 2, or write"):
        open_stored(path, 1, 0.1, seed=0)
    assert len(open_stored(path, 2, 0.1, seed=0).validation) == 400
    np.save(tmp_path / "wide.npy", np.zeros((40, 20_000)))
    with pytest.raises(InvalidArgumentError, match=r"holds 3 of the 40 samples.*--memory 14\."):
        open_stored(tmp_path / "wide.npy", 1, 0.1, seed=0)


def test_labels_are_refused(tmp_path):
    path = written(tmp_path, ".npy", numbered(1000, 4))
    with pytest.raises(InvalidArgumentError, match="all labels have to be known"):
        load_dataset(DatasetSource(str(path), memory=1, condition="2", labels="2"))


def test_memory_is_for_files_of_rows(tmp_path):
    with pytest.raises(InvalidArgumentError, match="memory does not apply"):
        load_dataset(DatasetSource("moons", memory=5))
    np.savetxt(tmp_path / "x.csv", numbered(20, 3), delimiter=",")
    with pytest.raises(DataFileError, match=r"\.npy, \.zarr and \.parquet"):
        load_dataset(DatasetSource(str(tmp_path / "x.csv"), memory=5))


def test_a_large_file_stays_where_it_is(tmp_path, monkeypatch):
    path = written(tmp_path, ".npy", numbered(1000))
    assert load_dataset(DatasetSource(str(path))).stored is None
    monkeypatch.setattr("iresnet_core.training.datasets._LARGE", 100_000)
    dataset = load_dataset(DatasetSource(str(path)))
    assert "shuffled blocks: 1024 MiB" in dataset.notes[0]


@pytest.mark.parametrize(
    "suffix", [".npy", *(pytest.param(suffix, marks=pytest.mark.strict_suite) for suffix in (".parquet", ".zarr"))]
)
def test_a_run_goes_on_with_the_same_samples(tmp_path, suffix):
    """A training in two halves has the parameters of one that was not interrupted."""
    pytest.importorskip("torch")
    from runs_for_tests import iresnet

    rows = np.random.default_rng(0).standard_normal((4000, 64)) @ np.diag(np.linspace(0.5, 2, 64))
    data = written(tmp_path, suffix, rows, together=200)
    few = ("--blocks", 1, "--hidden", 8, "--layers", 1, "--evaluate-every", 10, "--schedule", "constant")
    few += ("--memory", 1, "--no-tensorboard")
    for name, steps in (("whole", 20), ("parted", 9)):
        result = iresnet("train", data, "--out", tmp_path / name, "--steps", steps, *few)
        assert result.exit_code == 0, result.output
    assert "shuffled blocks: 1 MiB" in result.stdout
    again = iresnet("train", data, "--out", tmp_path / "parted", "--steps", 20, *few)
    assert again.exit_code == 0, again.output
    found = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parted")]
    assert found[0]["log_prob"] == found[1]["log_prob"]
    assert iresnet("score", tmp_path / "whole").exit_code == 0
    other = iresnet("train", data, "--out", tmp_path / "parted", "--steps", 30, *few[:-2], "2", "--no-tensorboard")
    assert other.exit_code == 2
    assert "memory" in other.stderr


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_a_convolutional_run_of_stored_images_goes_on_with_the_same_samples(tmp_path, shape):
    pytest.importorskip("torch")
    from runs_for_tests import iresnet

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (1500, shape[0], shape[1] // 4, shape[2] // 4))
    levels = np.kron(coarse, np.ones((4, 4))) + rng.integers(0, 50, (1500, *shape))
    data = written(tmp_path, ".npy", levels.astype(np.uint8))
    few = ("--model", "conv", "--blocks", 1, "--hidden", 8, "--batch", 16, "--evaluate-every", 3, "--memory", 3)
    few += ("--schedule", "constant", "--no-tensorboard")
    for name, steps in (("whole", 6), ("parted", 2)):
        result = iresnet("train", data, "--out", tmp_path / name, "--steps", steps, *few)
        assert result.exit_code == 0, result.output
    again = iresnet("train", data, "--out", tmp_path / "parted", "--steps", 6, *few)
    assert again.exit_code == 0, again.output
    found = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parted")]
    assert found[0]["log_prob"] == found[1]["log_prob"]
