"""Trainings with Keras on several devices of one machine, and what is refused."""

import importlib.util
import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
pytest.importorskip(keras.backend.backend(), exc_type=ImportError)
pytest.importorskip("typer")

from keras_models import in_a_process  # noqa: E402
from runs_for_tests import iresnet  # noqa: E402

# What XLA makes in less time is as good here.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
TWO = {"JAX_ENABLE_X64": "1", "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {QUICK}"}


@pytest.mark.parametrize("name", ["jax", "tensorflow"])
def test_two_devices_train_as_one_does(tmp_path, name):
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    assert in_a_process("devices", tmp_path, KERAS_BACKEND=name, **TWO)[-1] == "agreed"


def refused(tmp_path, *arguments):
    result = iresnet("train", "moons", "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "run").exists()
    return " ".join(result.stderr.split())


def test_what_cannot_be_shared_out_is_refused(tmp_path, monkeypatch):
    kept = "--framework", "keras"
    assert "64 cannot be shared out evenly to 3 devices" in refused(tmp_path, *kept, "--batch", 64, "--devices", 3)
    assert "evenly to 0 devices" in refused(tmp_path, *kept, "--devices", 0)
    words = refused(tmp_path, *kept, "--devices", 128)
    assert f"--devices 128 is more than Keras on {keras.backend.backend()} finds here" in words
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    assert "on torch it trains on one device" in refused(tmp_path, *kept, "--devices", 2)


def test_pytorch_takes_a_process_for_each_device(tmp_path):
    pytest.importorskip("torch")
    assert "torchrun --nproc-per-node 2" in refused(tmp_path, "--devices", 2)
