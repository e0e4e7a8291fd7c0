"""PyTorch: flows as densities and as modules."""

import copy

import pytest
from torch_models import convolutions, image_flow, images, mlp, nn, samples, torch, train, vector_flow

import iresnet_core as core
from iresnet_core.adapters.torch import (
    Activation,
    ActNorm,
    FactorOut,
    Flow,
    FlowLayer,
    InjectivePad,
    InvertibleResidual,
    branch,
)
from iresnet_core.errors import (
    InvalidArgumentError,
    NonFiniteError,
    NotContractiveError,
    ShapeError,
    UnknownArrayError,
    UnknownLipschitzError,
)


@pytest.mark.parametrize("d", [2, 64])
def test_log_prob_in_training_is_a_true_estimate(d):
    flow = train(vector_flow(d, blocks=1), samples(300, d), steps=50)
    x = samples(40, d, seed=2)
    with torch.no_grad():
        estimates = [flow.log_prob(x, errors=True, exact_up_to=32) for _ in range(30)]
        exact = flow.log_prob(x, method="exact")
    mean = torch.stack([e.value for e in estimates]).mean(0)
    errors = torch.stack([e.std_error for e in estimates]).square().mean(0).sqrt()
    bias = estimates[0].bias_bound
    z = ((mean - exact).abs() - bias - 1e-4).clamp_min(0) / (errors / 30**0.5 + 1e-12)
    assert z.max() < 5
    assert (errors.max() > 0.01) == (d == 64)


@pytest.mark.parametrize("training", [True, False])
def test_sample_weights_give_the_gradient_of_the_weighted_sum(training):
    flow = train(vector_flow(40, blocks=1), samples(200, 40), steps=10).train(training)
    if training:
        with torch.no_grad():
            for _ in range(30):  # until the estimated norms, which are the same for all gradients below, stand still
                flow.log_prob(samples(2, 40))
    x, weights = samples(12, 40, seed=3), torch.linspace(0, 2, 12)
    parameters = list(flow.parameters())

    def gradient(**options):
        found = torch.autograd.grad((weights * flow.log_prob(x, **options)).sum(), parameters)
        return torch.cat([g.flatten() for g in found])

    exact = gradient(method="exact")
    draws = torch.stack([gradient() for _ in range(40)])
    error = draws.std(0).norm() / 40**0.5
    assert (draws.mean(0) - exact).norm() < 3 * error + 1e-3 * exact.norm()
    assert error < 0.2 * exact.norm()


@pytest.mark.parametrize("make", [lambda: vector_flow(2), lambda: vector_flow(64), image_flow])
def test_inverse_within_its_bound(make):
    flow = make()
    x = images(8) if len(flow.event_shape) == 3 else samples(8, flow.event_shape[0])
    flow.initialize(x)
    for mode in (True, False):
        flow.train(mode)
        with torch.no_grad():
            z, _ = flow(x)
            back = flow.inverse(z, errors=True)
        error = (back.value - x).flatten(1).norm(dim=1)
        # what rounding did to z comes on top of the bound for z as it is
        assert (error <= back.error_bound + 1e-4 * (1 + x.flatten(1).norm(dim=1))).all()
        assert back.converged.all()


def test_seed_reproduces_everything():
    def run():
        flow = train(vector_flow(40, blocks=1), samples(100, 40), steps=3)
        return flow.log_prob(samples(5, 40)), flow.sample(3)

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


def test_the_callers_tensors_stay_as_they_are():
    flow, x = vector_flow(8), samples(10, 8)
    before = x.clone()
    flow.log_prob(x).sum().backward()
    assert not x.requires_grad
    assert x.grad is None
    assert torch.equal(x, before)
    frozen = vector_flow(8).requires_grad_(False)
    frozen.log_prob(x)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_gradient_with_respect_to_samples():
    flow = vector_flow(2).double().eval()
    flow.initialize(samples(20, 2).double())
    x = samples(3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: flow.log_prob(x), x)


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training):
    flow = train(vector_flow(40, blocks=1), samples(100, 40), steps=2).train(training)
    x = samples(6, 40)
    if not training:
        flow.log_prob(x)
    twin = copy.deepcopy(flow)
    # NumPy's noise: PyTorch's own is drawn in other portions by a program.
    options = {"rng": 0} if training else {"rng": 0, "terms": 6, "method": "arnoldi"}
    expected = twin.log_prob(x, **options)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: flow.log_prob(x, **options), fullgraph=True, backend="aot_eager")
    found = compiled(x)
    assert torch.allclose(found, expected, atol=1e-4)
    flow.zero_grad()
    expected.sum().backward()
    found.sum().backward()
    for p, q in zip(flow.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-3)


def test_exported():
    flow = vector_flow(8).eval()
    x = samples(5, 8)
    flow.initialize(x)
    flow.log_prob(x)
    program = torch.export.export(flow, (x,))
    with torch.no_grad():
        for found, expected in zip(program.module()(x), flow(x), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


def test_autocast_changes_nothing():
    flow = vector_flow(40).eval()
    flow.initialize(samples(20, 40))
    x = samples(5, 40)
    with torch.no_grad():
        expected = flow.log_prob(x, method="exact")
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
            assert torch.equal(flow.log_prob(x, method="exact"), expected)
            low = flow.log_prob(x.bfloat16(), method="exact")
    assert low.dtype == torch.float32


@pytest.mark.parametrize("make", [lambda: vector_flow(8), image_flow])
def test_autocast_changes_nothing_in_training(make):
    """Nor do the estimates of the norms change, which a pass begins with."""
    x = images(6) if make is image_flow else samples(6, 8)
    with torch.no_grad():
        low, full = (make().initialize(x) for _ in range(2))
    for _ in range(3):
        expected = full.log_prob(x, method="exact")
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
            found = low.log_prob(x, method="exact")
        assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [lambda: vector_flow(8), image_flow])
def test_autocast_changes_nothing_in_a_backward_pass(make):
    """Inside of autocast, which lowers the products on the way back too."""
    x = images(6) if make is image_flow else samples(6, 8)
    flow = make()
    with torch.no_grad():
        flow.initialize(x)
    twin = copy.deepcopy(flow)
    (-full_loss(flow, x)).backward()
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        (-full_loss(twin, x)).backward()
    moved = [p for p in flow.parameters() if p.grad is not None and bool((p.grad != 0).any())]
    assert len(moved) > 3
    for ours, theirs in zip(flow.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:  # on a GPU, the convolution's backward pass adds in any order
            rounding = 1e-5 if x.is_cuda else 0
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=rounding, atol=rounding)


def full_loss(flow, x):
    """The exact density, and that with random probes, of which the same ones are drawn."""
    torch.manual_seed(0)
    return flow.log_prob(x, method="exact").mean() + flow.log_prob(x, rng=0).mean()


def test_functional_call_and_ensembles():
    flows = [vector_flow(3, seed=s).eval() for s in range(3)]
    x = samples(5, 3)
    for flow in flows:
        flow.initialize(x)
    expected = torch.stack([flow.log_prob(x) for flow in flows])
    parameters, buffers = torch.func.stack_module_state(flows)

    def log_prob(parameters, buffers):
        z, logdet = torch.func.functional_call(flows[0], (parameters, buffers), (x,), {"method": "exact"})
        return logdet - 0.5 * (z**2).sum(1) - 1.5 * torch.log(torch.tensor(2 * torch.pi))

    assert torch.allclose(torch.func.vmap(log_prob)(parameters, buffers), expected, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_of_a_transform_is_kept(frozen):
    """A model that is used in torch.func.grad first can be copied, and scores, afterwards."""
    flow = vector_flow(3).initialize(samples(20, 3)).eval().requires_grad_(not frozen)
    x, parameters = samples(5, 3), dict(flow.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(flow, parameters, (x,), {"method": "exact"})[1].sum()

    torch.func.grad(loss, argnums=1 if frozen else 0)(parameters, x)
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        assert torch.equal(twin.log_prob(x), flow.log_prob(x))


def test_copies_are_independent():
    flow = vector_flow(4).eval()
    x = samples(6, 4)
    flow.initialize(x)
    expected = flow.log_prob(x)
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.5)
    assert torch.equal(flow.log_prob(x), expected)
    assert not torch.allclose(twin.log_prob(x), expected)


def test_distribution():
    flow = vector_flow(2).eval()
    x = samples(20, 2)
    flow.initialize(x)
    density = flow.distribution()
    assert torch.allclose(density.log_prob(x), flow.log_prob(x), atol=1e-5)
    drawn = density.rsample((4, 3))
    assert drawn.shape == (4, 3, 2)
    assert density.log_prob(drawn).shape == (4, 3)
    drawn.sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_a_transform_does_not_cut_other_shapes_into_samples():
    """Twelve numbers are three samples of four, but not if they came as two rows of six."""
    flow = vector_flow(4).initialize(samples(50, 4)).eval()
    with torch.no_grad():
        for wrong in (torch.zeros(2, 6), torch.zeros(3)):
            for call in (flow.transform(), flow.transform().inv, flow.distribution().log_prob):
                with pytest.raises(ShapeError, match=r"\(\.\.\., 4\)"):
                    call(wrong)
        assert flow.distribution().log_prob(torch.zeros(2, 3, 4)).shape == (2, 3)


def test_a_context_that_nothing_takes_is_refused():
    flow = vector_flow(4).initialize(samples(50, 4)).eval()
    with torch.no_grad(), pytest.raises(InvalidArgumentError, match="context_features"):
        flow.log_prob(samples(3, 4), torch.zeros(3, 2))
    fresh = vector_flow(4)
    with pytest.raises(InvalidArgumentError, match="context_features"):
        fresh.initialize(samples(50, 4), torch.zeros(50, 2))
    assert not any(layer.initialized for layer in fresh.layers if isinstance(layer, ActNorm))


def test_a_layer_of_ones_own_may_take_the_context():
    class Moved(FlowLayer):
        """Adds the context."""

        def core_layer(self, context=None, *, training=None, weights=None):
            return core.ActNorm(torch.zeros(4), torch.zeros(4) if context is None else context[0])

    flow = Flow([Moved()], event_shape=(4,)).eval()
    with torch.no_grad():
        moved = flow.encode(torch.zeros(3, 4), torch.ones(1, 4))
    assert torch.equal(moved, torch.ones(3, 4))


def test_context_moves_the_density():
    torch.manual_seed(0)
    flow = Flow([ActNorm(3), InvertibleResidual(mlp(3), context_features=2)], event_shape=(3,))
    x, context = samples(10, 3), torch.randn(10, 2)
    flow.log_prob(x, context).sum().backward()
    assert flow.layers[1].context.weight.grad.abs().max() > 0
    flow.eval()
    with torch.no_grad():
        z, _ = flow(x, context)
        assert torch.allclose(flow.inverse(z, context), x, atol=1e-4)
        one = context[:1]
        exported = flow.to_core(one)
        assert torch.allclose(exported.log_prob(x).value, flow.log_prob(x, one.expand(10, -1)), atol=1e-5)
        assert torch.allclose(flow.log_prob(x, one), flow.log_prob(x, one.expand(10, -1)), atol=1e-5)
        assert torch.allclose(flow.inverse(flow.encode(x, one), one), x, atol=1e-4)
        with pytest.raises(ShapeError, match="one condition"):
            flow.to_core(context[:3])
    assert flow.sample(4, one).shape == (4, 3)
    for wrong in (None, context[:, :1], context[:4]):
        with pytest.raises((InvalidArgumentError, ShapeError)):
            flow.log_prob(x, wrong)
    with pytest.raises(UnknownArrayError, match="as_tensor"):
        flow.log_prob(x, context.cpu().numpy())


def test_a_module_whose_constant_is_stated():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 5), nn.LeakyReLU())
    constant = float(torch.linalg.matrix_norm(net[0].weight.detach(), 2)) * 1.0001
    flow = Flow([InvertibleResidual(net, coeff=0.6, lipschitz=constant)], event_shape=(5,)).eval()
    x = samples(6, 5)
    with torch.no_grad():
        z, _ = flow(x)
        assert torch.allclose(flow.inverse(z), x, atol=1e-4)
    assert flow.lipschitz == min(constant, 0.6)
    flow.log_prob(x).sum().backward()
    assert net[0].weight.grad is not None


def test_actnorm_is_initialised_once():
    flow, x = vector_flow(4), samples(50, 4) * 3 + 1
    flow.log_prob(x)
    z = flow.layers[0](x)
    assert torch.allclose(z.mean(0), torch.zeros(4), atol=1e-5)
    scale = flow.layers[0].log_scale.clone()
    flow.log_prob(2 * x)
    assert torch.equal(flow.layers[0].log_scale, scale)
    fresh = vector_flow(4)
    fresh.load_state_dict(flow.state_dict())
    fresh.log_prob(5 * x)
    assert torch.equal(fresh.layers[0].log_scale, scale)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2, "padding": 2}, {"bias": False}])
def test_convolutions_are_those_of_torch(padding_mode, options):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, **{"padding": 1, **options}, padding_mode=padding_mode)
    block = InvertibleResidual(layer, coeff=0.9).eval()
    x = torch.randn(3, 4, 6, 6)
    assert torch.allclose(block(x), x + layer(x), atol=1e-5)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_other_dimensions(kind):
    axes = 1 if kind is nn.Conv1d else 3
    block = InvertibleResidual(nn.Sequential(kind(2, 3, 3, padding="same"), nn.Tanh(), kind(3, 2, 1)))
    x = torch.randn(2, 2, *(4,) * axes)
    assert torch.allclose(block.eval().inverse(block(x)), x, atol=1e-4)


def test_activations_are_those_of_torch():
    x = torch.randn(4, 6)
    modules = [
        kind(**dict.fromkeys(parameters.values(), 0.7), **({"min_val": -0.7} if kind is nn.Hardtanh else {}))
        for kind, (_, parameters) in branch._ACTIVATIONS.items()
    ]
    for module in (*modules, nn.CELU(2.0), nn.Softplus(), nn.LeakyReLU(-1.0)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6), nn.Sequential(module), nn.Linear(6, 6))
        block = InvertibleResidual(net).eval()
        assert torch.allclose(block(x), x + net(x), atol=1e-5)
    assert torch.equal(Activation("maxmin")(x)[:, 0], x[:, :2].max(1).values)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: InvertibleResidual(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))), UnknownLipschitzError, "LayerN"),
        (lambda: InvertibleResidual(nn.BatchNorm1d(4)), UnknownLipschitzError, "BatchNorm1d"),
        (lambda: InvertibleResidual(nn.MultiheadAttention(4, 2)), UnknownLipschitzError, "MultiheadAttention"),
        (lambda: Flow([InvertibleResidual(nn.Conv2d(4, 4, 3, stride=2))], (4, 8, 8)), ShapeError, "stride takes away"),
        (lambda: Flow([InvertibleResidual(nn.Linear(4, 5))], (4,)), ShapeError, "keeps the shape"),
        (lambda: Flow([InvertibleResidual(convolutions(4))], (3, 8, 8)), ShapeError, r"but of shape \(4, n, n\)"),
        (lambda: InvertibleResidual(nn.Linear(4, 4), coeff=1.0), NotContractiveError, "coeff"),
        (lambda: InvertibleResidual(nn.ReLU()), InvalidArgumentError, "at least one"),
        (lambda: Flow([nn.Linear(4, 4)], (4,)), InvalidArgumentError, "no layer of a flow"),
        (lambda: Flow([], (4,)), InvalidArgumentError, "at least one"),
        (lambda: Flow([ActNorm(4)], "4"), InvalidArgumentError, "event_shape must be"),
        *(
            (lambda module=module: InvertibleResidual(nn.Sequential(nn.Linear(4, 4), module)), error, match)
            for module, error, match in (
                (nn.Softplus(2.0, threshold=1.0), UnknownLipschitzError, "threshold of 15"),
                (nn.GELU("tanh"), UnknownLipschitzError, "exact form"),
                (nn.Hardtanh(0.0, 1.0), UnknownLipschitzError, "opposite limits"),
                (nn.LeakyReLU(1.5), InvalidArgumentError, "slope must lie between -1 and 1"),
                (nn.ReLU6(), UnknownLipschitzError, "ReLU6 is not known"),
            )
        ),
        (lambda: FactorOut(2, [InjectivePad(2)])(torch.zeros(1, 4)), InvalidArgumentError, "part of"),
        (lambda: vector_flow(4).eval().to_core(), InvalidArgumentError, "initialised"),
        (lambda: vector_flow(4).log_prob(samples(3, 5)), ShapeError, "shape"),
        (lambda: vector_flow(4).log_prob(samples(3, 4) * float("nan")), NonFiniteError, "NaN"),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_layer_belongs_to_one_block():
    layer = nn.Linear(4, 4)
    InvertibleResidual(layer)
    with pytest.raises(InvalidArgumentError, match="one block"):
        InvertibleResidual(layer)


def test_injective_pad_in_a_flow():
    flow = Flow([InjectivePad(2), ActNorm(6), InvertibleResidual(mlp(6))], event_shape=(4,))
    x = samples(9, 4)
    z = flow.initialize(x).encode(x)
    assert z.shape == (9, 6)
    assert torch.allclose(flow.inverse(z), x, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2])
def test_weights_that_are_not_finite_are_reported_in_training(blocks):
    flow = vector_flow(40, blocks=blocks)
    with torch.no_grad():
        flow.layers[-1].net[0].parametrizations.weight.original[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        flow.train().log_prob(samples(5, 40))


def test_arrays_of_another_framework_are_refused():
    with pytest.raises(UnknownArrayError, match="numpy"):
        vector_flow(4).log_prob(samples(5, 4).cpu().numpy())


@pytest.mark.parametrize("mode", [True, False])
def test_compiled_with_batches_of_several_sizes(mode):
    """As the last one of an epoch."""
    flow = vector_flow(40).initialize(samples(20, 40)).train(mode)
    flow.lipschitz  # noqa: B018  # certified once
    score = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    for count in (8, 5, 3):
        assert torch.isfinite(score(samples(count, 40))).all()
