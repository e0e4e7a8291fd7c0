"""Flows of PyTorch modules at image size: log-densities in training and in evaluation end, with honest errors."""

import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual  # noqa: E402

LONG = pytest.mark.strict_suite
CASES = [
    pytest.param((1, 28, 28), 0.9),
    pytest.param((1, 28, 28), 0.98, marks=LONG),
    pytest.param((3, 32, 32), 0.95),
    pytest.param((12, 16, 16), 0.95, marks=LONG),
    pytest.param((48, 8, 8), 0.95, marks=LONG),
]


def flow_of(shape, coeff, blocks=2, width=16):
    """Blocks 3 x 3, 1 x 1, 3 x 3 whose layers are at their caps."""
    torch.manual_seed(0)
    layers = []
    for _ in range(blocks):
        net = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding="same"),
            Activation("lipswish"),
            nn.Conv2d(width, width, 1),
            Activation("lipswish"),
            nn.Conv2d(width, shape[0], 3, padding="same"),
        )
        layers += [ActNorm(shape[0]), InvertibleResidual(net, coeff=coeff)]
    flow = Flow(layers, event_shape=shape)
    x = torch.randn(4, *shape)
    flow.initialize(x)
    flow.fill_caps()
    return flow, x


@pytest.mark.parametrize(("shape", "coeff"), CASES)
def test_errors_in_training_and_in_evaluation(shape, coeff):
    flow, x = flow_of(shape, coeff)
    found = {}
    for training in (True, False):
        flow.train(training)
        found[training] = flow.log_prob(x, errors=True)
        assert int(found[training].products.max()) <= 2 * 64
        assert bool(torch.isfinite(found[training].std_error).all())
        assert not found[training].std_error.requires_grad
        assert not found[training].bias_bound.requires_grad
        assert float(found[training].bias_bound.max()) <= 2.1e-3 * math.prod(shape)
    mine, theirs = found[True], found[False]
    allowed = 6 * torch.hypot(mine.std_error, theirs.std_error) + mine.bias_bound + theirs.bias_bound
    # In training the norms of matrices are estimates, so that the weights in use are a little different ones.
    assert bool(((mine.value - theirs.value).abs() <= allowed + 1e-3 * math.prod(shape)).all())


@pytest.mark.parametrize(
    ("shape", "coeff"), [CASES[0], *(pytest.param(*case.values, marks=LONG) for case in CASES[1:])]
)
def test_steps_stay_finite_and_invertible(shape, coeff):
    flow, x = flow_of(shape, coeff)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        assert bool(torch.isfinite(loss))
    with torch.no_grad():
        z = flow.eval().encode(x)
        back = flow.inverse(z, errors=True)
    assert bool(back.converged.all())
    error = torch.linalg.vector_norm((back.value - x).flatten(1), dim=1)
    assert bool((error <= back.error_bound + 1e-4 * torch.linalg.vector_norm(x.flatten(1), dim=1)).all())
