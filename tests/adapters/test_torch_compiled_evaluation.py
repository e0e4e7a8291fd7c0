"""PyTorch: compiled and exported evaluation is eager evaluation, whatever happened to the weights since."""

import copy

import pytest
from torch_models import capped_layers, nn, samples, torch, vector_flow

from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual


def image_flow():
    """Of 28 x 28 pixels."""
    torch.manual_seed(0)
    branch = [nn.Conv2d(1, 4, 3, padding=1), Activation("lipswish"), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 3, padding=1)]
    return Flow([ActNorm(1), InvertibleResidual(nn.Sequential(*branch))], (1, 28, 28))


KINDS = {2: lambda: vector_flow(2), 64: lambda: vector_flow(64, blocks=1), "images": image_flow}
METHODS = {2: {"method": "exact"}, 64: {"method": "series", "terms": 3}, "images": {"method": "arnoldi", "terms": 3}}


def batch(kind, n=6):
    return (
        torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(n)) if kind == "images" else samples(n, kind)
    )


def kinds(*quick):
    """All kinds; those that are not quick, PyTorch's tracing taking its time, in the strict suite alone."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.strict_suite) for kind in KINDS]


class Score(nn.Module):
    """Latents and log-densities, with the same probes in every run."""

    def __init__(self, flow, kind):
        super().__init__()
        self.flow, self.kind = flow, kind

    def forward(self, x):
        options = METHODS[self.kind]
        if self.kind != 2:
            options = {**options, "noise": [torch.ones_like(x).cumsum(-1).sin().sign()]}
        return self.flow.encode(x), self.flow.log_prob(x, **options)


def made(kind):
    """A flow that has been evaluated, and its weights are at first below the caps, later above."""
    return KINDS[kind]().initialize(batch(kind, 40)).eval()


def step(flow, x, **options):
    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), 0.05, **options)
    for _ in range(5):
        optimizer.zero_grad()
        flow.training_loss(x).backward()
        optimizer.step()
    flow.eval()


@torch.no_grad()
def enlarge(flow, x=None):
    for layer, _ in capped_layers(flow):
        layer.parametrizations.weight.original.data.mul_(7)


def load(flow, x, **options):
    other = copy.deepcopy(flow)
    step(other, x)
    flow.load_state_dict(other.state_dict(), **options)


CHANGES = {
    "steps": step,
    "fused steps": lambda flow, x: step(flow, x, fused=True),
    "data": enlarge,
    "load_state_dict": load,
    "assign": lambda flow, x: load(flow, x, assign=True),
    "back": lambda flow, x: [p.data.mul_(0.1) for p in flow.parameters()],
    "double": lambda flow, x: flow.double(),
}


def assert_agree(program, flow, kind):
    """With the flow itself and with a copy, which keeps no certificate."""
    with torch.no_grad():
        x = batch(kind).to(next(flow.parameters()).dtype)
        found = program(x)
        tolerance = 2e-5 if x.dtype == torch.float32 else 1e-10
        for eager in (copy.deepcopy(flow), flow):
            expected = Score(eager, kind)(x)
            scales = [1.0, float(expected[1].abs().max())]
            for a, b, scale in zip(found, expected, scales, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.filterwarnings("ignore::iresnet_core.errors.EstimateWarning")
@pytest.mark.parametrize("kind", kinds(2))
def test_compiled(kind):
    """Compiled before anything was evaluated, and run after each change of the weights before anything else is."""
    torch.compiler.reset()
    flow = made(kind)
    program = torch.compile(Score(flow, kind), backend="eager", fullgraph=True)
    assert_agree(program, flow, kind)
    for name in CHANGES if kind == 2 else ("fused steps", "data"):
        CHANGES[name](flow, batch(kind, 40))
        assert_agree(program, flow, kind)


OPTIMIZERS = {
    "foreach Adam": lambda p: torch.optim.Adam(p, 0.05, foreach=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, 0.05, fused=True, amsgrad=True),
    "fused SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, fused=True),
    "fused Adagrad": lambda p: torch.optim.Adagrad(p, 0.05, fused=True),
    "foreach RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, foreach=True),
}


def test_after_steps_of_every_kind_of_optimizer():
    """Fused ones write the weights without raising their version."""
    torch.compiler.reset()
    flow = made(2)
    program = torch.compile(Score(flow, 2), backend="eager", fullgraph=True)
    for optimizer in OPTIMIZERS.values():
        flow.train()
        steps = optimizer(flow.parameters())
        for _ in range(3):
            steps.zero_grad()
            flow.training_loss(batch(2, 40)).backward()
            steps.step()
        assert_agree(program, flow.eval(), 2)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, *(pytest.param(d, marks=pytest.mark.strict_suite) for d in (torch.bfloat16, torch.float64))],
)
def test_after_a_cast(dtype):
    """Compiled evaluation in half precision is eager evaluation of the same weights."""
    torch.compiler.reset()
    flow = made(2)
    enlarge(flow)
    flow.to(dtype)
    program, x = torch.compile(flow.encode, backend="eager", fullgraph=True), batch(2).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(program(x), copy.deepcopy(flow).encode(x))


@pytest.mark.strict_suite
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_images_in_batches_of_any_size(shape):
    """Compiled and exported once, and run with other sizes after a training."""
    torch.compiler.reset()
    torch.manual_seed(0)
    branch = [nn.Conv2d(shape[0], 4, 3, padding=1), nn.ELU(), nn.Conv2d(4, shape[0], 3, padding=1)]
    flow = Flow([ActNorm(shape[0]), InvertibleResidual(nn.Sequential(*branch))], shape)
    x = torch.randn(6, *shape)
    flow.initialize(x).eval()
    compiled = torch.compile(flow.encode, backend="eager", fullgraph=True, dynamic=True)
    method = flow.forward
    flow.forward = flow.encode  # which is what torch.export takes
    with torch.no_grad():
        exported = torch.export.export(flow, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    flow.forward = method
    for change in (step, enlarge):
        change(flow, x)
        exported.load_state_dict(flow.state_dict(), strict=False)
        for n in (1, 4, 6):
            with torch.no_grad():
                expected = copy.deepcopy(flow).encode(x[:n])
                torch.testing.assert_close(compiled(x[:n]), expected, rtol=0, atol=2e-5)
                torch.testing.assert_close(exported(x[:n]), expected, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of inductor about itself
def test_compiled_by_inductor_in_one_dimension():
    """Whose certificates are single numbers: inductor would make one expression of all their steps, without end."""
    torch.compiler.reset()
    torch.manual_seed(0)
    flow = Flow([InvertibleResidual(nn.Sequential(nn.Linear(1, 8), nn.ELU(), nn.Linear(8, 1)))], (1,)).eval()
    program, x = torch.compile(flow.encode, fullgraph=True), torch.randn(5, 1)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(program(x), copy.deepcopy(flow).encode(x))
        enlarge(flow)


@pytest.mark.parametrize("kind", kinds(2))
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of inductor about itself
def test_compiled_by_inductor(kind):
    torch.compiler.reset()
    flow = made(kind)
    program = torch.compile(Score(flow, kind), fullgraph=True)
    for name in ("steps", "data"):
        CHANGES[name](flow, batch(kind, 40))
        assert_agree(program, flow, kind)


@pytest.mark.filterwarnings("ignore::iresnet_core.errors.EstimateWarning")
@pytest.mark.parametrize("kind", kinds("images"))
def test_exported(kind):
    """The program takes the state of a flow that was trained on: what it uses is certified by itself."""
    flow = made(kind)
    score = Score(flow, kind)
    with torch.no_grad():
        program = torch.export.export(score, (batch(kind),)).module()
    assert_agree(program, flow, kind)
    trained = copy.deepcopy(score)
    for name in ("steps", "data", "back"):
        CHANGES[name](trained.flow, batch(kind, 40))
        program.load_state_dict(trained.state_dict(), strict=False)
        assert_agree(program, trained.flow, kind)


@pytest.mark.parametrize("use_buffers", [pytest.param(False, marks=pytest.mark.strict_suite), True])
@pytest.mark.parametrize("kind", kinds(2))
def test_averaged_weights(kind, use_buffers):
    torch.compiler.reset()
    flow = made(kind)
    average = torch.optim.swa_utils.AveragedModel(flow, use_buffers=use_buffers).eval()
    program = torch.compile(Score(average.module, kind), backend="eager", fullgraph=True)
    for change in (step, enlarge):
        change(flow, batch(kind, 40))
        average.update_parameters(flow)
        assert_agree(program, average.module, kind)


@pytest.mark.parametrize("kind", kinds(2))
def test_transformed(kind):
    """By functional_call with weights from elsewhere, alone and as an ensemble under vmap."""
    flows = [made(kind) for _ in range(2)]
    enlarge(flows[1])
    score, x = Score(flows[0], kind), batch(kind)
    with torch.no_grad():
        expected = [Score(flow, kind)(x)[0] for flow in flows]
        states = [{f"flow.{name}": value for name, value in flow.state_dict().items()} for flow in flows]
        for state, latents in zip(states, expected, strict=True):
            torch.testing.assert_close(torch.func.functional_call(score, state, x)[0], latents, atol=2e-5, rtol=0)
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}

        def latents_of(state):
            return torch.func.functional_call(score.flow, state, (x,), {"method": "series", "terms": 1, "rng": 0})[0]

        both = torch.func.vmap(latents_of)({name.removeprefix("flow."): value for name, value in stacked.items()})
        torch.testing.assert_close(both, torch.stack(expected), atol=2e-5, rtol=0)


def test_a_branch_that_begins_with_an_activation():
    """Its trace is a control variate in programs too; and two compiled training losses serve batches of any size."""
    torch.manual_seed(0)
    net = nn.Sequential(Activation("lipswish"), nn.Conv2d(2, 4, 3, padding=1), Activation("lipswish"))
    net.extend([nn.Conv2d(4, 4, 1), Activation("lipswish"), nn.Conv2d(4, 2, 3, padding=1)])
    flow = Flow([InvertibleResidual(net, coeff=0.9)], event_shape=(2, 6, 6)).fill_caps().eval()
    x = torch.randn(3, 2, 6, 6)
    with torch.no_grad():
        program = torch.compile(lambda x: flow.log_prob(x), backend="eager", fullgraph=True)
        torch.testing.assert_close(program(x), flow.log_prob(x), rtol=1e-5, atol=1e-4)
    flow.train()
    for _ in range(
        2
    ):  # in these the power iteration of the 1 x 1 convolution begins, which would be programs of their own
        flow.training_loss(torch.randn(8, 2, 6, 6))
    loss = torch.compile(lambda x: flow.training_loss(x), backend="aot_eager", fullgraph=True)

    def step(n):
        flow.zero_grad()
        loss(torch.randn(n, 2, 6, 6)).backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in flow.parameters())

    for n in (8, 12):  # a program for this batch, and one for batches of any size
        step(n)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (8, 12, 16, 20):
            step(n)
