"""Scores and samples chunk by chunk: the same answers as at once, kept over an interruption, in every format."""

import json
import math
import re
import time
from importlib.util import find_spec

import numpy as np
import pytest
from flow_examples import dense_block
from hypothesis import given
from hypothesis import strategies as st
from runs_for_tests import iresnet, untrained

import iresnet_core as core
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import DataFileError, InvalidArgumentError, RunError
from iresnet_core.files import open_rows, read_array, write_array
from iresnet_core.parallel import ChunkStore, SampleJob, rows_of_a_chunk, write_chunks
from iresnet_core.training import Scores, mean_score, merged_means, samples_at_once

pytest.importorskip("typer.testing")
N = 230
FORMATS = (".npy", ".csv", ".parquet", ".zarr")
PACKAGES = {".parquet": "pyarrow", ".zarr": "zarr"}


def a_flow(d=2, blocks=2):
    rng = np.random.default_rng(0)
    return core.Flow([dense_block(find_backend("numpy"), rng, d) for _ in range(blocks)], (d,))


@pytest.fixture
def files(tmp_path):
    """A model and samples of it."""
    core.save(a_flow(), tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(N, 2)))
    return tmp_path


def scored(folder, name="scores.npy", *more):
    arguments = ("score", folder / "m.safetensors", folder / "x.npy", "--chunk", "50", "--out", folder / name, *more)
    return iresnet(*arguments)


def interrupted_after_a_chunk(folder, monkeypatch):
    """Leave a command that keeps its first chunk, and no other."""
    original, begun = core.Flow.log_prob, []

    def interrupted(self, x, *arguments, **options):
        begun.append(len(x))
        if len(begun) > 1:
            raise KeyboardInterrupt
        return original(self, x, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(core.Flow, "log_prob", interrupted)
        assert scored(folder).exit_code == 130


def expected(folder):
    return core.load(folder / "m.safetensors").log_prob(np.load(folder / "x.npy")).value


def columns_of(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".csv":
        return np.genfromtxt(path, delimiter=",", names=True)
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path)
    return pytest.importorskip("zarr").open_group(str(path), mode="r")


@pytest.mark.parametrize("suffix", FORMATS)
def test_scores_are_those_without_chunks(files, suffix):
    pytest.importorskip(PACKAGES.get(suffix, "numpy"))
    result = scored(files, f"scores{suffix}")
    assert result.exit_code == 0, result.output
    found = columns_of(files / f"scores{suffix}")
    np.testing.assert_allclose(np.asarray(found["log_prob"]), expected(files), rtol=1e-13)
    np.testing.assert_array_equal(np.asarray(found["sample"]), np.arange(N))
    assert np.all(np.asarray(found["bias_bound"]) < 1e-10)
    assert not (files / f"scores{suffix}.chunks").exists()
    at_once = iresnet("score", files / "m.safetensors", files / "x.npy")
    assert at_once.stdout.splitlines()[1] == result.stdout.splitlines()[1]


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".zarr"])
def test_rows_of_every_format(tmp_path, suffix):
    module = pytest.importorskip(PACKAGES.get(suffix, "numpy"))
    x = np.random.default_rng(0).normal(size=(20, 3))
    path = tmp_path / f"x{suffix}"
    if suffix == ".zarr":
        module.save(str(path), x)
    else:
        write_array(path, x)
    source = open_rows(path)
    assert source.shape == (20, 3)
    assert len(source) == 20
    rows = source.read(7, 15)
    np.testing.assert_array_equal(getattr(rows, "values", rows), x[7:15])


def test_a_folder_of_tables(tmp_path):
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = np.random.default_rng(0).normal(size=(30, 2))
    (tmp_path / "t").mkdir()
    for k in range(3):
        part = arrow.table({"a": x[10 * k : 10 * k + 10, 0], "b": x[10 * k : 10 * k + 10, 1]})
        writer.write_table(part, tmp_path / "t" / f"{k}.parquet", row_group_size=4)
    np.testing.assert_array_equal(open_rows(tmp_path / "t").read(8, 23).values, x[8:23])
    writer.write_table(arrow.table({"a": x[:, 0]}), tmp_path / "t" / "3.parquet")
    with pytest.raises(DataFileError, match="has the columns a, "):
        open_rows(tmp_path / "t")


def test_finished_chunks_are_kept_and_not_computed_again(files, monkeypatch):
    complete = files / "complete.npy"
    assert scored(files, "complete.npy").exit_code == 0
    original, computed = core.Flow.log_prob, []

    def interrupted(self, x, *arguments, **options):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(len(x))
        return original(self, x, *arguments, **options)

    monkeypatch.setattr(core.Flow, "log_prob", interrupted)
    result = scored(files)
    assert result.exit_code == 130
    assert "2 of 5 chunks" in result.output
    kept = files / "scores.npy.chunks"
    (kept / "000000001.npz").write_bytes((kept / "000000001.npz").read_bytes()[:-40])  # a disk that lost a part
    (kept / ".000000002.npz.abc.tmp").write_bytes(b"a draft")
    computed.clear()
    monkeypatch.setattr(core.Flow, "log_prob", lambda *a, **o: computed.append(1) or original(*a, **o))
    result = scored(files)
    assert result.exit_code == 0, result.output
    assert len(computed) == 4
    assert (files / "scores.npy").read_bytes() == complete.read_bytes()


def test_chunks_of_another_command_are_not_taken(files):
    job = SampleJob(a_flow(), 10, 4, 0)
    with ChunkStore.of(job, files / "c") as store:
        store.write(0, job.chunk(0))
    with pytest.raises(RunError, match="seed differs"), ChunkStore.of(SampleJob(a_flow(), 10, 4, 1), files / "c"):
        pass
    with (
        pytest.raises(RunError, match="model differs"),
        ChunkStore.of(SampleJob(a_flow(blocks=1), 10, 4, 0), files / "c"),
    ):
        pass
    (files / "c" / "plan.json").write_text("{")
    with pytest.raises(RunError, match="damaged"), ChunkStore.of(job, files / "c"):
        pass
    (files / "c" / "plan.json").unlink()
    with pytest.raises(RunError, match=r"no plan\.json"), ChunkStore.of(job, files / "c"):
        pass


def test_a_plan_without_chunks_stands_in_nobodys_way(files):
    with ChunkStore.of(SampleJob(a_flow(), 10, 4, 0), files / "c"):
        pass  # as a command does that finds no scheduler
    job = SampleJob(a_flow(), 10, 4, 1)
    with ChunkStore.of(job, files / "c") as store:
        store.write(0, job.chunk(0))
    with ChunkStore.of(job, files / "c") as store:
        assert store.done() == {0}


def test_samples(files):
    out = files / "s.npy"
    arguments = ("sample", files / "m.safetensors", "-n", "130", "--chunk", "50", "--out", out)
    result = iresnet(*arguments)
    assert result.exit_code == 0, result.output
    assert "certainly at most" in result.stdout
    drawn = np.load(out)
    assert drawn.shape == (130, 2)
    assert len(np.unique(drawn[:, 0])) == 130  # every chunk has noise of its own
    z = core.load(files / "m.safetensors")(drawn)
    assert np.abs(z.mean(0)).max() < 5 / math.sqrt(130)
    assert iresnet(*arguments).exit_code == 0
    np.testing.assert_array_equal(np.load(out), drawn)


def test_images_of_grey_levels(tmp_path):
    """The noise of dequantisation belongs to the chunk, and whole numbers are levels in every chunk or in none."""
    run = tmp_path / "run"
    pytest.importorskip("torch")
    few = ("--steps", 2, "--blocks", 1, "--hidden", 8, "--layers", 1, "--evaluate-every", 2, "--no-tensorboard")
    assert iresnet("train", "digits", "--out", run, *few).exit_code == 0
    levels = np.random.default_rng(0).integers(0, 17, size=(20, 8, 8))
    levels[:5] = 0
    np.save(tmp_path / "x.npy", levels)
    out = tmp_path / "scores.npy"
    result = iresnet("score", run, tmp_path / "x.npy", "--chunk", 5, "--out", out)
    assert result.exit_code == 0, result.output
    bits = np.load(out)["bits_per_dim"]
    assert bits.shape == (20,)
    assert np.std(bits[:5]) > 0
    at_once = iresnet("score", run, tmp_path / "x.npy")
    words = [text.stdout.split("log-density ")[1].split() for text in (at_once, result)]
    values, errors = ([float(line[k]) for line in words] for k in (0, 2))
    assert values[0] != values[1]  # each has noise of its own
    assert abs(values[0] - values[1]) < 5 * np.hypot(*errors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x.npz"), r"written to \.npy, \.csv"),
        (("--dask", "many"), "give a number of workers, or the address"),
        (("--dask", "0"), "between 1 and"),
        (("--samples", "0"), "greater than or equal to 1|not in the range"),
        (("--key", "y"), "leave out --key y"),
    ],
)
def test_what_cannot_be_done_is_said(files, arguments, message):
    if "--dask" in arguments:
        pytest.importorskip("distributed")
    result = iresnet("score", files / "m.safetensors", files / "x.npy", "--chunk", "50", *arguments)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.replace("│", " ").split()))


def test_first_samples_alone(files):
    for more in ((), ("--chunk", "4")):
        result = iresnet("score", files / "m.safetensors", files / "x.npy", "--samples", "10", *more)
        assert f"log-density {expected(files)[:10].mean():.4f}" in result.stdout
    result = iresnet("score", files / "m.safetensors", "--chunk", "4")
    assert result.exit_code == 2
    assert "test set" in result.output


def test_a_file_that_was_written_again_is_another_one(files, monkeypatch):
    interrupted_after_a_chunk(files, monkeypatch)
    np.save(files / "x.npy", np.random.default_rng(2).normal(size=(N, 2)))
    result = scored(files)
    assert result.exit_code == 2
    assert "changed differs" in result.output


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_chunks_of_which_every_row_has_gaps(tmp_path, suffix):
    pytest.importorskip("torch")
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = np.random.default_rng(0).normal(size=(300, 2))
    x[:60, 1] = np.nan
    table = tmp_path / "t.parquet"
    writer.write_table(arrow.table({"a": x[:, 0], "b": x[:, 1]}), table)
    few = ("--steps", 2, "--blocks", 1, "--hidden", 8, "--layers", 1, "--evaluate-every", 2, "--no-tensorboard")
    assert iresnet("train", table, "--missing", "drop", "--out", tmp_path / "run", *few).exit_code == 0
    out = tmp_path / f"scores{suffix}"
    result = iresnet("score", tmp_path / "run", table, "--chunk", 20, "--out", out)
    assert result.exit_code == 0, result.output
    assert "240 samples" in result.stdout
    np.testing.assert_array_equal(columns_of(out)["sample"], np.arange(60, 300))
    assert "rows with missing values are left out" in result.stdout
    for name in ("none.npy", "none.csv"):
        result = iresnet("score", tmp_path / "run", table, "--chunk", 20, "--samples", 40, "--out", tmp_path / name)
        assert result.exit_code == 2
        assert "every row" in " ".join(result.output.split())
        assert not list(tmp_path.glob("none*"))
    if find_spec("zarr"):
        zarr = pytest.importorskip("zarr")
        assert iresnet("score", tmp_path / "run", table, "--chunk", 20, "--out", tmp_path / "s.zarr").exit_code == 0
        assert zarr.open_group(str(tmp_path / "s.zarr"), mode="r")["log_prob"].chunks == (20,)
    x[15, 0] = np.inf
    writer.write_table(arrow.table({"a": x[:, 0], "b": x[:, 1]}), table)
    for chunk in (10, 100):
        result = iresnet("score", tmp_path / "run", table, "--chunk", chunk)
        assert "infinity in sample 15" in " ".join(result.output.split())
    result = iresnet("score", tmp_path / "run", table, "--key", "a")
    assert result.exit_code == 2
    assert "leave out --key" in " ".join(result.output.split())


@pytest.mark.parametrize("missing", ["impute", "drop"])
def test_gaps_in_an_array_are_those_of_a_table(tmp_path, missing):
    pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(300, 2))
    x[::7, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    few = ("--steps", 2, "--blocks", 1, "--hidden", 8, "--layers", 1, "--evaluate-every", 2, "--no-tensorboard")
    run = tmp_path / "run"
    assert iresnet("train", tmp_path / "x.npy", "--missing", missing, "--out", run, *few).exit_code == 0
    at_once = iresnet("score", run, tmp_path / "x.npy")
    in_chunks = iresnet("score", run, tmp_path / "x.npy", "--chunk", 50)
    assert at_once.exit_code == in_chunks.exit_code == 0
    n = 300 if missing == "impute" else 300 - 43
    for result in (at_once, in_chunks):
        assert f"{n} samples" in result.stdout
    assert re.findall(r"log-density \S+", at_once.stdout) == re.findall(r"log-density \S+", in_chunks.stdout)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_nan_is_named_with_its_row_in_the_file(files, suffix):
    x = np.load(files / "x.npy")
    x[130, 1] = np.nan
    table = files / f"gaps{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write_array(table, x)
    result = iresnet("score", files / "m.safetensors", table, "--chunk", 50)
    assert result.exit_code == 2
    assert "sample 130 at (1,), and so in 1 of the samples 100 to 149" in " ".join(result.output.split())
    x[3] = np.inf
    write_array(table, x)
    result = iresnet("score", files / "m.safetensors", table, "--chunk", 50)
    assert "infinity in sample 3 at (0,), and so in 1 of the samples 0 to 49" in " ".join(result.output.split())


def test_a_table_of_a_run_with_nan_is_named_with_its_row_in_the_file(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("pyarrow")
    x = np.random.default_rng(0).normal(size=(300, 2))
    write_array(tmp_path / "x.parquet", x)
    few = ("--steps", 2, "--blocks", 1, "--hidden", 8, "--layers", 1, "--evaluate-every", 2, "--no-tensorboard")
    assert iresnet("train", tmp_path / "x.parquet", "--out", tmp_path / "run", *few).exit_code == 0
    x[130, 1] = np.nan
    write_array(tmp_path / "y.parquet", x)
    result = iresnet("score", tmp_path / "run", tmp_path / "y.parquet", "--chunk", 50)
    assert result.exit_code == 2
    assert "NaN in sample 130, column 1, and so in 1 of the samples 100 to 149" in " ".join(result.output.split())
    x[130, 1] = np.inf
    write_array(tmp_path / "y.parquet", x)
    result = iresnet("score", tmp_path / "run", tmp_path / "y.parquet", "--chunk", 50)
    assert "infinity in sample 130, column 1" in " ".join(result.output.split())


def test_a_key_of_arrays_without_names_is_refused(files):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(str(files / "x.zarr"), np.load(files / "x.npy"))
    names = ["x.npy", "x.zarr"]
    if find_spec("pyarrow"):
        write_array(files / "x.parquet", np.load(files / "x.npy"))
        names.append("x.parquet")
    for name in names:
        assert open_rows(files / name).shape == (N, 2)
        with pytest.raises(DataFileError, match="leave out --key y"):
            open_rows(files / name, "y")


@pytest.mark.parametrize("key", [None, "x"])
def test_a_zarr_array_that_was_written_in_place_is_another_one(files, key):
    zarr = pytest.importorskip("zarr")
    x = np.load(files / "x.npy")
    group = zarr.open_group(str(files / "g.zarr"), mode="w")
    target = group.create_array("x", shape=x.shape, chunks=(50, 2), dtype=x.dtype)
    target[:] = x
    path = files / "g.zarr" if key else files / "g.zarr" / "x"
    path = path if key else path.rename(files / "plain.zarr")
    before = open_rows(path, key).changed
    time.sleep(0.02)
    opened = zarr.open(str(path), mode="r+")
    (opened[key] if key else opened)[:50] = 1.0
    assert open_rows(path, key).changed > before


def test_one_file_is_one_file_however_its_path_is_written(files, monkeypatch):
    interrupted_after_a_chunk(files, monkeypatch)
    (files / "folder").mkdir()
    again = ("--chunk", 50, "--out", files / "scores.npy")
    result = iresnet("score", files / "m.safetensors", files / "folder" / ".." / "x.npy", *again)
    assert result.exit_code == 0, result.output
    assert "1 of 5 chunks are done" in result.stderr


def test_files_of_a_folder_with_numbers_of_other_types(files):
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder, x = files / "folder", np.arange(200).reshape(100, 2)
    folder.mkdir()
    for name, kind in (("a", "float64"), ("b", "float32"), ("c", "int64")):
        writer.write_table(arrow.table({str(k): x[:, k].astype(kind) for k in range(2)}), folder / f"{name}.parquet")
    rows = open_rows(folder).read(50, 250).numbers()
    np.testing.assert_array_equal(rows, np.concatenate([x, x, x])[50:250])
    writer.write_table(arrow.table({"0": x[:, 0], "1": ["a"] * 100}), folder / "d.parquet")
    with pytest.raises(DataFileError, match=r"d\.parquet holds string in its column 1, .*a\.parquet holds double"):
        open_rows(folder)


def test_samples_in_a_table_are_read_back_as_they_were_drawn(files):
    for name in ("s.csv", "s.npy"):
        assert iresnet("sample", files / "m.safetensors", "-n", 20, "--chunk", 10, "--out", files / name).exit_code == 0
    np.testing.assert_allclose(read_array(files / "s.csv"), np.load(files / "s.npy"), rtol=1e-6)


def test_images_in_a_table_are_refused_before_they_are_drawn(tmp_path):
    core.save(core.Flow([core.ActNorm(np.ones(1), np.zeros(1))], (1, 4, 4)), tmp_path / "m.safetensors")
    for name in ("s.csv", "s.parquet"):
        result = iresnet("sample", tmp_path / "m.safetensors", "-n", 20, "--chunk", 10, "--out", tmp_path / name)
        assert result.exit_code == 2
        assert "cannot hold samples of shape" in " ".join(result.output.split())
        assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_grey_levels_stay_grey_levels(tmp_path):
    """What the first chunk says of a file of floating-point numbers holds for all of it, or is refused."""
    untrained(tmp_path / "run", "digits")
    x = np.random.default_rng(0).integers(0, 17, (200, 1, 8, 8)).astype(np.float64)
    x[150, 0, 2, 3] = 3.5
    np.save(tmp_path / "x.npy", x)
    result = iresnet("score", tmp_path / "run", tmp_path / "x.npy", "--chunk", 50)
    assert result.exit_code == 2
    assert "sample 150 holds other numbers" in " ".join(result.output.split())


def test_a_table_cannot_hold_images(tmp_path):
    with pytest.raises(DataFileError, match=r"\.npy or \.zarr"):
        write_chunks(tmp_path / "x.csv", [{"value": np.zeros((2, 3, 3))}], 2, 2)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_mean_of_parts_is_that_of_all(parts):
    def of(values):
        values = np.array(values)
        return mean_score(Scores(values, np.abs(values), np.abs(values) / 2, "exact"))

    merged, whole = merged_means(map(of, parts)), of([v for part in parts for v in part])
    np.testing.assert_allclose(merged, whole, rtol=1e-9, atol=1e-9)


def test_a_chunk_is_a_whole_number_of_batches():
    for shape in ((2,), (64,), (1, 28, 28), (3, 32, 32)):
        assert 1 <= rows_of_a_chunk(shape) * math.prod(shape) <= 2**21
        assert rows_of_a_chunk(shape) % samples_at_once(shape) == 0
    with pytest.raises(InvalidArgumentError):
        list(map(SampleJob(a_flow(), 0, 1, 0).chunk, [0]))


def test_the_plan_of_a_store_is_plain(tmp_path):
    with ChunkStore.of(SampleJob(a_flow(), 3, 2, 5), tmp_path / "c"):
        plan = json.loads((tmp_path / "c" / "plan.json").read_text())
    assert plan["seed"] == 5
    assert plan["job"] == "sample"
