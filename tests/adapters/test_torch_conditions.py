"""Conditions of PyTorch flows: those of the core, exported with their map; labels; distributions of many conditions."""

import copy
import pickle

import numpy as np
import pytest
from torch_models import nn, torch

import iresnet_core as core
from iresnet_core.adapters.torch import ActNorm, Condition, FactorOut, Flow, InvertibleResidual
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    ShapeError,
    UnknownLipschitzError,
)


def mlp(d=2, width=8):
    return nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, d))


def conditional(condition, entering=4, seed=0, **options):
    """A flow with every kind of layer that takes a condition, away from its start."""
    torch.manual_seed(seed)
    layers = [
        ActNorm(2, context_features=entering),
        InvertibleResidual(mlp(), context_features=entering),
        InvertibleResidual(mlp(), condition=nn.Sequential(nn.Linear(entering, 5), nn.ReLU(), nn.Linear(5, 8))),
        ActNorm(2),
    ]
    flow = Flow(layers, (2,), condition=condition, **options)
    nn.init.normal_(layers[0].context.weight, 0, 0.2)
    return flow


def of_numbers(**options):
    torch.manual_seed(3)
    return conditional(Condition(nn.Sequential(nn.Linear(3, 6), nn.ELU(), nn.Linear(6, 4)), **options))


def of_classes():
    torch.manual_seed(4)
    return conditional(Condition(nn.Linear(3, 4), classes=3))


def data(n=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, 2, generator=generator) + 1, torch.randn(n, 3, generator=generator)


def test_a_trained_flow_goes_to_the_core_with_its_conditions(tmp_path):
    flow, (x, context) = of_numbers(mean=[0.0, 1.0, 2.0], std=[1.0, 2.0, 3.0]), data()
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = flow.training_loss(x, context)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad.abs().max() > 0 for p in flow.parameters())
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    flow.eval()
    expected = flow.log_prob(x, context, method="exact").detach().numpy()
    flow.save(tmp_path / "flow")
    loaded = core.load(tmp_path / "flow")
    found = loaded.log_prob(x.numpy(), context.numpy(), method="exact").value
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    exported = flow.to_core()
    assert not any(array.requires_grad for array in exported.arrays)
    changed = copy.deepcopy(flow)
    exported = changed.to_core()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(1)
    np.testing.assert_allclose(exported.log_prob(x, context, method="exact").value, expected, rtol=1e-5, atol=1e-5)
    flow.save(tmp_path / "one", context[3])
    found = core.load(tmp_path / "one").log_prob(x.numpy()[3:4], method="exact").value
    np.testing.assert_allclose(found, expected[3:4], rtol=1e-5, atol=1e-5)
    for again in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        np.testing.assert_array_equal(again.log_prob(x, context, method="exact").detach().numpy(), expected)
    fresh = of_numbers(mean=[0.0, 1.0, 2.0], std=[1.0, 2.0, 3.0])
    fresh.load_state_dict(flow.state_dict())
    np.testing.assert_array_equal(fresh.eval().log_prob(x, context, method="exact").detach().numpy(), expected)


def test_one_condition_for_all_has_several_shapes():
    flow, (x, context) = of_numbers().eval(), data()
    flow.initialize(x, context)
    one = context[:1]
    expected = flow.log_prob(x, one.expand(30, -1), method="exact")
    for same in (one, one[0]):
        assert torch.allclose(flow.log_prob(x, same, method="exact"), expected, atol=1e-5)
        assert flow.sample(4, same).shape == (4, 2)
        assert torch.allclose(flow.inverse(flow.encode(x, same), same), x, atol=1e-4)
        assert torch.isfinite(flow.train().training_loss(x, same, share=0.5))
        flow.eval()


def test_labels_become_one_hot_in_training_too():
    flow, (x, _) = of_classes(), data()
    labels = torch.arange(30) % 3
    flow.training_loss(x, labels, share=0.5).backward()
    assert flow.condition.net.weight.grad.abs().min(dim=0).values.max() > 0
    plain = copy.deepcopy(flow).eval()
    plain.condition = Condition(plain.condition.net)
    hot = nn.functional.one_hot(labels, 3).float()
    flow.eval()
    assert torch.equal(flow.log_prob(x, labels, method="exact"), plain.log_prob(x, hot, method="exact"))
    assert flow.sample(4, torch.tensor(1)).shape == (4, 2)
    assert flow.distribution(labels[:3]).batch_shape == (3,)
    for call in (flow.log_prob, flow.train().training_loss, flow.initialize):
        with pytest.raises(InvalidArgumentError, match=r"label 3.*one-hot: 0, 1, 2"):
            call(x, labels + 1)


def test_distributions_of_many_conditions():
    """A batch of B densities, each under its own."""
    flow, (x, context) = of_numbers().eval(), data(5)
    many, one = flow.distribution(context), flow.distribution(context[2])
    assert (many.batch_shape, many.event_shape, one.batch_shape) == ((5,), (2,), ())
    assert flow.distribution(context[:1]).batch_shape == (1,)
    torch.manual_seed(0)
    drawn = many.rsample((3,))
    assert drawn.shape == (3, 5, 2)
    own = flow.log_prob(drawn[1], context)
    assert torch.allclose(many.log_prob(drawn)[1], own, atol=1e-4)
    assert torch.allclose(many.log_prob(x[0])[2], one.log_prob(x[0]), atol=1e-4)
    assert one.sample((3, 4)).shape == (3, 4, 2)
    assert flow.distribution(context[:1]).log_prob(x).shape == (5,)
    with pytest.raises(ShapeError, match="5 conditions"):
        many.log_prob(x[:3])
    drawn.sum().backward()
    assert flow.condition.net[0].weight.grad.abs().max() > 0


def test_factored_channels_take_conditions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ELU(), nn.Conv2d(3, 1, 1))
    inner = [ActNorm(1, context_features=2), InvertibleResidual(net, context_features=2)]
    flow = Flow([ActNorm(2), FactorOut(1, inner)], (2, 3, 3), condition=Condition(classes=2)).eval()
    nn.init.normal_(inner[0].context.weight)
    x, labels = torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 0, 1])
    z = flow.encode(x, labels)
    assert torch.allclose(flow.inverse(z, labels), x, atol=1e-4)
    assert (z - flow.encode(x, 1 - labels)).abs().max() > 1e-2
    exported = flow.initialize(x, labels).to_core()
    assert torch.allclose(exported(x, labels), flow.encode(x, labels), atol=1e-5)


def test_bad_conditions_are_refused():
    flow, (x, context) = of_numbers().eval(), data()
    nan = context.clone()
    nan[4, 1] = torch.nan
    for wrong, error, match in (
        (None, InvalidArgumentError, "conditional: pass context="),
        (nan, NonFiniteError, "sample 4"),
        (context.double(), DtypeError, "float64"),
        (torch.ones(30, 3, dtype=torch.int64), DtypeError, "one-hot"),
        (context[:7], ShapeError, "7 rows, but there are 30 samples"),
        (context[:, :2], ShapeError, "batch, 3"),
    ):
        for call in (flow.log_prob, flow.encode, flow.inverse, flow.training_loss, lambda x, c: flow.sample(30, c)):
            with pytest.raises(error, match=match):
                call(x, wrong)
    with pytest.raises(ShapeError, match="returns 4 entries, but the layers take 3"):
        Flow([InvertibleResidual(mlp(), context_features=3)], (2,), condition=nn.Linear(1, 4)).eval().log_prob(
            x, context[:, :1]
        )
    with pytest.raises(UnknownLipschitzError, match="Dropout"):
        Condition(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    with pytest.raises(InvalidArgumentError, match="maps vectors"):
        Condition(nn.Conv1d(1, 1, 1))
    with pytest.raises(InvalidArgumentError, match="not both"):
        InvertibleResidual(mlp(), context_features=2, condition=nn.Linear(2, 8))
