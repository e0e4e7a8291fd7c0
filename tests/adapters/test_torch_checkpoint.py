"""PyTorch flows whose blocks keep only their input: the same training in less memory."""

import copy
import gc

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch_models import image_flow, images, mlp, samples, vector_flow  # noqa: E402

from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual  # noqa: E402
from iresnet_core.errors import InvalidArgumentError  # noqa: E402


class Tanh(nn.Module):
    """A branch of declared constant, whose parameters the block knows nothing of."""

    def __init__(self, d):
        super().__init__()
        self.linear = nn.Linear(d, d)

    def forward(self, x):
        return 0.3 * torch.tanh(self.linear(x))


def declared_flow(d):
    torch.manual_seed(0)
    return Flow([InvertibleResidual(Tanh(d), lipschitz=0.6) for _ in range(2)], event_shape=(d,))


FLOWS = {
    "dense": (lambda: vector_flow(40), lambda: samples(6, 40)),
    "exact": (lambda: vector_flow(4), lambda: samples(6, 4)),
    "images": (image_flow, lambda: images(4)),
    "declared": (lambda: declared_flow(40), lambda: samples(6, 40)),
}


def twins(kind):
    """A flow, the same with checkpoints, and samples."""
    make, draw = FLOWS[kind]
    flow, x = make(), draw()
    with torch.no_grad():
        flow.initialize(x)
    again = copy.deepcopy(flow)
    again.checkpoint = True
    return flow, again, x


def gradients(flow, x, *, compiled=False, context=None, **options):
    """Value and gradients of one loss, and the random numbers that come after it."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    score = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager") if compiled else flow.log_prob
    value = score(x, context, **options).mean()
    value.backward()
    found = [x.grad, *(torch.zeros_like(p) if p.grad is None else p.grad for p in flow.parameters())]
    return [value.detach(), torch.rand(3), *found]


def assert_same(found, expected, rounding=0.0):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=rounding * float(other.abs().max()) + 1e-30)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_without(kind, training):
    flow, again, x = twins(kind)
    for _ in range(2):  # in training the bases of the norms move on, once a pass
        expected, found = (gradients(f.train(training), x) for f in (flow, again))
        assert_same(found, expected, 1e-5 if x.is_cuda else 0.0)
    for one, other in zip(flow.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{"errors": True, "probes": 3}, {"unbiased": True}, {"tol": 0.5}])
def test_options(options):
    flow, again, x = twins("dense")
    torch.manual_seed(1)
    expected = flow.log_prob(x, **options)
    torch.manual_seed(1)
    found = again.log_prob(x, **options)
    for one, other in zip(found, expected, strict=True) if "errors" in options else [(found, expected)]:
        assert one == other if isinstance(one, str) else torch.equal(one, other)


@pytest.mark.parametrize("kind", ["images", "dense", "declared"])
def test_the_loss_on_a_part_of_the_batch(kind):
    flow, again, x = twins(kind)
    found = []
    for model in (flow, again):
        torch.manual_seed(1)
        loss = model.training_loss(x, share=0.4)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)])
    assert_same(*found, 1e-5 if x.is_cuda else 0.0)


def test_conditional():
    torch.manual_seed(0)
    flow = Flow([InvertibleResidual(mlp(40), context_features=3) for _ in range(2)], event_shape=(40,))
    again, x, context = copy.deepcopy(flow), samples(6, 40), torch.randn(6, 3)
    again.checkpoint = True
    contexts = [context.clone().requires_grad_() for _ in range(2)]
    expected, found = (gradients(f, x, context=c) for f, c in zip((flow, again), contexts, strict=True))
    for model in (flow, again):
        torch.manual_seed(2)
        model.training_loss(x, contexts[model is again], share=0.4).backward()
    assert_same(found, expected, 1e-5 if x.is_cuda else 0.0)
    assert_same([contexts[1].grad], [contexts[0].grad], 1e-5 if x.is_cuda else 0.0)


@pytest.mark.parametrize("kind", ["dense", "images", "declared"])
def test_inside_of_autocast(kind):
    """Which lowers the products of a backward pass, too."""
    flow, again, x = twins(kind)
    expected = gradients(flow, x)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        found = gradients(again, x)
    assert_same(found, expected, 1e-5 if x.is_cuda else 0.0)


@pytest.mark.strict_suite  # compiles for half a minute; tests/determinant/test_recomputation.py does for a second
@pytest.mark.parametrize("kind", ["dense", "declared", "images"])
def test_compiled(kind):
    flow, again, x = twins(kind)
    expected, found = (gradients(f, x, compiled=True) for f in (flow, again))
    assert_same(found, expected, 1e-5)


def kept(flow, x, compiled=False):
    """Bytes that a loss keeps for its way back, each tensor once, without the parameters."""
    known = {p.data_ptr() for p in flow.parameters()}
    tensors = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            tensors[t.untyped_storage().data_ptr()] = t
        return t

    score = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager") if compiled else flow.log_prob
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = score(x).mean()
    del loss
    return sum(t.untyped_storage().nbytes() for t in tensors.values())


def deep_flow(blocks, d=40):
    torch.manual_seed(0)
    return Flow([InvertibleResidual(mlp(d, 160)) for _ in range(blocks)], event_shape=(d,))


def test_what_is_kept_does_not_grow_with_the_width():
    x = samples(500, 40)
    few, many = (kept(deep_flow(n).requires_grad_(), x) for n in (2, 6))
    weights = sum(p.nbytes for p in deep_flow(1).parameters())
    block = (many - few) / 4
    assert block > 12 * 160 / 40 * x.nbytes / 4  # without a checkpoint: several hidden layers
    flows = [deep_flow(n) for n in (2, 6)]
    for flow in flows:
        flow.checkpoint = True
    few, many = (kept(flow, x) for flow in flows)
    assert (many - few) / 4 < 4 * x.nbytes + 3 * weights


def held(flow, x):
    """Bytes of the tensors that Python holds for the way back of a training loss, not those that autograd saves."""

    def alive():
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

    before = alive()
    loss = flow.training_loss(x)
    after = alive()
    del loss
    return sum(nbytes for place, nbytes in after.items() if place not in before)


def deep_image_flow(blocks, width, side, *, activation_first=False, **options):
    """Blocks of convolutions 3 x 3, 1 x 1 and 3 x 3."""

    def net():
        start = [nn.ELU()] if activation_first else []
        first, last = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, 2, 3, padding=1)
        return nn.Sequential(*start, first, nn.ELU(), nn.Conv2d(width, width, 1), nn.ELU(), last)

    return Flow([InvertibleResidual(net()) for _ in range(blocks)], event_shape=(2, side, side), share=1.0, **options)


def test_kernels_of_traces_are_not_kept():
    """Of nine boxes of positions, each with a matrix of channels by channels."""
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    few, many = (kept(deep_image_flow(n, 128, 5), x) for n in (2, 6))
    assert (many - few) / 4 < 4 * 9 * 128**2


@pytest.mark.parametrize("activation_first", [False, True])
def test_a_checkpoint_of_convolutions_holds_no_hidden_layer(activation_first):
    """A function that is kept for the way back knows no slopes of the pass that is given up."""
    x = torch.randn(32, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    flows = [deep_image_flow(n, 24, 12, activation_first=activation_first, checkpoint=True) for n in (2, 6)]
    for flow in flows:
        flow.training_loss(x).backward()  # the power iteration has begun
    few, many = (held(flow, x) for flow in flows)
    weights = sum(p.nbytes for p in flows[0].parameters()) / 2
    assert (many - few) / 4 < 4 * x.nbytes + 5 * weights  # one hidden layer is 12 times as large as x


def test_the_option_of_the_flow_and_of_a_call():
    flow = Flow([ActNorm(4), InvertibleResidual(mlp(4))], event_shape=(4,), checkpoint=True)
    assert flow.checkpoint
    assert not vector_flow(4).checkpoint
    assert set(flow.state_dict()) == set(Flow(list(flow.layers), event_shape=(4,)).state_dict())
    with pytest.raises(InvalidArgumentError, match="True, False"):
        Flow([ActNorm(4)], event_shape=(4,), checkpoint="inputs")
    x = samples(8, 4)
    flow.initialize(x)
    assert torch.equal(flow.log_prob(x, method="exact", checkpoint=False), flow.log_prob(x, method="exact"))
