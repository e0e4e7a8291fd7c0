"""Requests, cells, records and the page: what a run keeps, and what it does not compute twice."""

import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from iresnet_core.cli import build_app
from iresnet_core.commands.reproduce import reproduce_command
from iresnet_core.errors import DeviceError, InvalidArgumentError, MissingDependencyError, RunError
from iresnet_core.files import digest_of
from iresnet_core.reproduction import (
    PEERS,
    PUBLISHED,
    TARGETS,
    Cell,
    CellResult,
    Record,
    Request,
    comparison,
    compute_cells,
    find_peer,
    find_target,
    page_text,
    read_record,
    write_record,
)
from iresnet_core.training import DatasetSource, load_dataset, maf_table_names

ROOT = Path(__file__).resolve().parent.parent.parent
CALLS = []


def squared(settings):
    CALLS.append(settings["x"])
    return CellResult({"value": settings["x"] ** 2}, {"grid": np.arange(3.0) * settings["x"]})


def cells(*numbers):
    return [Cell(f"square-{x}", {"x": x}, squared) for x in numbers]


def a_record(**changes):
    made = Record("squares", "Squares", "iresnet reproduce squares", 0, ("x", "square"), ((1, 1.0), (2, None)))
    return dataclasses.replace(made, notes=("A note.",), **changes)


def test_a_finished_cell_is_not_computed_again(tmp_path):
    CALLS.clear()
    said = []
    request = Request(tmp_path, say=said.append)
    first = compute_cells(request, cells(2, 3))
    again = compute_cells(request, cells(2, 3, 4))
    assert CALLS == [2, 3, 4]
    assert [one.values["value"] for one in again.values()] == [4, 9, 16]
    np.testing.assert_array_equal(again["square-3"].arrays["grid"], first["square-3"].arrays["grid"])
    assert again["square-3"].seconds == first["square-3"].seconds
    assert any("2 of 3 parts" in line for line in said)


def test_a_cell_of_other_settings_or_with_damage_is_computed_again(tmp_path):
    CALLS.clear()
    request = Request(tmp_path)
    compute_cells(request, cells(2))
    compute_cells(request, [Cell("square-2", {"x": 5}, squared)])
    assert CALLS == [2, 5]
    (tmp_path / "cells" / "square-2.json").write_text("{")
    compute_cells(request, [Cell("square-2", {"x": 5}, squared)])
    np.save(tmp_path / "cells" / "square-2.grid.npy", np.zeros(3))
    compute_cells(request, [Cell("square-2", {"x": 5}, squared)])
    assert CALLS == [2, 5, 5, 5]


def test_an_interrupted_run_keeps_what_was_finished(tmp_path):
    def interrupted(settings):
        raise KeyboardInterrupt

    CALLS.clear()
    request = Request(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compute_cells(request, [*cells(2), Cell("stops", {}, interrupted)])
    compute_cells(request, cells(2))
    assert CALLS == [2]


def test_cells_in_two_processes(tmp_path):
    # Another process imports the function by its name, which it cannot do with one of a test file.
    chosen = [Cell(f"cell-{k}", {"k": k}, CellResult) for k in range(3)]
    found = compute_cells(Request(tmp_path), chosen, processes=2)
    assert [one.values for one in found.values()] == [{"k": 0}, {"k": 1}, {"k": 2}]


SPEAKING = """
import sys
from pathlib import Path
from iresnet_core.reproduction import Cell, CellResult, Request, compute_cells, in_progress

def speak(settings):
    cell = in_progress()
    before = cell.unfinished.read()
    cell.say(f"{settings['k']} goes on from {before and before[0]}")
    if before is None:
        cell.unfinished.write({"step": 7}, {})
        raise RuntimeError("interrupted")
    return CellResult({"k": settings["k"]})

if __name__ == "__main__":
    processes = int(sys.argv[2])
    cells = [Cell(f"c{k}", {"k": k}, speak) for k in range(2)]
    compute_cells(Request(Path(sys.argv[1]), say=print), cells, processes)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_cells_speak_and_go_on_from_what_they_kept(tmp_path, processes):
    (tmp_path / "speaking.py").write_text(SPEAKING)
    command = [sys.executable, "speaking.py", "run", str(processes)]
    runs = [subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False) for _ in range(3)]
    assert "0 goes on from None" in runs[0].stdout
    assert "interrupted" in runs[0].stderr
    assert runs[-1].returncode == 0, runs[-1].stderr
    said = "".join(run.stdout for run in runs)
    assert all(f"{k} goes on from {{'step': 7}}" in said for k in range(2))
    names = {path.name for path in (tmp_path / "run" / "cells").iterdir()}
    assert {name for name in names if not name.startswith(".")} == {"c0.json", "c1.json"}  # a draft may be left


BEATING = """
import os, sys, time
from pathlib import Path
from iresnet_core.reproduction import Cell, Request, compute_cells

def beat(settings):
    Path(settings["path"] + ".pid").write_text(str(os.getpid()))
    for _ in range(600):
        Path(settings["path"]).write_text(str(time.time()))
        time.sleep(0.05)

if __name__ == "__main__":
    cells = [Cell(f"c{k}", {"path": f"beat{k}"}, beat) for k in range(2)]
    compute_cells(Request(Path(sys.argv[1])), cells, processes=2)
"""


def test_cells_end_with_a_run_that_is_killed(tmp_path):
    (tmp_path / "beating.py").write_text(BEATING)
    beats = [tmp_path / "beat0", tmp_path / "beat1"]
    run = subprocess.Popen([sys.executable, "beating.py", "run"], cwd=tmp_path)

    def still():
        before = [path.read_text() for path in beats]
        time.sleep(0.5)
        return before == [path.read_text() for path in beats]

    try:
        waited_for(lambda: all(path.is_file() for path in beats))
        run.kill()
        run.wait()
        waited_for(still)
    finally:
        run.kill()
        for path in tmp_path.glob("*.pid"):
            with contextlib.suppress(OSError):
                os.kill(int(path.read_text()), signal.SIGTERM)


def waited_for(condition):
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + 25
        time.sleep(0.05)


def test_a_record_is_read_back(tmp_path):
    record = a_record(settings={"blocks": 8}, details=({"mean": 0.1},), pictures=("a.png",))
    assert read_record(write_record(tmp_path, record)) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: text.replace('"square"', '"cube"'), "changed"),
        (lambda text: "[]", "changed"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change, message):
    path = write_record(tmp_path, a_record())
    path.write_text(change(path.read_text()))
    with pytest.raises(RunError, match=message):
        read_record(path)


def test_a_record_of_other_fields_is_refused(tmp_path):
    path = write_record(tmp_path, a_record())
    node = json.loads(path.read_text())
    del node["sha256"], node["notes"]
    path.write_text(json.dumps({**node, "sha256": digest_of(node)}))
    with pytest.raises(RunError, match="notes"):
        read_record(path)
    with pytest.raises(RunError, match="no file"):
        read_record(tmp_path / "none.json")


def test_the_page_is_that_of_the_records():
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert page == page_text(ROOT / "docs" / "reproduction"), "run: iresnet reproduce page"


def test_the_page_has_the_numbers_of_a_record(tmp_path):
    write_record(tmp_path, a_record(pictures=("a.png",)))
    text = page_text(tmp_path)
    for part in ("## Squares", "$ iresnet reproduce squares", "| 2 | - |", "A note.", "(reproduction/a.png)", "seed 0"):
        assert part in text


def test_a_request_knows_its_command():
    request = Request(Path("x"), seconds=4.5, seed=2, data=("a", "b"), paper=True, device="cuda")
    assert request.command("t") == "iresnet reproduce t --seconds 4.5 --seed 2 --data a,b --paper --device cuda"
    assert request.chosen("data", ("a", "b", "c")) == ("a", "b")
    assert request.chosen("models", ("m", "n")) == ("m", "n")
    with pytest.raises(InvalidArgumentError, match="choose from c"):
        request.chosen("data", ("c",))
    for wrong in ({"seconds": 0.0}, {"seconds": float("nan")}, {"seed": -1}):
        with pytest.raises(InvalidArgumentError):
            Request(Path("x"), **wrong)


def test_the_record_names_the_accelerator(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    import torch

    from iresnet_core.adapters.torch import devices
    from iresnet_core.reproduction.record import machine_name

    monkeypatch.setattr(devices, "training_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Fake GPU {device.index}")
    assert machine_name("cuda") == machine_name(None) == f"{machine_name()}, Fake GPU 0"
    assert "GPU" not in machine_name("cpu")
    module = types.ModuleType("a_target")
    module.reproduce = lambda request: a_record()
    monkeypatch.setitem(sys.modules, "a_target", module)
    monkeypatch.setitem(TARGETS, "squares", ("a_target", "squares"))
    run = find_target("squares")
    assert run(Request(tmp_path, device="cuda")).machine.endswith(", Fake GPU 0")
    assert "GPU" not in run(Request(tmp_path)).machine


def test_every_target_and_peer_is_there():
    for name in TARGETS:
        assert callable(find_target(name))
    with pytest.raises(InvalidArgumentError, match="there are"):
        find_target("figure0")
    with pytest.raises(InvalidArgumentError, match="no peer"):
        find_peer("none")


def test_the_page_of_options_has_all_of_them():
    """Targets, data sets and models with their names, options of the command, and what the extra has to hold."""
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for name in TARGETS:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        module = importlib.import_module(TARGETS[name][0])
        timed = getattr(module, "SECONDS", ())
        sets = (
            *getattr(module, "SETS", ()),
            *getattr(module, "SMALL", ()),
            *(timed if isinstance(timed, dict) else ()),
        )
        for known in (*sets, *getattr(module, "MODELS", ())):
            assert known in row, f"{name}: {known}"
    options = [f"--{name}" for name in inspect.signature(reproduce_command).parameters if name != "what"]
    for option in (*options, "mnist.npz", "IRESNET_SHARED_DATA", "h5py", *maf_table_names()):
        assert option in page, option
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert any(one.startswith("h5py") for one in extras["peers"])


def test_a_peer_whose_package_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(PEERS, "ghost", ("a_module_of_peers", "ghost", ("a_package_that_is_not_there",)))
    with pytest.raises(MissingDependencyError, match=r"iresnet-core\[peers\]"):
        find_peer("ghost")


def test_published_figures_have_a_source():
    assert all(one.source and one.what and one.values for one in PUBLISHED.values())


def iresnet(*arguments):
    return CliRunner().invoke(build_app(("reproduce",)), ["reproduce", *map(str, arguments)])


@pytest.fixture
def squares(monkeypatch, tmp_path):
    """A target of the table, whose record has a picture, and a clone to keep it in."""
    from iresnet_core.commands import reproduce as command

    def reproduce(request):
        if request.data == ("stop",):
            raise KeyboardInterrupt
        (request.out / "a.png").write_bytes(b"picture")
        return a_record(command=request.command("squares"), pictures=("a.png",))

    monkeypatch.setattr(command, "find_target", lambda name: reproduce)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_and_keeps_a_record(squares):
    (squares / "docs").mkdir()
    (squares / "mkdocs.yml").touch()
    result = iresnet("squares", "--seed", 3, "--keep")
    assert result.exit_code == 0, result.output
    assert (squares / "runs" / "reproduce-squares" / "squares.json").is_file()
    assert (squares / "docs" / "reproduction" / "a.png").read_bytes() == b"picture"
    page = (squares / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert "$ iresnet reproduce squares --seed 3" in page
    assert page == page_text(squares / "docs" / "reproduction")
    assert iresnet("page").exit_code == 0
    # Some of the data and models alone stand beside the whole, and leave it as it was.
    assert iresnet("squares", "--models", "b,a", "--keep").exit_code == 0
    assert iresnet("squares", "--models", "b", "--data", "few", "--keep").exit_code == 0
    names = {path.name for path in (squares / "docs" / "reproduction").iterdir()}
    records = {"squares.json", "squares-a-b.json", "squares-few-b.json"}
    assert names == {*records, "a.png", "a-a-b.png", "a-few-b.png"}
    both = (squares / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert both.startswith(page.split("## ")[0])
    assert [line for line in both.splitlines() if line.startswith("## ")] == [
        "## Squares",
        "## Squares (a, b)",
        "## Squares (few, b)",
    ]
    assert "(reproduction/a-a-b.png)" in both


def test_the_command_says_how_to_go_on(squares):
    result = iresnet("squares", "--data", "stop")
    assert result.exit_code == 130
    assert "goes on from there" in result.output


def test_the_command_refuses_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert iresnet("figure0").exit_code == 2
    assert iresnet("page").exit_code == 2


@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("figure1", {"device": "cpu"}),
        ("figure1", {"seconds": 2}),
        ("ablation", {"paper": True}),
        ("figure2", {"paper": True}),
    ],
)
def test_options_without_a_meaning_are_refused(tmp_path, target, option):
    with pytest.raises(InvalidArgumentError, match=f"--{next(iter(option))} has no meaning"):
        find_target(target)(Request(tmp_path, **option))


def test_all_models_of_a_comparison_are_on_one_device(monkeypatch):
    pytest.importorskip("torch")
    dataset = load_dataset(DatasetSource("moons", samples=200))
    settings = {"data": "moons", "seed": 0, "batch": 50, "parameters": None}
    model = comparison.made_model("ours", dataset, np.zeros((4, 2)) + np.arange(4)[:, None], settings)
    assert model.trainer.settings.device == "cpu"
    with pytest.raises(DeviceError, match="--device abacus cannot be used"):
        comparison.made_model("ours", dataset, dataset.train[:4], {**settings, "device": "abacus"})
