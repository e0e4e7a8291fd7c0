"""Figure 3 and table 2 at a tiny size: their records, their pictures, and that finished trainings are kept."""

import os
from pathlib import Path

import numpy as np
import pytest
from cifar_for_tests import write_cifar10

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.reproduction import Request, figure3, find_target, table2
from iresnet_core.reproduction.cells import CellResult
from iresnet_core.reproduction.comparison import own_compiler
from iresnet_core.reproduction.image_pictures import image_rows
from iresnet_core.training import DatasetSource, load_dataset

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def test_table2(monkeypatch, tmp_path):
    trained = table2.trained_cell
    monkeypatch.setattr(table2, "trained_cell", lambda settings, data: trained({**settings, "steps": 3}, data))
    monkeypatch.setattr(table2.os, "cpu_count", lambda: 1)
    request = Request(tmp_path, seconds=1e6, data=("digits",), models=("ours",))
    record = find_target("table2")(request)
    named = dict(zip(record.columns, record.rows[0], strict=True))
    assert named["bits per dimension"] == "i-ResNet (ours)"
    assert 2 < float(named["digits"].split(" ± ")[0]) < 5
    assert float(named["digits, bias at most"]) < 1e-9
    assert named["digits, steps"] == 3
    assert named["MNIST, published"] == 1.06
    assert {row[0]: row[-1] for row in record.rows}["Glow, published"] == 1.05
    assert all(len(row) == len(record.columns) for row in record.rows)
    assert (tmp_path / "table2.png").stat().st_size > 5000
    assert find_target("table2")(request).details == record.details


def test_table2_beside_ffjord(monkeypatch, tmp_path):
    pytest.importorskip("zuko")
    trained = table2.trained_cell
    small = {"steps": 2, "parameters": 5000, "test_samples": 20}
    monkeypatch.setattr(table2, "trained_cell", lambda settings, data: trained({**settings, **small}, data))
    monkeypatch.setattr(table2.os, "cpu_count", lambda: 1)
    record = find_target("table2")(Request(tmp_path, seconds=1e6, data=("digits",), models=("ours", "ffjord")))
    assert [(row[0], row[-1]) for row in record.rows[:2]] == [("i-ResNet (ours)", 1.06), ("FFJORD", 0.99)]
    assert not any(row[0] == "FFJORD, published" for row in record.rows)
    told = (
        "Comparators have exact ones, but FFJORD, which solves an ODE "
        "(exact trace, solver with atol 1e-06, for digits)."
    )
    assert any(note.endswith(told) for note in record.notes)
    assert any("(FFJORD)" in note and "rows of pixels" in note for note in record.notes)


def test_what_is_said_of_the_log_determinants_of_comparators():
    results = {(data, "ffjord"): CellResult({"method": f"as for {data}"}) for data in ("digits", "mnist")}
    assert table2._of_comparators(("digits",), ("ours",), results) == ""
    assert table2._of_comparators(("digits",), ("ours", "glow"), results) == " Comparators have exact ones."
    assert table2._of_comparators(("digits", "mnist"), ("ours", "residualflow", "ffjord"), results) == (
        " Comparators have exact ones, but the residual flow, which has its own unbiased estimate, and FFJORD, which "
        "solves an ODE (as for digits, for digits; as for mnist, for mnist)."
    )


@pytest.mark.parametrize(
    ("asked", "compiler", "blocks", "compiled"),
    [
        ({"seconds": 300.0}, "g++", 4, False),
        ({"seconds": 1800.0}, "g++", 16, True),
        ({"seconds": 1800.0}, None, 16, False),
        ({"seconds": 1800.0, "device": "cuda"}, "g++", 16, False),
        ({"paper": True}, "g++", 16, True),
        ({"paper": True, "device": "cuda:1"}, "g++", 16, False),
    ],
)
def test_long_trainings_are_deep_and_compiled(monkeypatch, asked, compiler, blocks, compiled):
    digits = load_dataset(DatasetSource("digits"))
    monkeypatch.setattr(table2, "load_dataset", lambda source: digits)
    monkeypatch.setattr(table2, "with_ours", lambda settings, dataset: settings)
    monkeypatch.setattr(table2.shutil, "which", lambda name: compiler)
    settings = table2._settings(Request(None, **asked), "mnist")
    found = settings["asked"]
    assert found["blocks"] == blocks
    assert found.get("compiled", False) == compiled
    assert found.get("precision", "float32") == ("tf32" if asked == {"paper": True, "device": "cuda:1"} else "float32")
    assert settings.get("warm_up", 0) == (1000 if asked.get("paper") else 0)
    assert found["hidden"] == (512 if asked.get("paper") else 64 if blocks == 4 else 32)


def test_a_compiler_begins_from_nothing(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "kept")
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    with own_compiler():
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert not any(folder.iterdir())
        assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert not folder.exists()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "kept"
    assert "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ


def test_figure3(monkeypatch, tmp_path):
    monkeypatch.setattr(figure3, "_SMALL", {"blocks": 1, "hidden": 8, "steps": 4, "minutes": None, "evaluate_every": 2})
    monkeypatch.setattr(figure3, "_INVERTED", {"digits": 12})
    said = []
    request = Request(tmp_path, data=("digits",), say=said.append)
    record = find_target("figure3")(request)
    named = dict(zip(record.columns, record.rows[0], strict=True))
    assert named["test images"] == 12
    assert named["within the bound"] == "all"
    assert 0 < float(named["largest error"]) <= float(named["largest certified bound"]) < 1e-6
    assert float(named["largest constant"]) <= 0.9001
    assert named["steps"] == 4
    assert (tmp_path / "figure3-digits.png").stat().st_size > 5000
    assert any("bits per dimension" in line for line in said)
    again = find_target("figure3")(request)
    assert again.rows == record.rows
    assert (tmp_path / "run-digits" / "model.safetensors").is_file()


def test_figure3_of_cifar10(monkeypatch, tmp_path):
    """Where its file is, images in colour are a set like the others; they are none of those by default."""
    small = {"blocks": 1, "hidden": 4, "steps": 2, "minutes": None, "batch": 8, "evaluate_every": 2}
    monkeypatch.setattr(figure3, "_SMALL", small)
    monkeypatch.setitem(figure3._INVERTED, "cifar10", 3)
    monkeypatch.setattr(figure3, "_SHOWN", 3)
    request = Request(tmp_path / "run", data=("cifar10",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IRESNET_SHARED_DATA", str(tmp_path / "data"))
    with pytest.raises(InvalidArgumentError, match=r"cifar-10.*IRESNET_SHARED_DATA"):
        find_target("figure3")(request)
    write_cifar10(tmp_path / "data")
    request.out.mkdir()
    record = find_target("figure3")(request)
    named = dict(zip(record.columns, record.rows[0], strict=True))
    assert (named["data"], named["test images"], named["within the bound"]) == ("cifar10", 3, "all")
    assert record.pictures == ("figure3-cifar10.png",)
    assert (request.out / "figure3-cifar10.png").stat().st_size > 5000
    chosen = []
    planned = figure3._planned({"data": "digits", "seed": 0, "seconds": 1.0, "asked": small})
    monkeypatch.setattr(figure3, "_planned", lambda settings: chosen.append(settings["data"]) or planned)
    monkeypatch.setattr(figure3, "compute_cells", lambda request, cells: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_target("figure3")(Request(tmp_path))
    assert chosen == ["digits", "mnist"]


def test_rows_of_images_in_colour(tmp_path):
    image_rows(tmp_path / "x.png", {"data": np.random.default_rng(0).random((3, 3, 4, 5))})
    assert (tmp_path / "x.png").stat().st_size > 500
