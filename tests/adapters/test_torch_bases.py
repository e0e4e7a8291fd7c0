"""Densities of latents in PyTorch flows: learned and fixed, stored, and those of torch.distributions."""

import copy
import math
import pickle

import numpy as np
import pytest
from torch_models import nn, samples, torch

import iresnet_core as core
from iresnet_core.adapters.torch import ActNorm, Base, Flow, FourierFeatures, Inverted, InvertibleResidual, Wrap
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError, StorageError

of_torch = torch.distributions
RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(3, 2))
BASES = {
    "diagonal": core.DiagonalNormal(MEANS[0], np.array([0.5, 2.0])),
    "full": core.FullNormal(MEANS[0], np.array([[1.0, 0.0], [0.5, 2.0]])),
    "mixture": core.NormalMixture(np.array([0.0, 0.5, -1.0]), MEANS, np.full((3, 2), 0.7)),
    "student": core.StudentT(3.0, MEANS[0], np.array([0.5, 2.0])),
    "von mises": core.VonMises(MEANS[0], np.array([1.0, 2.0])),
    "cylinder": core.ProductBase(
        [core.VonMises(MEANS[0, :1], np.ones(1)), core.DiagonalNormal(MEANS[0, 1:], np.ones(1))], [[1], [0]]
    ),
    "box": core.Uniform([-30.0, -30.0], [30.0, 30.0]),
}


def a_flow(base, context_features=None, turned=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    block = InvertibleResidual(net, context_features=context_features)
    return Flow([ActNorm(2), Inverted(block) if turned else block], (2,), base=base)


def expected_density(base, flow, x):
    z, logdet = flow.encode(x, logdet=True, method="exact")
    return base.log_prob(z.detach().numpy().astype(float)) + logdet.detach().numpy()


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", BASES)
def test_a_base_is_trained_or_not_and_goes_everywhere(name, learned, tmp_path):
    x = samples(40, 2)
    flow = a_flow(Base(BASES[name], learned=learned)).initialize(x)
    np.testing.assert_allclose(
        flow.eval().log_prob(x, method="exact").detach(), expected_density(BASES[name], flow, x), rtol=1e-5, atol=1e-5
    )
    parameters = dict(flow.base.named_parameters())
    assert len(parameters) == (len(BASES[name].arrays) if learned else 0)
    assert len(list(flow.base.buffers())) == (0 if learned else len(BASES[name].arrays))
    optimizer = torch.optim.SGD(flow.parameters(), 0.05)
    before = {key: value.clone() for key, value in flow.base.state_dict().items()}
    flow.train()
    (flow.training_loss(x) + flow.reverse_kl(lambda y: -((y - 1) ** 2).sum(1), 16)).backward()
    optimizer.step()
    for key, value in flow.base.state_dict().items():
        assert (key in parameters) == bool((value != before[key]).any())
    flow.eval()
    nats = flow.log_prob(x, method="exact")
    np.testing.assert_allclose(flow.to_core().log_prob(x, method="exact").value, nats.detach(), rtol=1e-5, atol=1e-5)
    flow.save(tmp_path / "flow")
    loaded = core.load(tmp_path / "flow")
    assert type(loaded.base) is type(BASES[name])
    np.testing.assert_allclose(loaded.log_prob(x.numpy(), method="exact").value, nats.detach(), rtol=1e-5, atol=1e-5)
    fresh = a_flow(Base(BASES[name], learned=learned))
    fresh.load_state_dict(flow.state_dict())
    for same in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), fresh.eval()):
        assert torch.equal(same.log_prob(x, method="exact"), nats)
    drawn, density = flow.sample(5, rng=3, log_prob=True, method="exact")
    np.testing.assert_allclose(density.detach(), flow.log_prob(drawn, method="exact").detach(), atol=1e-4)
    assert torch.equal(flow.sample(5, rng=3), drawn)


@pytest.mark.parametrize("name", ["mixture", "student"])
def test_distributions_have_the_base(name):
    x, context = samples(6, 2), torch.randn(3, 4)
    flow = a_flow(BASES[name], context_features=4).initialize(x, context[[0, 1, 2] * 2]).eval()
    many = flow.distribution(context)
    assert many.batch_shape == (3,)
    nats = many.log_prob(x[:, None])
    assert nats.shape == (6, 3)
    for k in range(3):
        torch.testing.assert_close(nats[:, k], flow.log_prob(x, context[k]), rtol=1e-4, atol=1e-4)
    drawn = many.rsample((2,))
    assert drawn.shape == (2, 3, 2)
    drawn.sum().backward()
    assert flow.base.mean.grad.abs().max() > 0
    with torch.no_grad():
        flow.base.mean.add_(5)  # a distribution has the parameters of the flow as they are now
    torch.testing.assert_close(many.log_prob(x[:, None])[:, 1], flow.log_prob(x, context[1]), rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidArgumentError, match="period"):
        Flow([Wrap(), a_flow("normal").layers[1]], (2,)).distribution()


def independent(kind, *arguments):
    return of_torch.Independent(kind(*arguments), 1)


TWO = torch.tensor([0.5, 2.0])
DISTRIBUTIONS = {
    "normal": (lambda: independent(of_torch.Normal, TWO, TWO), core.DiagonalNormal),
    "correlated": (lambda: of_torch.MultivariateNormal(TWO, torch.tensor([[2.0, 0.5], [0.5, 1]])), core.FullNormal),
    "student": (lambda: independent(of_torch.StudentT, 3.0, TWO, TWO), core.StudentT),
    "von mises": (lambda: independent(of_torch.VonMises, TWO, TWO), core.VonMises),
    "uniform": (lambda: independent(of_torch.Uniform, -9 * TWO, 9 * TWO), core.Uniform),
    "mixture": (
        lambda: of_torch.MixtureSameFamily(
            of_torch.Categorical(torch.tensor([1.0, 3.0])), independent(of_torch.Normal, torch.eye(2), torch.ones(2, 2))
        ),
        core.NormalMixture,
    ),
    "two degrees": (lambda: independent(of_torch.StudentT, 3 * TWO, TWO, TWO), None),
    "concentrated": (lambda: independent(of_torch.VonMises, TWO, 9000 * TWO), None),
    "laplace": (lambda: independent(of_torch.Laplace, TWO, TWO), None),
    "gamma": (lambda: independent(of_torch.Gamma, TWO, TWO), None),
}


@pytest.fixture(params=[True, False])
def validation(request):
    """PyTorch checks the arguments of its distributions until the first torch.compile of a process."""
    before = of_torch.Distribution._validate_args
    of_torch.Distribution.set_default_validate_args(request.param)
    yield
    of_torch.Distribution.set_default_validate_args(before)


@pytest.mark.usefixtures("validation")
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_of_pytorch_are_taken(name, tmp_path):
    """Those that the core has a density for are stored; of another kind they stay what they are."""
    make, kind = DISTRIBUTIONS[name]
    base, x = make(), samples(40, 2)
    flow = a_flow(base).initialize(x).eval()
    z, logdet = flow.encode(x, logdet=True, method="exact")
    inside = base.support.check(z)
    nats = flow.log_prob(x, method="exact").detach()
    assert inside.all() or name == "gamma"
    torch.testing.assert_close(nats[inside], (base.log_prob(z[inside]) + logdet[inside]).detach(), rtol=1e-4, atol=1e-4)
    assert (nats[~inside] == -math.inf).all()
    drawn = flow.sample(2000, rng=1)
    assert torch.equal(drawn, flow.sample(2000, rng=1))
    assert flow.sample(0).shape == (0, 2)
    if name not in ("von mises", "concentrated", "mixture"):
        away = (flow.encode(drawn).mean(0) - base.mean) / (base.stddev / 2000**0.5)
        assert away.abs().max() < 5
    if kind is not None:
        flow.save(tmp_path / "flow")
        assert type(core.load(tmp_path / "flow").base) is kind
    else:
        with pytest.raises(StorageError, match="base OwnDistribution"):
            flow.save(tmp_path / "flow")
    assert not list(flow.base.parameters())


def test_a_distribution_with_parameters_is_learned():
    mean = torch.zeros(2, requires_grad=True)
    assert a_flow(independent(of_torch.Normal, mean, TWO)).base.learned
    fixed = Base(independent(of_torch.Normal, mean, TWO), learned=False)
    assert not list(a_flow(fixed).base.parameters())


class Own(nn.Module):
    """A density of one's own, with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def log_prob(self, z):
        return -(z.abs() / self.scale).sum(1) - (2 * self.scale).log().sum()

    def sample(self, n, rng, like):
        return of_torch.Laplace(0 * self.scale, self.scale).rsample((n,))


def test_a_module_of_ones_own(tmp_path):
    flow = a_flow(Own()).initialize(samples(40, 2))
    flow.training_loss(samples(40, 2)).backward()
    assert dict(flow.named_parameters())["base.density.scale"].grad.abs().max() > 0
    assert torch.isfinite(flow.reverse_kl(lambda x: -(x**2).sum(1), 8))
    assert flow.distribution().sample((3,)).shape == (3, 2)
    with pytest.raises(StorageError, match="DiagonalNormal"):
        flow.save(tmp_path / "flow")
    with pytest.raises(InvalidArgumentError, match="learned"):
        Base(Own(), learned=True)


def test_what_is_no_base_is_refused():
    for wrong in (independent(of_torch.Laplace, torch.ones(3), torch.ones(3)), core.Uniform([0.0], [1.0])):
        with pytest.raises(ShapeError, match=r"those of the flow have \(2,\)"):
            a_flow(wrong)
    with pytest.raises(ShapeError, match=r"Independent\(distribution, 1\)"):
        a_flow(of_torch.Normal(TWO, TWO))
    with pytest.raises(InvalidArgumentError, match="discrete values"):
        a_flow(independent(of_torch.Poisson, TWO))
    with pytest.raises(InvalidArgumentError, match="a density such as"):
        a_flow(of_torch.Normal)
    for wrong in ("cauchy", None, nn.Linear(2, 2)):
        with pytest.raises(InvalidArgumentError, match="no base density"):
            a_flow(wrong)
    with pytest.raises(InvalidArgumentError, match="above 0"):
        a_flow(core.VonMises(np.zeros(2), np.zeros(2)))
    flow = a_flow(core.Uniform([0.0, 0.0], [1e-3, 1e-3])).initialize(samples(9, 2))
    with pytest.raises(NonFiniteError, match="sample"):
        flow.training_loss(samples(9, 2))


def test_a_flow_on_a_torus_has_a_density_and_samples(tmp_path):
    torch.manual_seed(0)
    turn = 2 * math.pi
    layers = [FourierFeatures(torch.eye(2)), nn.Linear(4, 8), nn.ELU(), nn.Linear(8, 2)]
    base = core.Uniform([0.0, 0.0], [turn, turn], periodic=True)
    flow = Flow([Wrap(), InvertibleResidual(nn.Sequential(*layers))], (2,), base=base).double().eval()
    x = turn * torch.rand(9, 2, dtype=torch.float64)
    nats = flow.log_prob(x, method="exact")
    torch.testing.assert_close(flow.log_prob(x + turn, method="exact"), nats)
    drawn = flow.sample(300, rng=0)
    assert ((drawn >= 0) & (drawn < turn)).all()
    flow.save(tmp_path / "flow")
    found = core.load(tmp_path / "flow").log_prob(x.numpy(), method="exact").value
    np.testing.assert_allclose(found, nats.detach(), rtol=1e-9)


@pytest.mark.parametrize("name", ["mixture", "cylinder"])
def test_a_compiled_program_for_any_size(name):
    """With conditions; the graph is exported, which traces as torch.compile does."""
    x, context = samples(6, 2), torch.randn(6, 3)
    flow = a_flow(BASES[name], context_features=3).initialize(x, context).eval()

    class Score(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, x, context):
            return self.flow.log_prob(x, context, method="exact")

    size = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(Score(), (x, context), dynamic_shapes=(size, size)).module()
        for n in (2, 5):
            torch.testing.assert_close(program(x[:n], context[:n]), flow.log_prob(x, context, method="exact")[:n])


@pytest.mark.parametrize(("name", "kind"), [("diagonal-normal", "DiagonalNormal"), ("student-t", "StudentT")])
def test_bases_have_names(name, kind, tmp_path):
    x = samples(50, 2)
    flow = a_flow(name).initialize(x)
    assert type(flow.base.core_base()).__name__ == kind
    assert {"base.mean", "base.log_scale"} <= set(dict(flow.named_parameters()))
    flow.training_loss(x).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in flow.base.parameters())
    flow.save(tmp_path / "flow.safetensors")
    back = core.load(tmp_path / "flow.safetensors")
    np.testing.assert_allclose(back.log_prob(x.numpy()).value, flow.eval().log_prob(x).detach(), atol=1e-4)
    with pytest.raises(InvalidArgumentError, match="by name there are normal, diagonal-normal, student-t"):
        a_flow("cauchy")
