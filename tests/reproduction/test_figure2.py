"""Figure 2 at a tiny size: the record, the picture, the comparison on the same samples."""

import numpy as np
import pytest

from iresnet_core.errors import InvalidArgumentError, MissingDependencyError
from iresnet_core.reproduction import PEERS, Request, contender, figure2, find_target
from iresnet_core.reproduction.comparison import available, cell_of, difference, with_ours
from iresnet_core.training import DatasetSource, load_dataset
from iresnet_core.training import settings as defaults

pytest.importorskip("torch")
pytest.importorskip("matplotlib")


@pytest.fixture
def tiny(monkeypatch):
    """Trainings of three steps on a grid of few points."""
    trained = figure2.trained_cell
    monkeypatch.setattr(
        figure2, "trained_cell", lambda settings, data: trained({**settings, "steps": 3, "grid_points": 8}, data)
    )
    monkeypatch.setattr(figure2, "_SAMPLES", 500)
    monkeypatch.setattr(figure2, "_ASKED", {"blocks": 2, "hidden": 16})
    monkeypatch.setattr(figure2.os, "cpu_count", lambda: 1)


def test_ours_alone(tiny, tmp_path):
    said = []
    request = Request(tmp_path, seconds=1e6, data=("moons", "rings"), models=("ours",), say=said.append)
    record = find_target("figure2")(request)
    assert record.columns == ("test log-density, nats", "moons", "rings", "parameters", "steps")
    ((name, *means, parameters, steps),) = record.rows
    assert (name, steps) == ("i-ResNet (ours)", "3 to 3")
    assert all("±" in mean for mean in means)
    assert parameters == record.details[0]["parameters"] > 500
    assert all(one["method"] == "exact" and one["constant"] < 0.9001 for one in record.details)
    assert (tmp_path / "figure2.png").stat().st_size > 1000
    assert "--data moons,rings --models ours" in record.command
    said.clear()
    again = find_target("figure2")(request)
    assert again.details == record.details  # nothing was trained again
    assert any("not computed again" in line for line in said)


def test_beside_a_comparator(tiny, tmp_path):
    pytest.importorskip("zuko")
    record = find_target("figure2")(Request(tmp_path, seconds=1e6, data=("moons",), models=("ours", "realnvp")))
    assert [row[0] for row in record.rows] == ["i-ResNet (ours)", "Real NVP"]
    assert record.rows[0][2] == pytest.approx(record.rows[1][2], rel=0.1)
    scores = [np.load(tmp_path / "cells" / f"moons-{name}.scores.npy") for name in ("ours", "realnvp")]
    apart = difference(*scores)
    assert any(f"moons {apart.mean:+.3f} ± {apart.std_error:.3f} (Real NVP)" in note for note in record.notes)
    ahead = int(apart.mean >= -2 * apart.std_error)
    assert any(f"best coupling flow on {ahead} of 1 sets" in note for note in record.notes)


def test_models_whose_packages_are_missing_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(contender, "PEERS", {**PEERS, "glow": ("x", "y", ("a_package_that_is_not_there",))})
    said = []
    chosen, absent = available(Request(tmp_path, say=said.append), ("ours", "glow"))
    assert (chosen, absent) == (("ours",), ("glow",))
    assert "peers" in said[0]
    with pytest.raises(MissingDependencyError, match="peers"):
        available(Request(tmp_path, models=("glow",)), ("ours", "glow"))
    with pytest.raises(InvalidArgumentError, match="choose from"):
        available(Request(tmp_path, models=("none",)), ("ours", "glow"))


def test_other_defaults_are_other_cells_of_ours_alone(monkeypatch):
    dataset = load_dataset(DatasetSource("moons", samples=300))
    settings = {"data": "moons", "seed": 0, "batch": 50, "asked": {"hidden": 16}, "parameters": None}

    def cells():
        found = with_ours(settings, dataset)
        return [cell_of("moons", model, found, figure2.trained_cell).settings for model in ("ours", "glow")]

    ours, glow = cells()
    assert ours["ours"]["spread"] == 20
    assert ours["asked"] == {"hidden": 16}
    monkeypatch.setattr(defaults, "_PLANE_SPREAD", 1.0)
    others = cells()
    assert others[0]["ours"]["spread"] == 1
    assert others[1] == glow
    assert (glow["asked"], glow["parameters"], "ours" in glow) == ({}, ours["parameters"], False)
