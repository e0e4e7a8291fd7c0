"""What a hostile user gives the command line: one line and exit status 2, or an answer, and never a traceback."""

import json

import numpy as np
import pytest
from runs_for_tests import iresnet, untrained


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("moons") / "run", "moons")


def test_the_score_of_one_sample_is_valid_json(moons, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2)))
    assert iresnet("score", moons[0].folder, tmp_path / "x.npy", "--out", tmp_path / "s.json").exit_code == 0
    node = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert node["mean"]["sampling_error"] is None
    assert len(node["log_prob"]) == node["mean"]["n"] == 1


def test_a_score_that_overflows_gives_status_2_and_no_file(moons, tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.0, 0.0], [1e25, 0.0]]))
    out = tmp_path / "s.json"
    result = iresnet("score", moons[0].folder, tmp_path / "x.npy", "--out", out, "--dtype", "float32")
    assert result.exit_code == 2
    assert result.stderr.startswith("iresnet: the log-density of sample 1 of the batch is below the range of float32")
    assert not out.exists()


@pytest.mark.parametrize(("options", "status"), [([], 2), (["--no-standardize"], 1)])
def test_an_entry_of_a_missing_value_is_not_trained_on(tmp_path, options, status):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.random.default_rng(0).standard_normal((400, 2))
    x[::50] = -1e30
    np.save(tmp_path / "x.npy", x)
    result = iresnet("train", tmp_path / "x.npy", "--steps", 5, "--out", tmp_path / "run", *options)
    assert result.exit_code == status
    assert "an entry of -1e+30" in result.stderr
