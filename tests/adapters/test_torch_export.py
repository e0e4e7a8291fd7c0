"""PyTorch: programs for batches of any size, by torch.export and torch.compile(dynamic=True)."""

import io

import pytest
from torch_models import convolutions, image_flow, images, mlp, nn, samples, torch, vector_flow

from iresnet_core.adapters.torch import ActNorm, Classifier, Flow, InvertibleResidual, Squeeze
from iresnet_core.backends import backend
from iresnet_core.errors import InvalidArgumentError

ANY_SIZE = {0: torch.export.Dim("batch")}
SIZES = (1, 2, 5, 11)


class Method(nn.Module):
    """A module of one method, which is what torch.export takes."""

    def __init__(self, flow, name, **options):
        super().__init__()
        self.flow, self.name, self.options = flow, name, options

    def forward(self, *inputs):
        return getattr(self.flow, self.name)(*inputs, **self.options)


def small_image_flow():
    torch.manual_seed(0)
    return Flow([Squeeze(), ActNorm(4), InvertibleResidual(convolutions(4))], event_shape=(1, 8, 8))


FLOWS = {
    "dense": lambda: vector_flow(2, blocks=1),
    "convolutions": small_image_flow,
    "all layers": image_flow,
}


def batch(flow, n, seed=0):
    return images(n, seed) if len(flow.event_shape) == 3 else samples(n, flow.event_shape[0], seed)


def initialized(kind):
    flow = FLOWS[kind]()
    return flow.initialize(batch(flow, 50)).eval()


def exported(module, *inputs, **options):
    """The program for any size, after it was written to a file and read."""
    with torch.no_grad():
        shapes = (ANY_SIZE,) * len(inputs)
        shapes = (shapes,) if isinstance(module, Method) else shapes
        program = torch.export.export(module, inputs, dynamic_shapes=shapes if inputs else None, **options)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def agree(found, expected, **tolerances):
    torch.testing.assert_close(found, expected, **{"rtol": 1e-5, "atol": 2e-5, **tolerances})


@pytest.mark.parametrize("kind", FLOWS)
def test_exported_log_density_of_any_number_of_samples(kind):
    flow = initialized(kind)
    program = exported(Method(flow, "log_prob", method="exact"), batch(flow, 6))
    with torch.no_grad():
        for n in SIZES:
            x = batch(flow, n, seed=n)
            agree(program(x), flow.log_prob(x, method="exact"))


@pytest.mark.parametrize("kind", ["dense", "convolutions"])
def test_exported_inverse_of_any_number_of_latents(kind):
    flow = initialized(kind)
    with torch.no_grad():
        encode = exported(Method(flow, "encode"), batch(flow, 6))
        decode = exported(Method(flow, "inverse"), flow.encode(batch(flow, 6)))
        for n in SIZES:
            x = batch(flow, n, seed=n)
            z = encode(x)
            agree(z, flow.encode(x))
            agree(decode(z), x, atol=2e-4)


@pytest.mark.parametrize("options", [{"exact_up_to": 32}, {"method": "series", "terms": 4}], ids=["auto", "series"])
def test_an_exported_estimate_draws_probes_of_its_own(options):
    """The probes belong to the samples, or come anew in every run from the global generator, as is asked for."""
    flow = vector_flow(40, blocks=1).initialize(samples(50, 40)).eval()
    own = exported(Method(flow, "log_prob", **options), samples(6, 40))
    program = exported(Method(flow, "log_prob", rng=None, **options), samples(6, 40))
    for n in (2, 9):
        x = samples(n, 40, seed=n)
        with torch.no_grad():
            assert torch.equal(own(x), own(x))
            agree(own(x), flow.log_prob(x, **options), atol=1e-4)
            expected = flow.log_prob(x, method="exact")
            torch.manual_seed(3)
            first = program(x)
            second = program(x)
            torch.manual_seed(3)
            assert torch.equal(program(x), first)
        assert not torch.equal(first, second)
        agree(first, expected, atol=0.2)


class Probes(nn.Module):
    """Two probes for every sample."""

    def forward(self, x):
        return backend("torch").sample("rademacher", (2, *x.shape), x, None)


@pytest.mark.parametrize("d", [1, 3, 7, 33])
def test_exported_probes_for_samples_of_any_dimension(d):
    """Also of dimensions that fill no word of random bits, and for batches that fill none."""
    program = exported(Probes(), torch.ones(5, d))
    for n in (0, 1, 3, 200):
        torch.manual_seed(n)
        signs = program(torch.ones(n, d))
        assert signs.shape == (2, n, d)
        assert bool(torch.all(signs.abs() == 1))
    rows = signs.reshape(-1, d)
    assert bool(torch.all(rows.mean(dim=0).abs() <= 5 / 400**0.5))
    covariance = rows.T @ rows / 400 - torch.eye(d)
    assert bool(torch.all(covariance.abs() <= 5 / 400**0.5))
    assert abs(float((signs[0] * signs[1]).mean())) <= 5 / (200 * d) ** 0.5


def test_exported_estimate_in_few_dimensions():
    flow = initialized("dense")
    program = exported(Method(flow, "log_prob", method="series", terms=4), samples(6, 2))
    x = samples(300, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        error = program(x) - flow.log_prob(x, method="exact")
    assert abs(float(error.mean())) <= 5 * float(error.std()) / 300**0.5
    assert 0 < float(error.std()) <= 2


def test_two_programs_with_the_same_constants():
    """Those of the first are of its own tracing, and no constants for the second."""
    flow = initialized("dense")
    x = samples(6, 2)
    for _ in range(2):
        program = exported(Method(flow, "log_prob", method="series", terms=5), x)
        assert torch.isfinite(program(x)).all()


def test_exported_samples():
    flow = initialized("dense")
    draw = exported(Method(flow, "sample", n=7))
    torch.manual_seed(4)
    first, second = draw(), draw()
    torch.manual_seed(4)
    agree(first, flow.sample(7), atol=2e-4)
    assert first.shape == second.shape == (7, 2)
    assert not torch.equal(first, second)


def test_exported_with_a_condition_a_sample():
    torch.manual_seed(0)
    flow = Flow([ActNorm(3), InvertibleResidual(mlp(3), context_features=2)], event_shape=(3,))
    flow.initialize(samples(50, 3), torch.randn(50, 2)).eval()
    program = exported(Method(flow, "log_prob", method="exact"), samples(6, 3), torch.randn(6, 2))
    for n in SIZES:
        x, context = samples(n, 3, seed=n), torch.randn(n, 2)
        with torch.no_grad():
            agree(program(x, context), flow.log_prob(x, context, method="exact"))


def test_exported_classifier():
    torch.manual_seed(0)
    model = Classifier((1, 8, 8), 4, padding=1, widths=(6, 6), blocks=(1, 1))
    model(images(30))
    model.eval()
    model.lipschitz  # noqa: B018
    program = exported(model, images(6))
    with torch.no_grad():
        for n in SIZES:
            agree(program(images(n, seed=n)), model(images(n, seed=n)))


def test_what_a_program_for_any_size_cannot_have():
    """Noise from an int seed is a constant of the program, which has a size."""
    flow = vector_flow(40, blocks=1).initialize(samples(50, 40)).eval()
    with torch.no_grad(), pytest.raises(InvalidArgumentError, match="int seed"):
        torch.export.export(
            Method(flow, "log_prob", rng=0, exact_up_to=32), (samples(6, 40),), dynamic_shapes=((ANY_SIZE,),)
        )


LONG = pytest.mark.strict_suite  # a minute of compiling each


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("dense", "log_prob"),
        ("dense", "inverse"),
        ("convolutions", "log_prob"),
        pytest.param("convolutions", "encode", marks=LONG),
        pytest.param("convolutions", "inverse", marks=LONG),
    ],
)
def test_compiled_once_for_any_size(kind, name):
    flow = initialized(kind)
    torch._dynamo.reset()
    programs = []

    def taken_down(program, inputs):
        programs.append(program)
        return program.forward

    options = {"method": "exact"} if name == "log_prob" else {}
    compiled = torch.compile(
        lambda x: getattr(flow, name)(x, **options), fullgraph=True, dynamic=True, backend=taken_down
    )
    with torch.no_grad():
        for n in (6, 3, 11):
            x = batch(flow, n, seed=n)
            x = flow.encode(x) if name == "inverse" else x
            agree(compiled(x), getattr(flow, name)(x, **options), atol=2e-4)
    assert len(programs) == 1
