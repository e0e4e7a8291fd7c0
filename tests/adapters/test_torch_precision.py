"""PyTorch: products of a training that are lowered, by numbers that are rounded where the setting says so."""

import sys
import threading

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch_models import convolutions, image_flow, images, nn, samples, torch, vector_flow

import iresnet_core as core
from iresnet_core import invert
from iresnet_core.adapters.torch import ActNorm, Flow, Inverted, InvertibleResidual
from iresnet_core.backends.torch.precision import full_precision, lowered_products
from iresnet_core.errors import InvalidArgumentError

pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="before PyTorch 2.9 there is no such setting for processors"
)
SETTINGS = ("mkldnn.matmul", "mkldnn.conv")
aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward}


def settings():
    return tuple(getattr(torch.backends.mkldnn, name.removeprefix("mkldnn.")).fp32_precision for name in SETTINGS)


@pytest.fixture(autouse=True)
def _left_as_found():
    if torch.get_default_device().type != "cpu":
        pytest.skip("the setting that is watched is that of processors")
    before = settings()
    yield
    assert settings() == before


class Lowering(TorchDispatchMode):
    """Rounds the factors of float32 products to bfloat16 where PyTorch is told to, which few processors do."""

    def __init__(self):
        super().__init__()
        self.lowered = self.full = self.norms = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS and args[0].dtype == torch.float32:
            norms = of_norms()
            if settings() == ("bf16", "bf16"):
                assert not norms
                self.lowered += 1
                args = [a.bfloat16().float() if isinstance(a, torch.Tensor) else a for a in args]
            else:
                self.norms += norms
                self.full += not norms
        return func(*args, **(kwargs or {}))


def of_norms():
    """Whether norms of weights are being taken."""
    frame = sys._getframe()
    while frame is not None:
        if "/iresnet_core/lipschitz/" in frame.f_code.co_filename.replace("\\", "/"):
            return True
        frame = frame.f_back
    return False


def colour_flow():
    torch.manual_seed(0)
    blocks = [InvertibleResidual(convolutions(3), 0.98) for _ in range(2)]
    return Flow([ActNorm(3), *blocks], event_shape=(3, 32, 32))


def grey_flow():
    torch.manual_seed(0)
    return Flow([ActNorm(1), InvertibleResidual(convolutions(1), 0.98)], event_shape=(1, 28, 28))


CASES = {
    "d=2": (lambda: vector_flow(2), lambda: samples(64, 2)),
    "d=64": (lambda: vector_flow(64), lambda: samples(64, 64)),
    "multi-scale": (image_flow, lambda: images(16)),
    "1x28x28": (grey_flow, lambda: torch.rand(4, 1, 28, 28)),
    "3x32x32": (colour_flow, lambda: torch.rand(4, 3, 32, 32)),
}


def gradient(flow, x, precision, setting_behind="float32"):
    """Loss, gradient and what was counted; the norms have settled and the probes are the same."""
    flow.precision, flow.share = precision, 1
    flow.zero_grad()
    torch.manual_seed(5)
    counted = Lowering()
    with counted:
        loss = flow.training_loss(x)
        with lowered_products(setting_behind, x):
            loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in flow.parameters()]), counted


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_products_are_lowered_but_for_those_of_norms(case, checkpoint):
    make, data = CASES[case]
    flow, x = make(), data()
    flow.checkpoint = checkpoint
    flow.initialize(x)
    for _ in range(30):  # until the estimates of norms stand still
        flow.training_loss(x)
    loss, plain, counted = gradient(flow, x, "float32")
    assert counted.lowered == 0
    low_loss, low, counted = gradient(flow, x, "bfloat16", "bfloat16")
    assert counted.lowered > 10
    assert counted.full == 0
    assert counted.norms > 0 or case == "d=2"
    assert low_loss != loss
    assert low_loss == pytest.approx(loss, rel=0.02, abs=0.02)
    assert torch.linalg.vector_norm(low - plain) < 0.05 * torch.linalg.vector_norm(plain)


def test_evaluation_stays_in_float32():
    flow, x = image_flow(), images(4)
    flow.initialize(x)
    flow.precision = "bfloat16"
    flow.eval()
    with Lowering() as counted, torch.no_grad():
        z = flow.encode(x)
        flow.log_prob(x)
        flow.inverse(z)
        flow.sample(2)
    assert counted.lowered == 0
    assert counted.full > 0


def test_without_the_setting_behind_it_the_way_back_is_in_float32():
    flow, x = vector_flow(64), samples(32, 64)
    flow.initialize(x)
    _, _, counted = gradient(flow, x, "bfloat16")
    assert counted.lowered > 0
    assert counted.full > 0


def test_refusals():
    x = samples(8, 2)
    for precision, message in [("tf32", "NVIDIA GPU"), ("half", "precision must be float32, tf32 or bfloat16")]:
        flow = vector_flow(2)
        flow.precision = precision
        with pytest.raises(InvalidArgumentError, match=message):
            flow.training_loss(x)
    backend = core.backends.get_backend(x.numpy())
    with backend.lowered_products("float32", x.numpy()), pytest.raises(InvalidArgumentError, match="on PyTorch only"):
        backend.lowered_products("tf32", x.numpy())


class Beside:
    """A thread that stays in a context until it is let go."""

    def __init__(self, context):
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, args=(context,))
        self.thread.start()
        assert self.inside.wait(30)

    def _work(self, context):
        with context():
            self.inside.set()
            self.leave.wait(30)

    def let_go(self):
        self.leave.set()
        self.thread.join()


def test_another_thread_in_full_precision_goes_before():
    x = torch.ones(1)
    precise = Beside(full_precision)
    with lowered_products("bfloat16", x):
        assert "bf16" not in settings()
        precise.let_go()
        assert settings() == ("bf16", "bf16")
        precise = Beside(full_precision)
        assert settings() == ("ieee", "ieee")
    assert "bf16" not in settings()
    precise.let_go()


def test_threads_that_lower_leave_nothing_behind():
    x, before = torch.ones(1), settings()
    first = Beside(lambda: lowered_products("bfloat16", x))
    second = Beside(lambda: lowered_products("bfloat16", x))
    first.let_go()
    assert settings() == ("bf16", "bf16")
    with full_precision():
        assert settings() == ("ieee", "ieee")
        second.let_go()
        assert "bf16" not in settings()
    assert settings() == before
    with pytest.raises(ZeroDivisionError), lowered_products("bfloat16", x), lowered_products("bfloat16", x):
        raise ZeroDivisionError
    assert settings() == before


def test_norms_and_solutions_are_in_full_precision_all_the_same():
    """A solution of the block that is turned round cannot be nearer than its products are exact."""
    torch.manual_seed(0)
    block = InvertibleResidual(nn.Sequential(nn.Linear(8, 16), nn.ELU(), nn.Linear(16, 8)), 0.9)
    flow, x = Flow([Inverted(block)], (8,)), samples(16, 8)
    for _ in range(30):
        flow.training_loss(x)
    loss, plain, _ = gradient(flow, x, "float32")
    low_loss, low, counted = gradient(flow, x, "bfloat16", "bfloat16")
    assert counted.lowered > 0
    assert counted.full > counted.lowered
    assert low_loss == pytest.approx(loss, rel=0.02, abs=0.02)
    assert torch.linalg.vector_norm(low - plain) < 0.05 * torch.linalg.vector_norm(plain)
    with lowered_products("bfloat16", x), Lowering() as counted:
        invert(lambda x: 0.5 * torch.sin(x @ torch.eye(8)), x, lipschitz=0.5)
    assert counted.lowered == 0


@pytest.mark.parametrize("kind", ["inverse", "compiled"])
def test_what_does_not_go_together(kind):
    flow, x = vector_flow(4), samples(8, 4)
    flow.precision = "bfloat16"
    if kind == "inverse":
        flow.checkpoint = "inverse"
    else:
        flow.compile()
    with pytest.raises(InvalidArgumentError, match="do not go together with checkpoint='inverse'"):
        flow.training_loss(x)


def test_modules_of_ones_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    flow, x = Flow([InvertibleResidual(net, 0.9)], (4,)), samples(8, 4)
    _, _, counted = gradient(flow, x, "bfloat16", "bfloat16")
    assert counted.lowered > 0


@pytest.mark.parametrize("checkpoint", [False, True])
def test_derivatives_that_another_thread_takes(checkpoint):
    """As those of a GPU are, by a thread of PyTorch's own."""
    flow, x = vector_flow(64), samples(32, 64)
    flow.checkpoint = checkpoint
    flow.initialize(x)
    flow.precision, flow.share = "bfloat16", 1
    loss, counted = flow.training_loss(x), Lowering()

    def backward():
        with counted:
            loss.backward()

    with lowered_products("bfloat16", x):
        other = threading.Thread(target=backward)
        other.start()
        other.join()
    assert all(p.grad is not None for p in flow.parameters())
    assert counted.lowered > 0
    assert counted.full == 0
