"""The test set of a run, scored chunk by chunk: the same as at once, and kept over an interruption."""

import json
import pickle

import numpy as np
import pytest
from runs_for_tests import iresnet, untrained

import iresnet_core as core
from iresnet_core.parallel import HeldOutRows
from iresnet_core.training import DatasetSource, SampleLayout, load_dataset

pytest.importorskip("typer.testing")


def read_table(path):
    return np.genfromtxt(path, delimiter=",", names=True)


def read_scores(path):
    node = json.loads(path.read_text())
    return {name: np.array(node[name]) for name in ("sample", "log_prob", "std_error", "bits_per_dim")}


def test_the_test_set_is_scored_in_chunks_as_at_once(tmp_path):
    """The noise on grey levels belongs to the sample, whatever the chunks are."""
    run = untrained(tmp_path / "run", "digits")[0].folder
    at_once = iresnet("score", run, "--seed", 3, "--out", tmp_path / "s.json")
    expected = read_scores(tmp_path / "s.json")
    for options in (("--chunk", 7), (), ("--chunk", 7, "--samples", 20)):
        result = iresnet("score", run, "--seed", 3, "--out", tmp_path / "s.csv", *options)
        assert result.exit_code == 0, result.output
        found = read_table(tmp_path / "s.csv")
        for name, column in expected.items():
            np.testing.assert_allclose(found[name], column[: len(found)], rtol=1e-9)
        assert len(found) == (20 if "--samples" in options else 40)
        if "--samples" not in options:
            assert result.stdout.splitlines()[:2] == at_once.stdout.splitlines()[:2]
    assert "40 samples: test set of digits" in at_once.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "s.csv", "s.json"]


@pytest.mark.parametrize("options", [("--chunk", 10), ()])
def test_the_scores_of_a_test_set_are_kept_over_an_interruption(tmp_path, monkeypatch, options):
    """Without --chunk too, in chunks of the usual size."""
    monkeypatch.setattr("iresnet_core.commands.score.rows_of_a_chunk", lambda shape: 10)
    run = untrained(tmp_path / "run", "digits")[0].folder
    command = ("score", run, "--out", tmp_path / "s.csv", *options)
    original, begun = core.Flow.log_prob, []

    def interrupted(self, x, *arguments, **options):
        begun.append(len(x))
        if len(begun) == 3:
            raise KeyboardInterrupt
        return original(self, x, *arguments, **options)

    monkeypatch.setattr(core.Flow, "log_prob", interrupted)
    result = iresnet(*command)
    assert result.exit_code == 130
    assert "2 of 4 chunks are in" in result.stderr
    assert not (tmp_path / "s.csv").exists()
    result = iresnet(*command)
    assert "2 of 4 chunks are done" in result.stderr
    assert begun == [10] * 5
    assert len(read_table(tmp_path / "s.csv")) == 40
    assert not (tmp_path / "s.csv.chunks").exists()


def test_a_test_set_with_conditions_is_scored_in_chunks(tmp_path):
    """Every chunk has the conditions of its own rows, and the rows can be sent to another process."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 3)))
    source = DatasetSource(str(tmp_path / "x.npy"), condition="2")
    dataset = load_dataset(source)
    rows = pickle.loads(pickle.dumps(HeldOutRows(source, SampleLayout((2,), (2,)), None, "run", 0)))
    assert (len(rows), rows.shape) == (10, (10, 2))
    found = [rows.of(rows.read(k, k + 5), np.random.default_rng(9), k) for k in (0, 5)]
    np.testing.assert_array_equal(np.concatenate([part.x for part in found]), dataset.test)
    np.testing.assert_array_equal(np.concatenate([part.context for part in found]), dataset.contexts[2])
