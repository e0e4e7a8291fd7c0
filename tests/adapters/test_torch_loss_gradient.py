"""The gradient of PyTorch's training loss on images: a random part of the batch, with weights, and random probes.

All that is drawn leaves the mean of the gradient as it is. Only the truncation, at four products of Arnoldi's method,
moves it, by as much as docs/log-determinant.md says.
"""

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual  # noqa: E402

SHAPE = (2, 5, 5)  # 50 entries, so that training is not exact
DRAWS = 120
# The largest bias of the gradient of a log-determinant that docs/log-determinant.md states for trained convolutions.
STATED_BIAS = 0.03


def trained(begins_with):
    """A flow after some steps, so that its Jacobians use their constant; with samples and weights for them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), Activation("lipswish"), nn.Conv2d(4, 4, 1))
    net.extend([Activation("lipswish"), nn.Conv2d(4, 2, 3, padding=1)])
    if begins_with == "activation":
        net.insert(0, Activation("lipswish"))
    block = InvertibleResidual(net, coeff=0.98)
    flow = Flow([ActNorm(2, spread=5), block, ActNorm(2)], event_shape=SHAPE).double().fill_caps()
    data = torch.randn(64, *SHAPE, dtype=torch.float64).cumsum(-1)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        flow.training_loss(data).backward()
        optimizer.step()
    return flow, data[:8], torch.linspace(0.1, 2, 8, dtype=torch.float64)


def gradient_of(flow, loss):
    """A function of options: the gradient of a loss by all parameters of the branch, from one state of the flow.

    The norms of 1 x 1 convolutions, which are estimated in training, would move on from call to call.
    """
    state = copy.deepcopy(flow.state_dict())

    def gradient(**options):
        flow.load_state_dict(state)
        parameters = list(flow.layers[1].parameters())
        found = torch.autograd.grad(loss(**options), parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in found])

    return gradient


@pytest.mark.parametrize("begins_with", ["convolution", "activation"])
def test_parts_weights_and_probes_leave_no_bias(begins_with):
    flow, x, weights = trained(begins_with)
    gradient = gradient_of(flow, lambda **options: flow.training_loss(x, weights=weights, **options))
    exact = gradient(method="exact", share=1)
    directions = torch.randn(3, len(exact), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.stack([gradient(share=0.25, unbiased=True, rng=seed) for seed in range(DRAWS)]) @ directions.T
    errors = found.std(0) / DRAWS**0.5
    assert bool((abs(found.mean(0) - directions @ exact) < 5 * errors).all())
    assert bool((errors > 0).all())


@pytest.mark.parametrize("begins_with", ["convolution", "activation"])
def test_the_truncation_has_the_stated_bias(begins_with):
    """By a full set of Hadamard probes, whose noise is that of the terms that the trace leaves, and small."""
    flow, x, weights = trained(begins_with)

    def loss(**options):
        return (weights * flow.encode(x, logdet=True, **options)[1]).mean()

    gradient = gradient_of(flow, loss)
    exact = gradient(method="exact")
    found = torch.stack([gradient(probes=64, rng=seed) for seed in range(4)]).mean(0)
    assert float((found - exact).norm()) < STATED_BIAS * float(exact.norm())
    short = gradient(probes=64, rng=0, terms=2)
    assert float((short - exact).norm()) > STATED_BIAS * float(exact.norm())  # else nothing is measured
