"""PyTorch: convolutions in float64 on the CPU, in the form and the parts that are cheap, against those of NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from iresnet_core.backends import get_backend  # noqa: E402
from iresnet_core.backends.torch import double_convolution  # noqa: E402
from iresnet_core.operators import Convolution  # noqa: E402

PLAIN, TRANSPOSED = False, True
pytestmark = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="about those on the CPU")


@pytest.fixture
def taken(monkeypatch):
    """The forms of all convolutions that were computed, and the samples of each part."""
    found = []
    parts = double_convolution._parts

    def watched(x, kernel, form):
        out = parts(x, kernel, form)
        found.append((form[3], [len(part) for part in out]))
        return out

    monkeypatch.setattr(double_convolution, "_parts", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return found


@st.composite
def problems(draw):
    axes = draw(st.integers(1, 3))
    window = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    dilation = draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes))
    stride = draw(st.sampled_from([[1] * axes, [1] * axes, [2] * axes]))
    padding = [draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in range(axes)]
    spatial = [draw(st.integers((k - 1) * d + 1, 6)) for k, d in zip(window, dilation, strict=True)]
    groups = draw(st.sampled_from([1, 1, 2]))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    inner, out = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    kernel = rng.standard_normal((out, inner // groups, *window))
    return rng.standard_normal((draw(st.integers(0, 5)), inner, *spatial)), kernel, geometry


@given(problem=problems(), limit=st.sampled_from([1, 50, 2**40]))
def test_values_adjoints_and_gradients(problem, limit):
    x, kernel, geometry = problem
    torch_x, torch_kernel = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    backend, host = get_backend(torch_x), get_backend(x)
    before, double_convolution._PATCHES = double_convolution._PATCHES, limit
    try:
        y, expected = backend.conv(torch_x, torch_kernel, **geometry), host.conv(x, kernel, **geometry)
        np.testing.assert_allclose(y.detach(), expected, atol=1e-12)
        if not len(x):
            return
        u = np.sin(1 + np.arange(expected.size)).reshape(expected.shape)
        by_autograd = torch.autograd.grad(y, [torch_x, torch_kernel], torch.tensor(u), create_graph=True)
        adjoint = host.conv_transpose(u, kernel, spatial=x.shape[2:], **geometry)
        np.testing.assert_allclose(by_autograd[0].detach(), adjoint, atol=1e-12)
        found = backend.conv_transpose(torch.tensor(u), torch_kernel, spatial=x.shape[2:], **geometry)
        np.testing.assert_allclose(found.detach(), adjoint, atol=1e-12)
        by_hand = backend.conv_kernel_gradient(torch_x.detach(), torch.tensor(u), torch_kernel.detach(), **geometry)
        torch.testing.assert_close(by_hand, by_autograd[1].detach(), rtol=1e-9, atol=1e-11)
        # The form is linear in the kernel, whose second derivative with a direction is the convolution itself.
        direction = torch.cos(torch_kernel.detach())
        (second,) = torch.autograd.grad((by_autograd[1] * direction).sum(), torch_x)
        np.testing.assert_allclose(
            second, host.conv_transpose(u, direction.numpy(), spatial=x.shape[2:], **geometry), atol=1e-11
        )
    finally:
        double_convolution._PATCHES = before


@pytest.mark.parametrize(
    ("channels", "form"), [((64, 1), TRANSPOSED), ((32, 16), TRANSPOSED), ((1, 64), PLAIN), ((128, 64), PLAIN)]
)
def test_the_form_copies_the_patches_of_fewer_channels(taken, channels, form):
    inner, out = channels
    layer = Convolution(torch.ones(out, inner, 3, 3, dtype=torch.float64), input_shape=(inner, 6, 6), padding="same")
    layer(torch.ones(2, inner, 6, 6, dtype=torch.float64))
    assert taken == [(form, [2])]
    taken.clear()
    layer.rmatvec(torch.ones(2, out * 36, dtype=torch.float64))
    adjoint = out >= 2 * inner and inner <= 32
    assert taken == [(adjoint, [2])]


@pytest.mark.parametrize(("shape", "width"), [((1, 28, 28), 64), ((3, 32, 32), 128)])
def test_patches_are_bounded_at_the_size_of_images(taken, shape, width):
    """Also of a batch whose patches would take hundreds of megabytes, and with the numbers of NumPy."""
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((width, shape[0], 3, 3)), rng.standard_normal((64, *shape))
    layers = {
        np: Convolution(kernel, input_shape=shape, padding="same"),
        torch: Convolution(torch.tensor(kernel), input_shape=shape, padding="same"),
    }
    y = layers[torch](torch.tensor(x))
    np.testing.assert_allclose(y[:2], layers[np](x[:2]), atol=1e-11)
    back = layers[torch].rmatvec(y.reshape(64, -1))
    np.testing.assert_allclose(back[:2], layers[np].rmatvec(y[:2].reshape(2, -1).numpy()), atol=1e-10)
    hidden = Convolution(
        torch.ones(width, width, 3, 3, dtype=torch.float64), input_shape=(width, *shape[1:]), padding=1
    )
    hidden(y)
    assert [form for form, _ in taken] == [PLAIN, TRANSPOSED, PLAIN]
    for (_, parts), channels in zip(taken, (shape[0], shape[0], width), strict=True):
        assert max(parts) * 9 * channels * math.prod(shape[1:]) <= double_convolution._PATCHES
    assert len(taken[-1][1]) >= 8


def test_other_dtypes_and_transformed_functions(taken):
    kernel = torch.linspace(-1, 1, 4 * 9).reshape(1, 4, 3, 3)
    x = torch.sin(torch.arange(3.0 * 4 * 25)).reshape(3, 4, 5, 5)
    geometry = {"stride": [1, 1], "padding": [(1, 1)] * 2, "dilation": [1, 1], "groups": 1}
    backend = get_backend(x)
    expected = backend.conv(x, kernel, **geometry)
    assert not taken
    x, kernel = x.double(), kernel.double()

    def conv(x):
        return backend.conv(x[None], kernel, **geometry)[0]

    torch.testing.assert_close(torch.func.vmap(conv)(x), expected.double(), rtol=1e-5, atol=1e-5)
    _, tangent = torch.func.jvp(conv, (x[0],), (x[1],))
    torch.testing.assert_close(tangent, expected[1].double(), rtol=1e-5, atol=1e-5)
    assert {form for form, _ in taken} == {TRANSPOSED}


def test_every_thread_has_a_sample_of_a_part(taken, monkeypatch):
    monkeypatch.setattr(double_convolution, "_PATCHES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    layer = Convolution(torch.ones(4, 4, 3, 3, dtype=torch.float64), input_shape=(4, 6, 6), padding="same")
    layer(torch.ones(10, 4, 6, 6, dtype=torch.float64))
    assert taken == [(PLAIN, [4, 4, 2])]


def test_a_window_of_one_is_taken_whole(taken, monkeypatch):
    monkeypatch.setattr(double_convolution, "_PATCHES", 1)
    layer = Convolution(torch.ones(2, 8, 1, 1, dtype=torch.float64), input_shape=(8, 6, 6))
    layer(torch.ones(10, 8, 6, 6, dtype=torch.float64))
    layer.rmatvec(torch.ones(10, 72, dtype=torch.float64))
    assert taken == [(PLAIN, [10]), (PLAIN, [10])]
