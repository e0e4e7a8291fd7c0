"""The trace of convolutions around a 1 x 1 convolution: its derivative by hand, and what that keeps."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from iresnet_core import Activation, Chain, Convolution  # noqa: E402
from iresnet_core.backends.torch.backend import TorchBackend  # noqa: E402
from iresnet_core.branches import linearize  # noqa: E402

WIDTH, SIDE, BATCH = 8, 12, 3


def leaves():
    generator = torch.Generator().manual_seed(0)
    shapes = [(WIDTH, 2, 3, 3), (WIDTH, WIDTH, 1, 1), (2, WIDTH, 3, 3), (BATCH, 2, SIDE, SIDE)]
    return [(0.2 * torch.randn(s, generator=generator, dtype=torch.float64)).requires_grad_() for s in shapes]


def traces(first, middle, last, x):
    layers = []
    for kernel in (first, middle, last):
        layers += [Activation("tanh")] if layers else []
        layers.append(Convolution(kernel, input_shape=(kernel.shape[1], SIDE, SIDE), padding="same"))
    return linearize(TorchBackend(), Chain(layers), x).trace()


def gradients(create_graph=False):
    arrays = leaves()
    weights = torch.arange(1.0, BATCH + 1, dtype=torch.float64)
    return arrays, torch.autograd.grad((weights * traces(*arrays)).sum(), arrays, create_graph=create_graph)


@pytest.mark.parametrize("second", [False, True])
def test_the_derivative_by_hand_is_the_derivative(monkeypatch, second):
    def found():
        arrays, first = gradients(create_graph=second)
        return torch.autograd.grad(sum((g**2).sum() for g in first), arrays) if second else first

    by_hand = found()
    monkeypatch.setattr(TorchBackend, "takes_derivatives_by_hand", lambda self, *arrays: False)
    for one, other in zip(by_hand, found(), strict=True):
        torch.testing.assert_close(one, other)
        assert float(other.abs().max()) > 0


def test_no_parts_of_the_slopes_are_kept(monkeypatch):
    def kept():
        tensors = {}

        def pack(t):
            tensors[t.untyped_storage().data_ptr()] = t
            return t

        arrays = leaves()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = traces(*arrays)
        assert out.shape == (BATCH,)
        return sum(t.untyped_storage().nbytes() for t in tensors.values())

    slopes = 8 * BATCH * WIDTH * SIDE**2
    by_hand = kept()
    monkeypatch.setattr(TorchBackend, "takes_derivatives_by_hand", lambda self, *arrays: False)
    assert by_hand < kept() - slopes
