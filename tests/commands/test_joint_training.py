"""`iresnet train` in several processes: the training of one, resumed by any number, and a process that dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs_for_tests import iresnet
from safetensors.numpy import load_file

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training import TrainingRun
from iresnet_core.training.processes import launched

pytest.importorskip("torch")
pytest.importorskip("typer")
FEW = (
    *("--blocks", 2, "--hidden", 8, "--layers", 1, "--batch", 33, "--share", 1, "--samples", 600, "--dtype", "float64"),
    *("--evaluate-every", 10, "--checkpoint-every", 10, "--schedule", "constant", "--no-tensorboard"),
)


def command(processes, *arguments, name="train"):
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "iresnet_core")
    return [sys.executable, *launcher, name, *map(str, arguments)]


def environment(**more):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__import__("iresnet_core").__file__)))
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **more}


def launch(processes, *arguments, name="train"):
    return subprocess.run(
        command(processes, *arguments, name=name),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
        check=False,
    )


def parameters(run):
    """All that is trained and its moments; not the start vectors of the norms, which are found up to a rotation."""
    arrays = load_file(run / "checkpoint.safetensors")
    return {name: a for name, a in arrays.items() if not name.startswith("random.") and not name.endswith(".basis")}


def test_processes_train_as_one_does(tmp_path):
    single, joint = tmp_path / "single", tmp_path / "joint"
    assert iresnet("train", "moons", "--out", single, "--steps", 20, *FEW).exit_code == 0
    done = launch(2, "moons", "--out", joint, "--steps", 10, *FEW)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Done: 10 steps") == 1  # one of them speaks
    assert not (joint / "training.lock").exists()
    assert iresnet("train", "--resume", joint, "--steps", 20).exit_code == 0
    expected = parameters(single)
    assert sorted(parameters(joint)) == sorted(expected)
    for name, array in parameters(joint).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-8, atol=1e-10, err_msg=name)
    logs = [(run / "log.csv").read_text().splitlines() for run in (single, joint)]
    assert len(logs[0]) == len(logs[1]) == 3


def test_processes_train_a_classifier_as_one_does(tmp_path):
    """The same parameters in float32, the same errors of the test set, whose inverse is shared out too."""
    few = ("--samples", 300, "--widths", "8,8", "--blocks", "0,1", "--batch", 33, "--crop", 1, "--schedule", "constant")
    few += ("--evaluate-every", 4, "--checkpoint-every", 4, "--no-tensorboard")
    single, joint = tmp_path / "single", tmp_path / "joint"
    assert iresnet("classify", "digits", "--out", single, "--steps", 8, *few).exit_code == 0
    done = launch(2, "digits", "--out", joint, "--steps", 4, *few, name="classify")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Done: 4 steps") == 1
    assert "every image is within its bound" in " ".join(done.stdout.split())
    assert json.loads((joint / "result.json").read_text())["inverted"] == 30
    result = iresnet("classify", "--resume", joint, "--steps", 8)
    assert result.exit_code == 0, result.output
    expected = parameters(single)
    assert sorted(parameters(joint)) == sorted(expected)
    for name, array in parameters(joint).items():
        scale = np.max(np.abs(expected[name])) if expected[name].size else 1.0
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-4 * scale + 1e-6, err_msg=name)


def test_a_process_that_dies_ends_the_others(tmp_path):
    """What is written stays whole, the message says how to go on, and so it does."""
    run = tmp_path / "run"
    arguments = ("moons", "--out", run, "--steps", 1_000_000, *FEW)
    with subprocess.Popen(
        command(2, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as training:
        deadline = time.monotonic() + 200
        while not (run / "checkpoint.safetensors").exists():
            assert training.poll() is None, training.stderr.read()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        writer = int(re.search(r'"pid": (\d+)', (run / "training.lock").read_text())[1])
        again = iresnet("train", "moons", "--out", run, "--steps", 1_000_000, *FEW)
        assert again.exit_code == 2
        assert f"is in use by another command, process {writer}" in again.output
        os.kill(writer, signal.SIGKILL)
        _, words = training.communicate(timeout=200)
    assert training.returncode != 0
    assert "another process of the training has ended" in words
    assert "the same command goes on from the last checkpoint" in " ".join(words.split())
    steps = TrainingRun.open(run).load_checkpoint().progress["step"]
    result = iresnet("train", "--resume", run, "--steps", steps + 10)
    assert result.exit_code == 0, result.output


def test_what_cannot_be_shared_out_is_refused(tmp_path):
    done = launch(2, "moons", "--out", tmp_path / "run", "--batch", 1, "--steps", 2)
    assert done.returncode != 0
    assert "a batch of 1 cannot be shared out to 2 processes" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
    done = launch(2, "digits", "--out", tmp_path / "run", "--batch", 1, "--steps", 2, name="classify")
    assert done.returncode != 0
    assert "a batch of 1 cannot be shared out to 2 processes" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_what_a_launcher_says(monkeypatch):
    said = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name in said:
        monkeypatch.delenv(name, raising=False)
    assert launched() == 1
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert launched() == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched() == 3
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(InvalidArgumentError, match="RANK=3"):
        launched()
