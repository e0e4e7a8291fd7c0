"""PyTorch: several processes train one flow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def test_two_processes_are_one_training():
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run(
        [*command, str(folder / "ddp_worker.py")], capture_output=True, text=True, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    ranks, single, state, probes = map(float, run.stdout.split()[-4:])
    assert ranks == 0
    assert single < 1e-6
    assert state == 0
    assert probes > 1e-3
