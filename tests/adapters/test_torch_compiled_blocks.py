"""PyTorch flows whose blocks are compiled: one program for all that are alike, and the same training."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch_models import image_flow, images, mlp, samples, vector_flow  # noqa: E402

from iresnet_core.adapters.torch import Flow, InvertibleResidual  # noqa: E402
from iresnet_core.backends.torch.compilation import program_of  # noqa: E402
from iresnet_core.errors import NonFiniteError  # noqa: E402

# PyTorch's compiler looks at the gradients of its inputs, and keeps its own warning about that from being shown.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    """What is traced and differentiated runs without the compiler of kernels, which takes minutes."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, **options: compiler(fn, **options, backend="aot_eager"))
    program_of.cache_clear()
    counters.clear()
    yield
    program_of.cache_clear()


def programs():
    return counters["stats"]["unique_graphs"]


def twins(flow, x, *context):
    """A flow, and the same with compiled blocks."""
    flow.initialize(x, *context)
    return flow, copy.deepcopy(flow).compile()


def step(flow, x, *arguments, **options):
    """Loss and gradients, and the random numbers that come after them."""
    torch.manual_seed(1)
    flow.zero_grad()
    loss = flow.training_loss(x, *arguments, **options)
    loss.backward()
    return [loss.detach(), torch.rand(3), *(p.grad.clone() for p in flow.parameters())]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.detach().abs().max()) + 1e-30)


def test_one_program_serves_all_blocks_and_steps():
    x = samples(24, 40)
    flow, compiled = twins(vector_flow(40, blocks=3), x)
    optimizers = [torch.optim.SGD(f.parameters(), lr=1e-3) for f in (flow, compiled)]
    for _ in range(3):
        assert_same(step(compiled, x), step(flow, x))
        for optimizer in optimizers:
            optimizer.step()
    assert programs() == 1
    assert_same(compiled.parameters(), flow.parameters())
    for one, other in zip(compiled.buffers(), flow.buffers(), strict=True):
        assert one.shape == other.shape  # the bases of the norms have moved alike, but for their signs
        assert bool(one.any()) == bool(other.any())
    for n in (23, 22, 21):  # the last batch of an epoch has another size
        assert_same(step(compiled, x[:n]), step(flow, x[:n]))
    assert programs() == 2
    compiled.checkpoint = True
    assert_same(step(compiled, x), step(flow, x))
    assert programs() == 2
    compiled.checkpoint = compiled.compiled = False
    step(compiled, x, share=1)
    assert programs() == 2


def test_blocks_of_data_and_of_features_are_one_program():
    torch.manual_seed(0)
    x = samples(12, 4)
    flow, compiled = twins(Flow([InvertibleResidual(mlp(4)) for _ in range(2)], event_shape=(4,)), x)
    assert_same(step(compiled, x), step(flow, x))
    assert programs() == 1


def test_evaluation_autocast_and_transforms_are_as_without():
    x = samples(12, 40)
    flow, compiled = twins(vector_flow(40), x)
    expected = step(flow, x)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert_same(step(compiled, x), expected)
    with torch.no_grad():
        compiled.load_state_dict(flow.state_dict())
        assert torch.equal(flow.eval().log_prob(x), compiled.eval().log_prob(x))
    assert programs() == 0


def test_a_sample_that_is_no_number_is_refused():
    x = samples(12, 40)
    _, compiled = twins(vector_flow(40), x)
    step(compiled, x)
    x[3, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="sample"):
        step(compiled, x)
    assert programs() == 1


def test_conditional_blocks():
    torch.manual_seed(0)
    x, context = samples(12, 40), torch.randn(12, 3)
    blocks = [InvertibleResidual(mlp(40), context_features=3) for _ in range(2)]
    flow, compiled = twins(Flow(blocks, event_shape=(40,)), x, context)
    assert_same(step(compiled, x, context), step(flow, x, context))
    assert programs() == 1


@pytest.mark.strict_suite  # traces for a minute
def test_images_of_two_sizes():
    x = images(8)
    flow, compiled = twins(image_flow(), x)
    for n in (8, 8, 7, 6):
        assert_same(step(compiled, x[:n]), step(flow, x[:n]))
    assert programs() == 4  # two kinds of blocks, each for eight samples and for any number


def test_what_is_compiled_may_be_copied():
    flow = vector_flow(4).compile()
    assert copy.deepcopy(flow).compiled
    assert isinstance(flow, nn.Module)
    assert flow.state_dict().keys() == vector_flow(4).state_dict().keys()
