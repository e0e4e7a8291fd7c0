"""Layers of a branch beside linear ones with weights to cap and activations, as PyTorch modules."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402

from iresnet_core.adapters.torch import DeclaredLayer, Flow, FourierFeatures, InvertibleResidual  # noqa: E402
from iresnet_core.errors import (  # noqa: E402
    InvalidArgumentError,
    NotContractiveError,
    ShapeError,
    StorageError,
    UnknownLipschitzError,
)


def up(channels, window=3, **options):
    return nn.ConvTranspose2d(channels, 2, window, stride=2, **options)


NETS = {
    "strided": lambda: ([nn.Conv2d(2, 4, 3, 2, 1), nn.SiLU(), up(4, padding=1, output_padding=1)], (2, 4, 4)),
    "odd extent": lambda: ([nn.Conv2d(2, 4, 3, 2, 1), nn.GELU(), up(4, padding=1)], (2, 5, 5)),
    "pooled": lambda: ([nn.AvgPool2d(2), nn.Mish(), nn.Conv2d(2, 4, 1), up(4, 2)], (2, 4, 4)),
    "flattened": lambda: ([nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 8), nn.Unflatten(1, (2, 2, 2))], (2, 2, 2)),
    "waves": lambda: ([FourierFeatures(torch.eye(3), [1]), nn.Linear(7, 8), nn.SELU(), nn.Linear(8, 3)], (3,)),
    "declared": lambda: ([nn.Linear(3, 8), DeclaredLayer(nn.PReLU(8), 1.0), nn.Linear(8, 3)], (3,)),
}


@pytest.mark.parametrize("name", NETS)
def test_blocks_are_those_of_the_modules(name):
    torch.manual_seed(0)
    modules, shape = NETS[name]()
    flow = Flow([InvertibleResidual(nn.Sequential(*modules), coeff=0.9)], shape)
    block, x = flow.layers[0], torch.randn(3, *shape)
    (-flow.log_prob(x).mean()).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    flow.eval()
    with torch.no_grad():
        z = block(x)
        torch.testing.assert_close(z, x + block.net(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(block.inverse(z), x, atol=1e-5, rtol=0)
        exact = block.core_layer().forward(x, method="exact")[1].value
    assert block.lipschitz <= 0.9
    assert block.core_layer().branch.certificate == ("stated" if name == "declared" else "certified")
    d = math.prod(shape)
    J = torch.stack([torch.autograd.functional.jacobian(lambda a: block(a[None])[0], row).reshape(d, d) for row in x])
    torch.testing.assert_close(exact, torch.linalg.slogdet(J)[1], atol=1e-4, rtol=0)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class OwnForward(DeclaredLayer):
    def forward(self, x):
        return 3 * super().forward(x)


def block_of(module):
    return InvertibleResidual(nn.Sequential(nn.Linear(3, 3), module, nn.Linear(3, 3))).eval()


def test_a_declared_constant_that_a_product_contradicts():
    with pytest.raises(NotContractiveError, match=r"expanded by 2, more than the constant 1"):
        block_of(DeclaredLayer(Doubled(), 1.0)).core_layer().forward(torch.ones(1, 3), method="exact")


def test_a_file_cannot_hold_a_declared_layer(tmp_path):
    with pytest.raises(StorageError, match="write a branch as a Chain"):
        Flow([block_of(DeclaredLayer(Doubled(), 2.0))], (3,)).eval().save(tmp_path / "flow.safetensors")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: DeclaredLayer(Doubled(), -1.0), InvalidArgumentError, "lipschitz"),
        (lambda: DeclaredLayer(Doubled(), 0.0), InvalidArgumentError, "positive"),
        (lambda: DeclaredLayer(Doubled(), 1.0, output_shape=(3,)), ShapeError, "both or neither"),
        (lambda: block_of(DeclaredLayer(nn.BatchNorm1d(3), 1.0)), InvalidArgumentError, "normalises by the batch"),
        (lambda: block_of(OwnForward(Doubled(), 2.0)), UnknownLipschitzError, "OwnForward is not known"),
        (lambda: block_of(nn.AvgPool2d(3, stride=1)), UnknownLipschitzError, "windows side by side"),
        (lambda: Flow([InvertibleResidual(up(2))], (2, 4, 4)), ShapeError, "keeps the shape"),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()
