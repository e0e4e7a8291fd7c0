"""Tabular densities at a tiny size: the folds, the noise, the record."""

import numpy as np
import pytest

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.reproduction import Request, find_target, tables
from iresnet_core.reproduction.score_pictures import axis_limits, score_points
from iresnet_core.training import Dataset

VALUES = np.random.default_rng(0).normal(size=(60, 3)).round(1)
VALUES[:, 1] = np.arange(60) % 2


def test_every_row_is_in_one_test_set():
    parts = [tables.folded("small", VALUES, 0, fold) for fold in range(tables.FOLDS)]
    whole = np.concatenate([part.test for part in parts])
    assert whole.shape == (60, 2)  # the column of two values is left out
    np.testing.assert_array_equal(parts[0].validation, parts[1].test)
    for part in parts:
        rows = np.concatenate([part.train, part.validation, part.test])
        assert len(np.unique(rows, axis=0)) == 60
        assert len(part.train) == 36
    kept = np.sort(VALUES[:, 0])
    step = np.diff(np.unique(kept)).min()
    apart = np.sort(whole[:, 0]) - kept
    assert np.all(np.abs(apart) <= step)
    assert np.std(apart) > 0.1 * step


def test_the_record(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    trained = tables.trained_cell
    monkeypatch.setattr(tables, "trained_cell", lambda settings, data: trained({**settings, "steps": 2}, data))
    monkeypatch.setattr(tables, "load_table", lambda name, seed, fold: tables.folded(name, VALUES, seed, fold))
    monkeypatch.setattr(tables.os, "cpu_count", lambda: 1)
    record = find_target("tables")(Request(tmp_path, seconds=1e6, data=("wine",), models=("ours",)))
    assert record.columns == ("test log-density, nats", "wine")
    assert record.rows[0][0] == "i-ResNet (ours)"
    assert len(record.details) == tables.FOLDS
    mean = np.mean([one["mean"] for one in record.details])
    assert record.rows[0][1].startswith(f"{mean:.3f} ±")
    assert (record.settings["folds"], record.settings["weight decay"]) == (tables.FOLDS, 2.0)
    assert record.pictures == ("tables.png",)
    assert (tmp_path / "tables.png").stat().st_size > 5000


def test_a_published_table_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRESNET_SHARED_DATA", str(tmp_path / "none"))
    with pytest.raises(InvalidArgumentError, match="IRESNET_SHARED_DATA"):
        find_target("tables")(Request(tmp_path, data=("power",), models=("ours",)))


def test_published_tables_have_their_published_figures(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    trained = tables.trained_cell
    monkeypatch.setattr(tables, "trained_cell", lambda settings, data: trained({**settings, "steps": 1}, data))
    monkeypatch.setattr(tables, "load_table", lambda name, seed, fold: tables.folded(name, VALUES, seed, fold))
    record = find_target("tables")(Request(tmp_path, seconds=1e6, data=("power",), models=("ours",)))
    assert ("MAF, published", 0.24) in record.rows
    assert ("NSF, published", 0.66) in record.rows
    # What was done for a published table is not what is done for those of scikit-learn.
    assert (record.settings["folds"], record.settings["weight decay"]) == (1, 0.0)
    told = " ".join(record.notes)
    assert "published split" in told
    assert "the same weight decay, 0," in told
    for of_few in ("one of 5 splits", "noise", "Student's t", "few rows", "comparators"):
        assert of_few not in told


def test_all_test_rows_of_a_published_table_are_scored(monkeypatch, tmp_path):
    """Also those behind the number that a comparison takes by default."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    trained, rng = tables.trained_cell, np.random.default_rng(0)
    table = Dataset("power", rng.normal(size=(90, 2)), rng.normal(size=(10, 2)), rng.normal(size=(10_001, 2)))
    monkeypatch.setattr(tables, "trained_cell", lambda settings, data: trained({**settings, "steps": 1}, data))
    monkeypatch.setattr(tables, "load_table", lambda name, seed, fold: table)
    record = find_target("tables")(Request(tmp_path, seconds=1e6, data=("power",), models=("ours",)))
    assert record.details[0]["samples"] == 10_001
    assert "over all test rows (power 10001)" in record.notes[0]


def notes(seed=0, models=("ours", "nsf", "maf"), chosen=("wine",), scores=None):
    settings = {name: {"seconds": 15.0, "weight_decay": 2.0 if name in tables.SMALL else 0.0} for name in chosen}
    return tables._notes(seed, models, (), scores, settings)


def test_the_rows_that_defaults_were_chosen_on_are_left_out_once():
    """Ours is ahead on the test sets of the second and the third split, and behind on all other rows."""
    ours = [np.full(4, 9.0 if fold in (1, 2) else 1.0) for fold in range(5)]
    nsf = [np.array([2.0, 2.0, 2.0, 4.0])] * 5
    scores = {("wine", "ours"): ours, ("wine", "nsf"): nsf, ("wine", "maf"): [np.full(4, -5e3)] * 5}
    (of_all,) = (note for note in notes(scores=scores) if "over the same rows" in note)
    assert "ahead of every comparator on 1 of 1 tables" in of_all
    assert "wine +1.700" in of_all
    (told,) = (note for note in notes(scores=scores) if "took part in the choice" in note)
    assert "2 of 5 parts of the rows" in told
    assert "other 3 splits alone" in told
    assert "on 0 of 1 tables" in told
    assert f"wine -1.500 ± {np.std([1, 1, 1, 3] * 3, ddof=1) / np.sqrt(12):.3f} (NSF)" in told
    assert "learning rates were not tuned on tables" in " ".join(notes(scores=scores))
    (other,) = (note for note in notes(seed=3, scores=scores) if "took part in the choice" in note)
    assert "rows of the choice are in every test set" in other
    assert "alone" not in other


def test_every_table_has_its_own_settings_in_the_notes():
    scores = {(name, "ours"): [np.zeros(3)] for name in ("wine", "power")}
    told = notes(models=("ours",), chosen=("wine", "power"), scores=scores)
    assert "the same weight decay, 2 (wine), 0 (power)," in told[0]
    assert "15 seconds of training" in told[0]


def test_the_picture_clips_what_is_far_below(tmp_path):
    pytest.importorskip("matplotlib")
    means = {
        "wine": {"ours": (-19.3, 0.4), "NSF": (-22.6, 0.6), "MAF": (-6577.0, 4569.0)},
        "other": {"ours": (1.0, 0.1)},
    }
    low, high = axis_limits(list(means["wine"].values()))
    assert -24 < low < -23.2
    assert -18.9 < high < -18
    score_points(tmp_path / "a.png", means, "ours")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_the_tables_of_scikit_learn():
    pytest.importorskip("sklearn")
    shapes = {name: tables.load_table(name, 0, 0).train.shape[1] for name in tables.SMALL}
    assert shapes == {"breast_cancer": 30, "wine": 13, "diabetes": 9}
