"""Figure 3 and table 2 at a tiny size: their records, their pictures, and that finished trainings are kept."""

import numpy as np
import pytest

from iresnet_core.reproduction import Request, figure3, find_target, table2
from iresnet_core.reproduction.image_pictures import image_rows

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


def test_rows_of_images_in_colour(tmp_path):
    image_rows(tmp_path / "x.png", {"data": np.random.default_rng(0).random((3, 3, 4, 5))})
    assert (tmp_path / "x.png").stat().st_size > 500
