"""One training at a time in a folder, whatever became of the one before."""

import json
import os
import socket
import subprocess
import sys

import pytest
from small_trainings import Watcher, prepared, trained

from iresnet_core.errors import RunError
from iresnet_core.training import loop as training
from iresnet_core.training import run_lock
from iresnet_core.training.run import TrainingRun

HOLD = """
import sys, time
from pathlib import Path
from iresnet_core.training.run import TrainingRun
with TrainingRun(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def prepared_run(monkeypatch, tmp_path):
    monkeypatch.setitem(training._TRAINERS, "numpy", ("numpy_trainer", "numpy", ""))
    return prepared(tmp_path / "run", "numpy")


@pytest.fixture
def other(prepared_run):
    """A process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(prepared_run[0].folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def names(run):
    return sorted(path.name for path in run.folder.iterdir())


def test_a_second_training_is_refused_with_the_process_of_the_first(prepared_run, other):
    run, config, dataset = prepared_run
    for attempt in (lambda: trained(run, config, dataset), lambda: run.locked().__enter__()):
        with pytest.raises(RunError, match=f"in use by another command, process {other.pid} on {socket.gethostname()}"):
            attempt()
    assert names(run) == ["config.json", "training.lock"]


def test_the_lock_of_a_killed_process_is_taken_over(prepared_run, other):
    run, config, dataset = prepared_run
    other.kill()
    other.wait()
    assert names(run) == ["config.json", "training.lock"]
    assert trained(run, config, dataset).finished
    assert "training.lock" not in names(run)


def test_a_training_in_a_training_is_refused(prepared_run):
    """Another thread of this process is another training."""
    run, config, dataset = prepared_run

    class Curious(Watcher):
        def stepped(self, step, seconds, loss):
            if step == 3:
                assert json.loads((run.folder / run_lock.LOCK_NAME).read_text())["pid"] == os.getpid()
                run_lock._held.clear()  # as if another thread asked
                with pytest.raises(RunError, match=f"process {os.getpid()} "), TrainingRun(run.folder).locked():
                    pass
                run_lock._held.update(held)

    with run.locked():
        held = dict(run_lock._held)
        trained(run, config, dataset, Curious())


def test_the_lock_goes_with_an_error(prepared_run):
    run, config, dataset = prepared_run

    class Failing(Watcher):
        def stepped(self, step, seconds, loss):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        trained(run, config, dataset, Failing())
    assert names(run) == ["config.json"]
    assert trained(run, config, dataset).finished


def test_the_lock_of_another_host_stays_until_somebody_deletes_it(prepared_run):
    run, config, dataset = prepared_run
    lock = run.folder / "training.lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(RunError, match=r"process 1 on elsewhere, .*delete .*training\.lock"):
        trained(run, config, dataset)
    lock.unlink()
    assert trained(run, config, dataset).finished


@pytest.mark.parametrize("content", [b"", b"\xff\0", b"[]", b'{"pid": "x"}'])
def test_a_damaged_lock_of_nobody_is_taken_over(prepared_run, content):
    run, config, dataset = prepared_run
    (run.folder / "training.lock").write_bytes(content)
    assert trained(run, config, dataset).finished


def test_without_locks_of_the_system_the_process_is_looked_for(prepared_run, other, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(descriptor, operation):
        raise OSError(next(iter(run_lock._NO_LOCKS)), "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    run, config, dataset = prepared_run
    with pytest.raises(RunError, match=f"process {other.pid} "):
        trained(run, config, dataset)
    other.kill()
    other.wait()
    assert trained(run, config, dataset).finished


def test_what_a_killed_process_left_does_not_keep_a_folder(prepared_run, tmp_path):
    _, config, dataset = prepared_run
    left = tmp_path / "left"
    left.mkdir()
    (left / ".config.json.0123456789ab.tmp").write_bytes(b"{")
    (left / "training.lock").write_bytes(b"")
    again = TrainingRun.create(left, config)
    assert names(again) == ["config.json"]
    (left / ".checkpoint.safetensors.0123456789ab.tmp").write_bytes(b"half")
    (left / ".notes.tmp").write_bytes(b"mine")
    assert trained(again, config, dataset).finished
    assert names(again) == [".notes.tmp", "checkpoint.safetensors", "config.json", "log.csv", "model.safetensors"]
