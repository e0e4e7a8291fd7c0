"""PyTorch flows whose blocks find their inputs again by inversion: the same training, with bounds on the errors."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch_models import image_flow, images, mlp, samples, vector_flow  # noqa: E402

from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual  # noqa: E402
from iresnet_core.errors import DerivativeError, InvalidArgumentError, NotConvergedError  # noqa: E402
from iresnet_core.flows import RecoveredInputs, ResidualBlock, recovered_inputs  # noqa: E402

FLOWS = {
    "dense": (lambda: vector_flow(40, blocks=3), lambda: samples(20, 40), 3),
    "two rows": (lambda: vector_flow(8, blocks=10, width=16), lambda: samples(20, 8), 9),
    "images": (image_flow, lambda: images(4), 2),
}


def twins(flow, x, *context):
    """A flow, and the same that finds its inputs again."""
    flow.initialize(x, *context)
    again = copy.deepcopy(flow)
    again.checkpoint = "inverse"
    return flow, again


def gradients(flow, x, *context, **options):
    """Value and gradients of the loss of a training, and the random numbers that come after it."""
    torch.manual_seed(1)
    flow.zero_grad()
    loss = flow.training_loss(x, *context, **options)
    loss.backward()
    return [loss.detach(), torch.rand(3), *(p.grad.clone() for p in flow.parameters() if p.grad is not None)]


def assert_same(found, expected, rounding):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=rounding * float(other.abs().max()) + 1e-30)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_with_kept_inputs(kind, dtype):
    make, draw, inputs = FLOWS[kind]
    x = draw().to(dtype)
    flow, again = twins(make().to(dtype), x)
    rounding = 1e-10 if dtype == torch.float64 else 2e-4
    for _ in range(2):
        assert_same(gradients(again, x, share=0.5), gradients(flow, x, share=0.5), rounding)
    for one, other in zip(flow.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    record = again.recovered
    assert 0 < record.measured_error <= record.relative_error < (1e-9 if dtype == torch.float64 else 1e-2)
    assert record.inputs == inputs


@pytest.mark.parametrize("checkpoint", [True, "inverse"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=["1x28x28", "3x32x32"])
def test_images_of_the_usual_sizes(shape, checkpoint):
    """One block near its limit, c = 0.98, in float32, between normalisations."""
    torch.manual_seed(0)
    channels = shape[0]
    net = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ELU(), nn.Conv2d(4, 4, 1), nn.ELU())
    net.append(nn.Conv2d(4, channels, 3, padding=1))
    layers = [ActNorm(channels), InvertibleResidual(net, coeff=0.98), ActNorm(channels)]
    flow, again = twins(Flow(layers, event_shape=shape).fill_caps(), torch.rand(3, *shape))
    x = torch.rand(3, *shape) ** 2  # at those samples the gradients of the last ActNorm are zero but for rounding
    again.checkpoint = checkpoint
    found, expected = gradients(again, x, share=0.5), gradients(flow, x, share=0.5)
    assert_same(found, expected, 2e-4)
    assert len(found) > 8  # value, random numbers, and the gradients of all layers
    if checkpoint == "inverse":
        assert again.recovered.inputs == 1


def test_the_bound_holds(monkeypatch):
    """An inverse that is off by more than it says is seen by what is measured, and by no more than the bound."""
    x = samples(20, 8).double()
    _, again = twins(vector_flow(8, blocks=4, width=16).double(), x)
    exact, inverse = [], recovered_inputs.invert
    forward = ResidualBlock._forward

    def keeping(self, backend, x, options):
        if not torch.is_grad_enabled():
            exact.append(x.detach().clone())
        return forward(self, backend, x, options)

    found = []

    def off(g, z, **options):
        step = inverse(g, z, **options)
        found.append(step.value + 1e-7)
        return step._replace(value=step.value + 1e-7, error_bound=step.error_bound + 1e-7 * 8**0.5)

    monkeypatch.setattr(ResidualBlock, "_forward", keeping)
    monkeypatch.setattr(recovered_inputs, "invert", off)
    gradients(again, x)
    errors = [
        float(((a - b).norm(dim=1) / b.norm(dim=1)).max())
        for a, b in zip(reversed(found), exact[-len(found) :], strict=True)
    ]
    assert max(errors) <= again.recovered.relative_error
    assert again.recovered.measured_error >= 0.1 * min(errors)


def test_conditional():
    torch.manual_seed(0)
    blocks = [InvertibleResidual(mlp(20), context_features=3) for _ in range(2)]
    layers = [ActNorm(20, context_features=3), blocks[0], ActNorm(20), blocks[1]]
    x, context = samples(20, 20), torch.randn(20, 3)
    flow, again = twins(Flow(layers, event_shape=(20,)), x, context)
    contexts = [context.clone().requires_grad_() for _ in range(2)]
    found, expected = gradients(again, x, contexts[0], share=0.5), gradients(flow, x, contexts[1], share=0.5)
    assert_same(found, expected, 2e-4)
    assert_same([contexts[0].grad], [contexts[1].grad], 2e-4)
    assert again.recovered.inputs == 1


def test_evaluation_autocast_and_gradients_by_x():
    x = samples(20, 40)
    flow, again = (f.eval() for f in twins(vector_flow(40), x))
    points = [x.clone().requires_grad_() for _ in range(2)]
    scores = [f.log_prob(p, errors=True) for f, p in zip((flow, again), points, strict=True)]
    torch.testing.assert_close(scores[1].value, scores[0].value)
    assert scores[1].method == scores[0].method
    scores[0].value.sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again.log_prob(points[1]).sum().backward()
    assert_same([points[1].grad], [points[0].grad], 2e-4)
    with torch.no_grad():
        assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_less_is_kept():
    """One input of eight blocks, and no probes."""
    x = samples(500, 40)
    kept = {}
    for checkpoint in (True, "inverse"):
        flow = Flow([InvertibleResidual(mlp(40)) for _ in range(16)], event_shape=(40,), checkpoint=checkpoint)
        known, tensors = {p.data_ptr() for p in flow.parameters()}, {}

        def pack(t, known=known, tensors=tensors):
            if t.untyped_storage().data_ptr() not in known and t.shape[0] >= 100:
                tensors[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            flow.training_loss(x)
        kept[checkpoint] = sum(tensors.values())
    assert kept["inverse"] < 6 * x.nbytes < 15 * x.nbytes < kept[True]


def test_where_it_cannot_be():
    x = samples(8, 40)
    flow = Flow([InvertibleResidual(mlp(40)) for _ in range(2)], event_shape=(40,), checkpoint="inverse").train()
    with pytest.raises(InvalidArgumentError, match="compiled blocks"):
        flow.compile().training_loss(x)
    flow.compiled = False
    with pytest.raises(InvalidArgumentError, match="outside of compiled programs"):
        torch.func.grad(lambda x: flow.log_prob(x, rng=0).sum())(x)
    with pytest.raises(DerivativeError, match="second derivative"):
        torch.autograd.grad(flow.log_prob(x.requires_grad_()).sum(), x, create_graph=True)
    with pytest.raises(InvalidArgumentError, match="'inverse'"):
        Flow([ActNorm(4)], event_shape=(4,), checkpoint="inputs")
    with pytest.raises(InvalidArgumentError, match="whole flows"):
        flow.to_core().layers[0].forward(x, checkpoint=RecoveredInputs())


def test_inputs_that_are_not_found_are_refused(monkeypatch):
    x = samples(8, 40)
    flow = Flow([InvertibleResidual(mlp(40)) for _ in range(3)], event_shape=(40,), checkpoint="inverse").train()
    invert = recovered_inputs.invert

    def off(g, z, **options):
        found = invert(g, z, **options)
        return found._replace(value=1.01 * found.value)

    monkeypatch.setattr(recovered_inputs, "invert", off)
    with pytest.raises(NotConvergedError, match=r"off by 0\.0"):
        flow.training_loss(x).backward()
    monkeypatch.setattr(recovered_inputs, "invert", lambda g, z, **options: invert(g, z, **options, max_iter=2))
    with pytest.raises(NotConvergedError, match="did not reach"):
        flow.training_loss(x).backward()


def test_branches_of_declared_constant_keep_their_input():
    class Tanh(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(40, 40)

        def forward(self, x):
            return 0.3 * torch.tanh(self.linear(x))

    torch.manual_seed(0)
    x = samples(20, 40)
    flow, again = twins(Flow([InvertibleResidual(Tanh(), lipschitz=0.6) for _ in range(2)], event_shape=(40,)), x)
    assert_same(gradients(again, x), gradients(flow, x), 1e-6)
    assert again.recovered.inputs == 0
