"""Value and log-determinant of convolutional chains with a derivative written by hand, beside the backend's own."""

import math

import numpy as np
import pytest

import iresnet_core as core
from iresnet_core.backends import get_backend
from iresnet_core.branches.joint_derivative import JointPass, can_join
from iresnet_core.determinant.dispatch import value_and_logdet

torch = pytest.importorskip("torch", reason="the derivative by hand is for PyTorch")

# Channels, windows, and the options of the layers; activations stand between them, and where `ends` says so.
CASES = {
    "3-1-3": (((2, 5), (5, 4), (4, 2)), (3, 1, 3), {}, ""),
    "activation first": (((2, 5), (5, 4), (4, 2)), (3, 1, 3), {}, "first"),
    "four": (((2, 5), (5, 4), (4, 3), (3, 2)), (3, 1, 1, 3), {}, ""),
    "four, activation first": (((2, 5), (5, 4), (4, 3), (3, 2)), (3, 1, 3, 1), {}, "first"),
    "activation last": (((2, 4), (4, 2)), (3, 3), {}, "last"),
    "circular": (((2, 4), (4, 2)), (3, 3), {"padding_mode": "circular"}, ""),
    "channels last": (((2, 4), (4, 2)), (3, 3), {"data_format": "channels_last"}, ""),
    "groups": (((2, 4), (4, 2)), (3, 1), {"groups": 2}, ""),
    "dilation": (((2, 4), (4, 2)), (3, 3), {"dilation": 2}, "first"),
    "even window": (((2, 4), (4, 2)), (2, 2), {}, ""),
}


def problem(case, dtype=torch.float64):
    """A chain with its parameters, samples, and a weight for each."""
    channels, windows, options, ends = CASES[case]
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    last = options.get("data_format") == "channels_last"
    layers, arrays = ["phi"] if ends == "first" else [], []
    for (n, m), k in zip(channels, windows, strict=True):
        kernel = torch.randn(m, n // options.get("groups", 1), k, k, generator=generator, dtype=dtype)
        kernel = 0.5 * kernel / kernel.norm()
        kernel = kernel.permute(2, 3, 1, 0).contiguous() if last else kernel
        bias = torch.randn(m, generator=generator, dtype=dtype)
        arrays += [kernel.requires_grad_(), bias.requires_grad_()]
        shape = (6, 5, n) if last else (n, 6, 5)
        layers += [core.Convolution(kernel, bias, input_shape=shape, padding="same", checked=True, **options), "phi"]
    layers = layers if ends == "last" else layers[:-1]
    chain = core.Chain([core.Activation("lipswish") if layer == "phi" else layer for layer in layers])
    x = torch.randn(5, *chain.input_shape, generator=generator, dtype=dtype).requires_grad_()
    return chain, arrays, x, torch.rand(5, generator=generator, dtype=dtype)


def gradients(chain, arrays, x, weights, part=None, wanted=None, **options):
    """Value, log-determinant, and the gradients of a weighted sum of both."""
    count = x.shape[0] if part is None else part
    noise = torch.sign(torch.sin(torch.arange(2 * math.prod(x[:count].shape), dtype=x.dtype) + 1))
    options = {"noise": noise.reshape(2, count, *x.shape[1:]), "method": "arnoldi", **options}
    g, result = value_and_logdet(chain, x, lipschitz=0.95, errors=False, part=part, **options)
    loss = (weights[:count] * result.value).sum() + (g**3).sum()
    return [g, result.value, *torch.autograd.grad(loss, wanted or [x, *arrays])]


@pytest.mark.parametrize("part", [None, 2], ids=["all", "part"])
@pytest.mark.parametrize("control", ["auto", "none"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_backend(monkeypatch, case, control, part):
    """By x, kernels and biases, with a weight for every sample; of all samples or of a part of them."""
    chain, arrays, x, weights = problem(case)
    assert can_join(chain.layers)
    seen = []
    recorded = JointPass.recorded
    monkeypatch.setattr(JointPass, "recorded", lambda *a, **k: seen.append(1) or recorded(*a, **k))
    ours = gradients(chain, arrays, x, weights, part, control_variate=control)
    assert len(seen) == 1
    monkeypatch.setattr(type(get_backend(x)), "takes_derivatives_by_hand", lambda *_: False)
    theirs = gradients(chain, arrays, x, weights, part, control_variate=control)
    assert len(seen) == 1
    assert ours[0].shape == x.shape
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", ["3-1-3", "activation first"])
@pytest.mark.parametrize("trained", ["x", "a kernel", "kernels"])
def test_gradients_with_frozen_arrays(case, trained):
    """They are those that all arrays together have."""
    chain, arrays, x, weights = problem(case)
    everything = dict(zip(["x", *range(len(arrays))], gradients(chain, arrays, x, weights)[2:], strict=True))
    places = {"x": [], "a kernel": [2], "kernels": [0, 2, 4]}[trained]
    for place, array in enumerate(arrays):
        array.requires_grad_(place in places)
    x.requires_grad_(trained == "x")
    wanted = {"x": x} if trained == "x" else {place: arrays[place] for place in places}
    found = gradients(chain, arrays, x, weights, wanted=list(wanted.values()))[2:]
    for place, gradient in zip(wanted, found, strict=True):
        torch.testing.assert_close(gradient, everything[place], rtol=1e-9, atol=1e-11)


def test_second_derivatives_of_the_value(monkeypatch):
    """A penalty on the slope of g alone has them; those of an estimate are refused."""
    chain, arrays, x, _ = problem("3-1-3")

    noise = torch.ones(1, *x.shape, dtype=x.dtype)

    def slope_of(name):
        g, result = value_and_logdet(chain, x, lipschitz=0.95, errors=False, noise=noise)
        return torch.autograd.grad((g**2 if name == "value" else result.value).sum(), x, create_graph=True)[0]

    def penalty():
        return torch.autograd.grad((slope_of("value") ** 2).sum(), [x, arrays[0]])

    refused = (slope_of("logdet") ** 2).sum()
    with pytest.raises(core.IResNetError, match="second derivative"):
        torch.autograd.grad(refused, x)
    ours = penalty()
    monkeypatch.setattr(type(get_backend(x)), "takes_derivatives_by_hand", lambda *_: False)
    for a, b in zip(ours, penalty(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_part_has_the_slopes_of_its_samples(monkeypatch):
    """The log-determinants of the first samples are those that they have alone."""
    chain, arrays, x, weights = problem("activation first")
    part = gradients(chain, arrays, x, weights, 2)
    alone = gradients(chain, arrays, x[:2].detach().requires_grad_(), weights)
    torch.testing.assert_close(part[1], alone[1], rtol=1e-12, atol=0)
    assert np.isfinite(part[0].detach().numpy()).all()
