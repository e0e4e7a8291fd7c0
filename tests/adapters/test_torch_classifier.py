"""PyTorch: the classifier of the paper."""

import pytest
from torch_models import images, torch, true_norm

from iresnet_core.adapters.torch import Classifier
from iresnet_core.adapters.torch.weight import cap_of
from iresnet_core.errors import InvalidArgumentError, ShapeError


def test_learns_and_stays_invertible():
    torch.manual_seed(0)
    model = Classifier((1, 8, 8), 2, padding=3, widths=(8, 8), blocks=(1, 1), coeff=0.8)
    labels = torch.arange(64) % 2
    x = images(64) * (0.5 + 0.5 * labels)[:, None, None, None]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    assert model.lipschitz <= 0.8
    with torch.no_grad():
        back = model.features.inverse(model.features.encode(x))
        assert torch.allclose(back, x, atol=1e-3)
    layers = [m for m in model.modules() if hasattr(m, "parametrizations")]
    assert len(layers) == 6
    assert all(true_norm(layer) <= cap_of(layer).cap * (1 + 1e-6) for layer in layers)


def test_refusals():
    with pytest.raises(InvalidArgumentError, match="stage"):
        Classifier((1, 8, 8), 10, widths=(8,), blocks=(1, 1))
    with pytest.raises(ShapeError):
        Classifier((1, 7, 7), 10, widths=(8, 8), blocks=(1, 1))
