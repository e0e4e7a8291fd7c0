"""Tabular densities at a tiny size: the folds, the noise, the record."""

import numpy as np
import pytest

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.reproduction import Request, find_target, tables

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


def test_a_published_table_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRESNET_SHARED_DATA", str(tmp_path / "none"))
    with pytest.raises(InvalidArgumentError, match="IRESNET_SHARED_DATA"):
        find_target("tables")(Request(tmp_path, data=("power",), models=("ours",)))


def test_published_tables_have_their_published_figures(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    trained = tables.trained_cell
    monkeypatch.setattr(tables, "trained_cell", lambda settings, data: trained({**settings, "steps": 1}, data))
    monkeypatch.setattr(tables, "load_table", lambda name, seed, fold: tables.folded(name, VALUES, seed, fold))
    record = find_target("tables")(Request(tmp_path, seconds=1e6, data=("power",), models=("ours",)))
    assert ("MAF, published", 0.24) in record.rows
    assert ("NSF, published", 0.66) in record.rows


def test_the_tables_of_scikit_learn():
    pytest.importorskip("sklearn")
    shapes = {name: tables.load_table(name, 0, 0).train.shape[1] for name in tables.SMALL}
    assert shapes == {"breast_cancer": 30, "wine": 13, "diabetes": 9}
