"""Plain networks from capped ones, and what tab completion shows."""

import copy
import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import iresnet_core
from iresnet_core.errors import InvalidArgumentError


def test_a_plain_module_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from iresnet_core.adapters.torch import InvertibleResidual

    nn = torch.nn
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(nn.ELU(), nn.Conv2d(6, 3, 1)))
    block = InvertibleResidual(net).eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    expected = block(x)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    plain = block.plain()
    torch.testing.assert_close(x + plain(x), expected)
    assert type(plain[0]) is nn.Conv2d
    assert set(plain.state_dict()) == {"0.weight", "0.bias", "1.1.weight", "1.1.bias"}
    with torch.no_grad():
        plain[0].weight.mul_(0)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(x + block.net(x), expected)  # the layers themselves are as they were
    assert all(torch.equal(block.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(InvalidArgumentError, match="scales its branch"):
        InvertibleResidual(nn.Linear(2, 2), lipschitz=3.0).plain()
    with pytest.raises(InvalidArgumentError, match="condition"):
        InvertibleResidual(nn.Linear(2, 2), context_features=1).plain()


def test_removing_the_parametrization_of_a_copy_leaves_the_original():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from iresnet_core.adapters.torch import InvertibleResidual

    block = InvertibleResidual(torch.nn.Linear(3, 3)).eval()
    for _ in range(2):
        other = copy.deepcopy(block)
        torch.nn.utils.parametrize.remove_parametrizations(other.net, "weight")
        assert block.net.weight.shape == (3, 3)
        assert type(other.net) is torch.nn.Linear
        block = copy.deepcopy(block)
    plain = block.plain()
    with torch.no_grad():
        torch.testing.assert_close(plain(torch.ones(1, 3)), block.net(torch.ones(1, 3)))


def test_a_plain_model_of_keras():
    pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
    keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
    from iresnet_core.adapters.keras import InvertibleResidual

    host = keras.ops.convert_to_numpy
    conv = keras.layers.Conv2D
    blocks = [
        ([keras.layers.Dense(8, activation="elu", kernel_initializer="orthogonal"), keras.layers.Dense(2)], (4, 2)),
        ([conv(4, 3, padding="same", activation="elu"), conv(2, 1)], (4, 6, 6, 2)),
    ]
    for net, shape in blocks:
        block, x = InvertibleResidual(net, coeff=0.5), keras.random.normal(shape, seed=0)
        expected = host(block(x))
        plain = block.plain()
        assert abs(host(x + plain(x)) - expected).max() < 1e-5
        assert type(plain.layers[0]) is type(net[0])
        plain.layers[0].kernel.assign(0 * plain.layers[0].kernel)
        assert abs(host(block(x)) - expected).max() == 0


def test_tab_completion_shows_public_names():
    shown = {name for name in dir(iresnet_core) if not name.startswith("_")}
    assert shown == {name for name in iresnet_core.__all__ if name != "__version__"} | {
        "adapters",
        "backends",
        "errors",
    }
    for name in ("torch", "keras"):
        pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
        module = __import__(f"iresnet_core.adapters.{name}", fromlist=["Flow"])
        assert {entry for entry in dir(module) if not entry.startswith("_")} == set(module.__all__)
