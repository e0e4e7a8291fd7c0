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
    folder = Path(__file__).parent.parent / "helpers"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run(
        [*command, str(folder / "ddp_worker.py")], capture_output=True, text=True, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    ranks, single, state, probes, checkpointed = map(float, run.stdout.split()[-5:])
    assert ranks == 0
    assert single < 1e-6
    assert state == 0
    assert probes > 1e-3
    assert checkpointed < 1e-7  # with blocks that keep only their input


@pytest.mark.filterwarnings("ignore::iresnet_core.errors.EstimateWarning")
def test_the_mean_slopes_of_a_part_of_the_batch_leave_the_expected_gradient():
    """Each process takes the mean Jacobian of its own part; on average that is the gradient of the whole batch."""
    from torch_models import samples, train, vector_flow

    d, seeds, options = 12, 150, {"method": "mean-jacobian", "errors": False, "rng": None}
    flow = train(vector_flow(d, blocks=1, width=16), samples(200, d), steps=100).eval()
    flow.double()
    x = samples(16, d, seed=4).double()
    x[8:] *= 3  # parts with mean slopes of their own
    parameters = list(flow.parameters())
    directions = torch.randn(20, sum(p.numel() for p in parameters), dtype=torch.float64)

    def projected(*parts, **chosen):
        loss = -sum(flow.log_prob(part, **chosen).mean() for part in parts) / len(parts)
        gradient = torch.autograd.grad(loss, parameters)
        return directions @ torch.cat([g.flatten() for g in gradient])

    torch.manual_seed(0)
    exact = projected(x, method="exact")
    whole = torch.stack([projected(x, **options) for _ in range(seeds)])
    parts = torch.stack([projected(x[:8], x[8:], **options) for _ in range(seeds)])
    errors = [draws.std(0) / seeds**0.5 for draws in (whole, parts)]
    assert ((whole.mean(0) - parts.mean(0)).abs() / (errors[0] ** 2 + errors[1] ** 2).sqrt()).max() < 5
    assert ((parts.mean(0) - exact).abs() / errors[1]).max() < 5
    assert (errors[1] < 0.01 * exact.norm() / exact.numel() ** 0.5).all()
