"""Flows as density estimators of the package sbi, with the real package."""

import pickle

import numpy as np
import pytest
from torch_models import nn, torch

import iresnet_core as core

sbi = pytest.importorskip("sbi", reason="sbi is not installed", exc_type=ImportError)

from sbi.inference import NLE, NPE  # noqa: E402
from sbi.utils import BoxUniform  # noqa: E402

from iresnet_core.adapters.torch.sbi import flow_builder  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the package, about its own progress


@pytest.fixture(autouse=True)
def folder_of_logs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it leaves its logs


def simulations(n=600):
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((n,))
    return prior, theta, theta + 0.1 * torch.randn(n, 2)


def trained(kind, **options):
    prior, theta, x = simulations()
    inference = kind(prior, density_estimator=flow_builder(blocks=2, width=16, features=8, **options))
    inference.append_simulations(theta, x)
    estimator = inference.train(learning_rate=1e-2, max_num_epochs=12, training_batch_size=100)
    return inference, estimator, theta, x


def test_a_posterior_of_sbi(tmp_path):
    inference, estimator, theta, x = trained(NPE)
    posterior = pickle.loads(pickle.dumps(inference.build_posterior(estimator)))
    x_o = torch.tensor([0.3, -0.2])
    drawn = posterior.sample((300,), x=x_o, show_progress_bars=False)
    assert drawn.shape == (300, 2)
    assert (drawn.mean(0) - x_o).abs().max() < 0.1
    assert 0.05 < drawn.std(0).min() < drawn.std(0).max() < 0.3
    assert posterior.sample_batched((5,), x=x[:3], show_progress_bars=False).shape == (5, 3, 2)
    nats = estimator.log_prob(theta[None, :50], x[:50])[0].detach()
    assert nats.mean() > 0.8  # of a normal density of this width it is 1.8, of the prior -1.4
    estimator.net.save(tmp_path / "flow")
    found = core.load(tmp_path / "flow").log_prob(theta[:50].numpy(), x[:50].numpy()).value
    np.testing.assert_allclose(found, nats, rtol=1e-4, atol=1e-4)


def test_a_likelihood_of_sbi_with_a_base():
    inference, estimator, _, _ = trained(NLE, base=core.StudentT(5.0, np.zeros(2), np.ones(2)))
    assert isinstance(estimator.net.base.density, core.StudentT)
    potential = inference.build_posterior(estimator).potential_fn
    potential.set_x(torch.zeros(1, 2))
    assert potential(torch.zeros(1, 2)) > potential(torch.ones(1, 2)) + 5


def test_conditions_of_any_shape_with_a_net_of_ones_own():
    _, theta, _ = simulations(50)
    images = torch.randn(50, 2, 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4))
    estimator = flow_builder(blocks=1, width=8, features=4, embedding_net=net)(theta, images)
    estimator.loss(theta, images).mean().backward()
    assert net[1].weight.grad.abs().max() > 0
    assert estimator.eval().sample((3, 4), images[:5]).shape == (3, 4, 5, 2)
    drawn, nats = estimator.sample_and_log_prob((6,), images[:5])
    torch.testing.assert_close(nats, estimator.log_prob(drawn, images[:5]), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        estimator.log_prob(theta, torch.randn(50, 3))
