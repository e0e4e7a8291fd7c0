"""Value and log-determinant of a dense chain with a derivative written by hand, beside the backend's own."""

import itertools
import math
import weakref

import pytest
from activation_cases import other_parameters

import iresnet_core as core
from iresnet_core.backends import get_backend
from iresnet_core.branches.activation_functions import ACTIVATIONS
from iresnet_core.branches.joint_derivative import JointPass, can_join
from iresnet_core.determinant.dispatch import value_and_logdet
from iresnet_core.errors import DerivativeError, MixedBackendsError

torch = pytest.importorskip("torch", reason="the derivative by hand is for PyTorch")

NAMES = [name for name, function in ACTIVATIONS.items() if function.entrywise and not function.has_unit_slope]


def parts(d, widths, *, seed=0, bias=True):
    """Weights and biases of layers d - widths - d, each of norm 0.9."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    sizes, arrays = [d, *widths, d], []
    for n, m in itertools.pairwise(sizes):
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
        weight = 0.9 * weight / torch.linalg.matrix_norm(weight, 2)
        arrays.append(weight.requires_grad_())
        arrays.append(torch.randn(m, generator=generator, dtype=torch.float64).requires_grad_() if bias else None)
    return arrays


def chain_of(arrays, activation, *, closed=False):
    """The chain of these layers with the activation between them, and at the end if it is closed."""
    layers = []
    for place in range(0, len(arrays), 2):
        layers += [core.Dense(arrays[place], arrays[place + 1], checked=True), activation]
    return core.Chain(layers if closed else layers[:-1])


def gradients(chain, arrays, x, weights, **options):
    """Value, log-determinant, and the gradients of a weighted sum of both."""
    g, result = value_and_logdet(chain, x, lipschitz=0.95, errors=False, **options)
    loss = (weights * result.value).sum() + (g**3).sum()
    wanted = [a for a in (x, *arrays) if a is not None and a.requires_grad]
    return [g, result.value, *torch.autograd.grad(loss, wanted)]


def by_the_backend(monkeypatch):
    """Switch the derivative by hand off."""
    monkeypatch.setattr(type(get_backend(torch.ones(1))), "takes_derivatives_by_hand", lambda *_: False)


def problem(d, n=5, seed=1):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.rand(n, generator=generator, dtype=torch.float64)


def calls(monkeypatch):
    """Count the joint passes."""
    seen = []
    recorded = JointPass.recorded
    monkeypatch.setattr(JointPass, "recorded", lambda *a, **k: seen.append(1) or recorded(*a, **k))
    return seen


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("d", "widths", "options"),
    [
        (1, (4,), {"method": "exact"}),
        (2, (6, 5), {"method": "exact"}),
        (3, (6, 4), {"method": "exact"}),
        (3, (5,), {"method": "mean-jacobian", "probes": 1}),
        (4, (8, 7, 6), {"method": "mean-jacobian", "probes": 3, "terms": 2}),
    ],
    ids=["exact1", "exact2", "exact3", "probe", "probes"],
)
def test_gradients_are_those_of_the_backend(monkeypatch, d, widths, options, name, closed):
    """By x, weights and biases, with a weight for every sample."""
    x, weights = problem(d)
    arrays, activation = parts(d, widths), core.Activation(name)
    if options["method"] == "mean-jacobian":
        options = {**options, "noise": torch.sign(torch.randn(options.pop("probes", 1), *x.shape, dtype=x.dtype))}
    seen = calls(monkeypatch)
    ours = gradients(chain_of(arrays, activation, closed=closed), arrays, x, weights, **options)
    assert seen
    by_the_backend(monkeypatch)
    theirs = gradients(chain_of(arrays, activation, closed=closed), arrays, x, weights, **options)
    assert len(seen) == 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["elu", "celu", "selu", "tanh", "sin", "lipswish"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_images_in_float32_of_which_a_part_has_its_log_determinants(monkeypatch, shape, name):
    """Values of all samples go back by the slopes that their values tell."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    activation, channels, arrays, layers = core.Activation(name, **other_parameters(name)), shape[0], [], []
    for n, m, k in ((channels, 8, 3), (8, 8, 1), (8, channels, 3)):
        kernel = (0.3 * torch.randn(m, n, k, k, generator=generator) / (n * k * k) ** 0.5).requires_grad_()
        arrays += [kernel, (0.1 * torch.randn(m, generator=generator)).requires_grad_()]
        size = (n, *shape[1:])
        layers += [core.Convolution(*arrays[-2:], input_shape=size, padding="same", checked=True), activation]
    chain, x = core.Chain(layers[:-1]), torch.randn(6, *shape, generator=generator).requires_grad_()
    weights, noise = torch.rand(2, generator=generator), torch.ones(1, 2, *shape)
    options = {"part": 2, "noise": noise, "method": "arnoldi", "terms": 3}
    found = gradients(chain, arrays, x, weights, **options)
    by_the_backend(monkeypatch)
    for a, b in zip(found, gradients(chain, arrays, x, weights, **options), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.detach().abs().max()))


def test_only_what_is_asked_for(monkeypatch):
    """Frozen weights, no biases, samples without a gradient."""
    arrays = parts(3, (6, 5), bias=False)
    arrays[2].requires_grad_(False)
    x, weights = problem(3)
    x = x.detach()
    options = {"method": "mean-jacobian", "noise": torch.ones(1, *x.shape, dtype=x.dtype)}
    ours = gradients(chain_of(arrays, core.Activation("elu")), arrays, x, weights, **options)
    by_the_backend(monkeypatch)
    theirs = gradients(chain_of(arrays, core.Activation("elu")), arrays, x, weights, **options)
    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("of", ["value", "logdet"])
def test_one_output_alone(monkeypatch, of):
    """The other one has no cotangent."""
    arrays, (x, _) = parts(2, (5,)), problem(2)

    def gradient():
        g, result = value_and_logdet(chain_of(arrays, core.Activation("tanh")), x, errors=False, method="exact")
        return torch.autograd.grad((g if of == "value" else result.value).sum(), [x, *arrays], allow_unused=True)

    ours = gradient()
    by_the_backend(monkeypatch)
    for a, b in zip(ours, gradient(), strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-10, atol=1e-12)


def test_a_reference_takes_the_place_of_the_mean(monkeypatch):
    """A is constant then, the control variate is that of the batch."""
    arrays, (x, weights) = parts(3, (6, 5)), problem(3)
    chain = chain_of(arrays, core.Activation("lipswish"))
    with torch.no_grad():
        reference = core.mean_jacobian(chain, x.detach() + 0.1)
    options = {"reference": reference, "noise": torch.ones(2, *x.shape, dtype=x.dtype)}
    seen = calls(monkeypatch)
    ours = gradients(chain, arrays, x, weights, **options)
    assert seen
    by_the_backend(monkeypatch)
    for a, b in zip(ours, gradients(chain, arrays, x, weights, **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_second_derivatives_of_the_exact_answer(monkeypatch):
    """They are those of a program without a derivative by hand."""
    arrays, (x, _) = parts(2, (5, 4)), problem(2)

    def penalty():
        g, result = value_and_logdet(chain_of(arrays, core.Activation("lipswish")), x, errors=False, method="exact")
        (slope,) = torch.autograd.grad((result.value + g.sum(1)).sum(), x, create_graph=True)
        return torch.autograd.grad((slope**2).sum(), [x, *arrays[:-1]])

    ours = penalty()
    by_the_backend(monkeypatch)
    for a, b in zip(ours, penalty(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_second_derivatives_of_an_estimate_are_refused():
    """They would be wrong."""
    arrays, (x, _) = parts(2, (5, 4)), problem(2)
    noise = torch.ones(1, *x.shape, dtype=x.dtype)
    result = core.logdet(
        chain_of(arrays, core.Activation("lipswish")), x, errors=False, method="mean-jacobian", noise=noise
    )
    (slope,) = torch.autograd.grad(result.value.sum(), x, create_graph=True)
    with pytest.raises(DerivativeError, match="second derivative"):
        torch.autograd.grad((slope**2).sum(), x)


@pytest.mark.parametrize("blocks", [1, 2])
def test_what_is_shared_is_counted_once(monkeypatch, blocks):
    """A weight that stands twice in a chain, and in the blocks before; with a graph of the derivative as without."""
    weight, bias = parts(3, ())
    x, _ = problem(3)

    def gradient(create_graph):
        h, total = x, 0
        for _ in range(blocks):
            chain = chain_of([weight, bias, weight, bias], core.Activation("lipswish"))
            g, result = value_and_logdet(chain, h, errors=False, method="exact")
            h, total = h + g, total + result.value
        return torch.autograd.grad((total + (h**2).sum(1)).sum(), [x, weight, bias], create_graph=create_graph)

    ours = gradient(True)
    for a, b in zip(ours, gradient(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    by_the_backend(monkeypatch)
    for a, b in zip(ours, gradient(True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_second_derivatives_of_the_value_beside_an_estimate(monkeypatch):
    """A penalty on the slope of g alone, as without a log-determinant."""
    arrays, (x, _) = parts(2, (5, 4)), problem(2)
    noise = torch.ones(1, *x.shape, dtype=x.dtype)

    def penalty():
        chain = chain_of(arrays, core.Activation("lipswish"))
        g, result = value_and_logdet(chain, x, errors=False, method="mean-jacobian", noise=noise)
        (slope,) = torch.autograd.grad((g**2).sum(), x, create_graph=True)
        return torch.autograd.grad((slope**2).sum() + result.value.sum(), [x, *arrays])

    ours = penalty()
    by_the_backend(monkeypatch)
    for a, b in zip(ours, penalty(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_graph_of_a_derivative_that_only_the_value_has():
    """The log-determinant of an affine map knows nothing of the bias."""
    weight, bias = parts(2, ())
    chain, (x, _) = chain_of([weight.detach(), bias], core.Activation("elu")), problem(2)
    g, result = value_and_logdet(chain, x.detach(), errors=False, method="exact")
    (slope,) = torch.autograd.grad((g**2).sum() + result.value.sum(), bias, create_graph=True)
    torch.testing.assert_close(slope, 2 * g.sum(0))
    assert slope.requires_grad


@pytest.mark.parametrize("method", ["exact", "mean-jacobian"])
def test_answers_may_be_added_to_in_place(method):
    """As a sum over blocks does; the derivative does not need what was given away."""
    arrays, (x, _) = parts(2, (5,)), problem(2)
    options = {"method": method, "noise": torch.ones(1, *x.shape, dtype=x.dtype)}

    def gradient(in_place):
        g, result = value_and_logdet(chain_of(arrays, core.Activation("tanh")), x, errors=False, **options)
        value = result.value
        if in_place:
            g += x
            value *= 2
        else:
            g, value = g + x, 2 * value
        return torch.autograd.grad((g**2).sum() + value.sum(), [x, *arrays])

    for a, b in zip(gradient(True), gradient(False), strict=True):
        assert torch.equal(a, b)


def test_samples_of_another_framework_are_refused():
    """In the words that an answer with errors has for them."""
    chain, x = chain_of(parts(2, (5,)), core.Activation("tanh")), problem(2)[0]
    for errors in (True, False):
        with pytest.raises(MixedBackendsError, match="two frameworks"):
            core.logdet(chain, x.detach().cpu().numpy(), errors=errors)


def test_weights_changed_before_the_way_back_are_noticed():
    """What was kept belongs to the weights of the way there."""
    arrays, (x, _) = parts(2, (5,)), problem(2)
    result = core.logdet(chain_of(arrays, core.Activation("tanh")), x, errors=False, method="exact")
    with torch.no_grad():
        arrays[0].mul_(0.9)
    with pytest.raises(RuntimeError, match="inplace"):
        result.value.sum().backward()


@pytest.mark.parametrize("method", ["exact", "mean-jacobian"])
def test_nothing_is_kept_after_the_way_back(method):
    """What was kept goes with the graph, though the loss is still there; a second pass needs ``retain_graph``."""
    arrays, (x, _) = parts(2, (5, 4)), problem(2)
    h = x + 1
    kept = weakref.ref(h)
    g, result = value_and_logdet(chain_of(arrays, core.Activation("lipswish")), h, errors=False, method=method)
    loss = result.value.sum() + g.sum()
    del h, g, result
    assert kept() is not None
    loss.backward()
    assert kept() is None
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_which_chains_can_be_joined():
    """Dense layers and activations by turns; anything else goes the backend's own way."""
    weight = core.Dense(torch.eye(2) / 2)
    act, swap = core.Activation("elu"), core.Activation("maxmin")
    assert can_join([weight, act, weight])
    assert can_join([weight, act])
    for layers in ([act, weight], [weight, weight], [weight, act, act, weight], [weight, swap, weight]):
        assert not can_join(layers)
    assert not can_join([weight, core.Activation("identity"), weight])


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_those_of_the_backend(name):
    """Away from the kinks, and the same from a transcendental part that was kept."""
    parameters = other_parameters(name)
    x = torch.linspace(-3, 4, 50, dtype=torch.float64).requires_grad_()
    function = core.Activation(name, **parameters).function_for(x)
    value, slope, *more = function.value_and_slope(x)
    (first,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    torch.testing.assert_close(first, slope, rtol=1e-12, atol=1e-13)
    found = function.second_derivative(x, value, slope, *more)
    second = torch.autograd.grad(slope.sum(), x, allow_unused=True)[0] if slope.requires_grad else None
    torch.testing.assert_close(found, torch.zeros_like(x) if second is None else second, rtol=1e-11, atol=1e-13)
    known = function.value_and_slope(x, function.transcendental(x))
    for a, b in zip(known, (value, slope, *more), strict=True):
        assert torch.equal(a, b)


def test_signs_are_the_bits_of_the_bytes():
    """By table or, where a program is compiled, by masks: the same signs."""
    from iresnet_core.backends.torch.noise import signs_of_bytes

    table = signs_of_bytes(torch.float32, torch.get_default_device())
    masks = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    bits = (torch.arange(256, dtype=torch.uint8)[:, None] & masks).to(torch.bool)
    assert torch.equal(table, torch.where(bits, 1.0, -1.0))
    assert math.isclose(float(table.sum()), 0)
