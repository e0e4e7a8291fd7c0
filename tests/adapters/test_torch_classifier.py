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


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_the_head_normalises_by_the_batch_in_training_and_by_running_averages_after_it(shape):
    torch.manual_seed(0)
    model = Classifier(shape, 3, padding=1, widths=(4, 8), blocks=(0, 1))
    x = torch.randn(40, *shape)
    model.initialize(x)
    in_training = model.train()(x)
    for _ in range(60):  # the running averages come to the statistics of the only batch
        model(x)
    torch.testing.assert_close(model.eval()(x), in_training, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model(x[:3]), model(x)[:3], rtol=1e-4, atol=1e-5)
    moved = x + 0.3
    assert (model.train()(moved) - model(x)).abs().max() < (model.eval()(moved) - model(x)).abs().max()
    flow = model.eval()._core_features()
    with torch.no_grad():
        activation, weight, bias = model._head()
        assert activation == "elu"
        pooled = torch.nn.functional.elu(flow(x)).flatten(2).mean(-1)
        torch.testing.assert_close(torch.nn.functional.linear(pooled, weight, bias), model(x), rtol=1e-4, atol=1e-4)


def test_the_statistics_of_a_batch_carry_a_derivative():
    from iresnet_core.adapters.torch.batch_norm import BatchNorm

    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    ours, theirs = BatchNorm(3).double(), torch.nn.BatchNorm2d(3, affine=False).double()
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.autograd.gradcheck(BatchNorm(3).double(), (x,))


def test_files_from_before_the_head_had_batch_normalisation(tmp_path):
    torch.manual_seed(0)
    model = Classifier((1, 8, 8), 4, padding=1, widths=(6, 6), blocks=(1, 1), batch_norm=False).initialize(images(30))
    assert not any("batch_norm" in name for name in model.state_dict())
    del model._arguments["batch_norm"]
    model.eval().save(tmp_path / "model.safetensors")
    again = Classifier.load(tmp_path / "model.safetensors")
    assert again.batch_norm is None
    torch.testing.assert_close(again(images(5)), model(images(5)))
