"""Damaged run folders: what is wrong is named, and no training goes on from it."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_trainings import Watcher, prepared, trained, without_times
from stored_models import assert_same

from iresnet_core.errors import RunError
from iresnet_core.files.storage import load
from iresnet_core.training import loop as training


@pytest.fixture
def numpy_framework(monkeypatch):
    monkeypatch.setitem(training._TRAINERS, "numpy", ("numpy_trainer", "numpy", ""))
    return "numpy"


def damaged(node, path, value):
    *place, last = path
    inner = node
    for name in place:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "other", "does not describe the training of a flow"),
        (["version"], 99, "version 99"),
        (["settings"], None, "no object"),
        (["settings", "model", "blocks"], "two", "blocks is 'two'"),
        (["settings", "model", "blocks"], True, "blocks is True"),
        (["settings", "model", "coeff"], 1.5, "coeff must be in"),
        (["settings", "training", "lr"], ..., "lr"),
        (["settings", "data", "more"], 1, "more"),
        (["layout"], {}, "damaged"),
        (["data_hash"], ..., "damaged"),
    ],
)
def test_damaged_settings_are_refused_with_the_field(numpy_framework, tmp_path, path, value, message):
    run, _, _ = prepared(tmp_path / "run", numpy_framework)
    node = json.loads(run.config_path.read_text())
    damaged(node, path, value)
    run.config_path.write_text(json.dumps(node))
    with pytest.raises(RunError) as caught:
        run.read_config()
    assert message in str(caught.value)
    assert str(run.config_path) in str(caught.value)


def test_damaged_files_are_refused_by_name(numpy_framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework)
    trained(run, config, dataset)
    for path, read in (
        (run.config_path, run.read_config),
        (run.checkpoint_path, run.load_checkpoint),
        (run.log_path, run.read_log),
        (run.result_path, run.read_result),
    ):
        path.write_bytes(b"step\nwhat")
        with pytest.raises(RunError) as caught:
            read()
        assert path.name in str(caught.value)


def test_a_row_that_was_cut_off_is_dropped(numpy_framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework)
    trained(run, config, dataset)
    rows = run.read_log()
    with open(run.log_path, "a", encoding="utf-8") as file:
        file.write("13,4.")
    run.forget_after(20)
    assert run.read_log() == rows
    run.forget_after(12)
    assert [row["step"] for row in run.read_log()] == [6, 12]
    run.forget_after(0)
    assert run.read_log() == []


# --- damage of every kind, and what follows from it ---


@pytest.fixture
def interrupted(numpy_framework, tmp_path):
    """A run that was interrupted at step 13 of 20, and what it becomes."""
    run, config, dataset = prepared(tmp_path / "run", numpy_framework)
    trained(run, config, dataset, Watcher(stop_after=13))
    whole = dataclasses.replace(run, folder=tmp_path / "whole")
    shutil.copytree(run.folder, whole.folder)
    trained(whole, config, dataset)
    return run, whole, dataset


def go_on_or_refuse(run, whole, dataset, name, content):
    """Resume a copy of the run in which one file has another content; say whether it was refused."""
    copy = dataclasses.replace(run, folder=run.folder.with_name("copy"))
    shutil.rmtree(copy.folder, ignore_errors=True)
    shutil.copytree(run.folder, copy.folder)
    (copy.folder / name).write_bytes(content)
    message = None
    try:
        trained(copy, copy.read_config(), dataset)
    except RunError as error:
        message = str(error)
    if message is not None:
        assert name in message
        return True
    first, second = load_file(whole.checkpoint_path), load_file(copy.checkpoint_path)
    assert set(first) == set(second)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert without_times(copy) == without_times(whole)
    assert_same(load(copy.model_path), load(whole.model_path))  # the last digit of a number may be another
    return False


@pytest.mark.parametrize("name", ["config.json", "checkpoint.safetensors", "log.csv", "model.safetensors"])
def test_a_damaged_file_is_refused_or_makes_no_difference(interrupted, name):
    run, whole, dataset = interrupted
    content = (run.folder / name).read_bytes()
    assert not go_on_or_refuse(run, whole, dataset, name, content)
    rng = np.random.default_rng(len(content))
    refused = 0
    damages = [content[: int(n)] for n in rng.integers(0, len(content), 40)] + [content + b"\0", content + b"1,2"]
    for place in rng.integers(0, len(content), 200):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        damages.append(bytes(flipped))
    for damage in damages:
        refused += go_on_or_refuse(run, whole, dataset, name, damage)
    assert refused > 150


def kinds_of_damage(node):
    """Every leaf and branch of plain data removed, or of another kind."""
    pairs = list(node.items() if isinstance(node, dict) else enumerate(node))
    for key, value in pairs:
        for other in (..., {"a": [1]}, "NaN", [None], True, -1.5):
            copy = json.loads(json.dumps(node))
            if other is ...:
                del copy[key]
            else:
                copy[key] = other
            yield copy
        if isinstance(value, dict | list):
            for inner in kinds_of_damage(value):
                copy = json.loads(json.dumps(node))
                copy[key] = inner
                yield copy


def test_settings_of_a_wrong_kind_are_refused_without_a_hash_too(interrupted):
    run, _, _ = interrupted
    node = json.loads(run.config_path.read_text())
    del node["sha256"]
    read = 0
    for damage in kinds_of_damage(node):
        run.config_path.write_text(json.dumps(damage))
        try:
            run.read_config()
        except RunError:
            continue
        read += 1
    # What is still sound: "NaN" as a name or as a device, no versions, a seed that is not needed, and the lack of what
    # older runs do not have (memory, spread, base, devices, squeeze, optimizer, precision).
    assert read < 48


def progress_of(run):
    with safe_open(run.checkpoint_path, framework="numpy") as file:
        return json.loads(file.metadata()["iresnet-run"])


def test_a_checkpoint_of_a_wrong_kind_is_refused_without_a_hash_too(interrupted):
    run, whole, dataset = interrupted
    arrays, progress = load_file(run.checkpoint_path), progress_of(run)
    del progress["sha256"]

    def refused(arrays, progress):
        path = run.folder.with_name("damaged")
        save_file(arrays, path, metadata={"iresnet-run": json.dumps(progress)})
        return go_on_or_refuse(run, whole, dataset, "checkpoint.safetensors", path.read_bytes())

    assert not refused(arrays, progress)
    assert not refused(arrays, {name: value for name, value in progress.items() if name != "log"})
    for name in progress:
        for value in ({}, "1", True, -1.5, float("nan")):
            if (name, value) not in (("losses", -1.5), ("best", -1.5)):
                assert refused(arrays, {**progress, name: value}), (name, value)
    for name, array in arrays.items():
        assert refused({key: a for key, a in arrays.items() if key != name}, progress)
        assert refused({**arrays, name: array[..., None]}, progress)
        if array.dtype.kind == "f":
            for bad in (np.nan, np.inf):
                assert refused(
                    {**arrays, name: np.where(np.arange(array.size).reshape(array.shape), array, bad)}, progress
                )


def test_a_result_that_was_changed_is_refused(interrupted):
    run, _, _ = interrupted
    result = {"log_prob": -2.5, "sampling_error": 0.5, "probe_error": 0.0, "bias_bound": 1e-9}
    result |= {"samples": 100, "step": 12, "steps": 20, "seconds": 1.5}
    run.write_result(result)
    assert run.read_result() == result
    text = run.result_path.read_text()
    run.result_path.write_text(text.replace("-2.5", "-1.5"))
    with pytest.raises(RunError, match=r"result\.json.*SHA-256"):
        run.read_result()
    for damage in kinds_of_damage(result):
        run.result_path.write_text(json.dumps(damage))
        try:
            assert run.read_result() == damage
        except RunError:
            continue
        assert all(type(value) in (int, float) for value in damage.values())


def test_a_log_that_was_deleted_begins_anew(interrupted):
    run, whole, dataset = interrupted
    run.log_path.unlink()
    trained(run, run.read_config(), dataset)
    assert [row["step"] for row in run.read_log()] == [18, 20]
    assert without_times(run) == without_times(whole)[2:]


def test_a_log_with_huge_cells_or_other_columns_is_refused(interrupted):
    run, _, _ = interrupted
    head, *rows = csv.reader(run.log_path.read_text().splitlines())
    for content in (
        "1" * 200_000,
        "step,seconds\n1,2\n",
        ",".join(head) + "\n" + ",".join(rows[0])[:-3] + ",9,9,9\n" + ",".join(rows[1]) + "\n",
        ",".join(head) + "\n" + ",".join(["nan"] * len(head)) + "\n",
    ):
        run.log_path.write_text(content + "\n" + "\0")
        for read in (run.read_log, lambda: run.forget_after(6)):
            with pytest.raises(RunError, match=r"log\.csv"):
                read()
