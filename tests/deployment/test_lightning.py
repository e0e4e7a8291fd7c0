"""A flow as the model of a LightningModule, and in a loop as simulation-based inference has it."""

import copy
import multiprocessing
import pickle

import pytest
from torch_models import nn, samples, torch

from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual


def conditional():
    torch.manual_seed(0)
    layers = []
    for _ in range(2):
        net = nn.Sequential(nn.Linear(2, 24), nn.ELU(), nn.Linear(24, 2))
        layers += [ActNorm(2), InvertibleResidual(net, context_features=3)]
    return Flow(layers)


@pytest.mark.filterwarnings("ignore")  # Lightning warns of workers, loggers and much else
def test_lightning_validates_before_it_trains(tmp_path):
    """Its sanity check meets a flow whose ActNorms have no parameters yet; a checkpoint goes on where it was."""
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Density(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(2, 24), nn.ELU(), nn.Linear(24, 2))
            self.flow = Flow([ActNorm(2), InvertibleResidual(net)])
            self.seen = []

        def training_step(self, batch):
            return self.flow.training_loss(batch[0])

        def validation_step(self, batch):
            self.seen.append((self.flow.initialized, float(self.flow.log_prob(batch[0]).mean())))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    data = torch.utils.data.TensorDataset(3 + 2 * samples(200, 2))
    loader = torch.utils.data.DataLoader(data, batch_size=50, shuffle=True)
    module = Density()
    options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    trainer = lightning.Trainer(max_epochs=3, enable_model_summary=False, **options)
    trainer.fit(module, loader, torch.utils.data.DataLoader(data, batch_size=100))
    assert module.seen[0][0] is False
    assert module.seen[-1][0] is True
    assert module.seen[-1][1] > module.seen[0][1]
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = Density.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=False).cpu()
    assert again.flow.initialized
    with torch.no_grad():
        x = samples(5, 2)
        torch.testing.assert_close(again.eval().flow.log_prob(x), module.eval().flow.log_prob(x))


def test_a_loop_of_simulation_based_inference():
    """Parameters under observations: validation first, the best state kept, and samples of a posterior."""
    flow = conditional()
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(600, 2, generator=generator)
    seen = torch.cat([theta, theta[:, :1]], 1) + 0.3 * torch.randn(600, 3, generator=generator)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    best, kept = -float("inf"), None
    for _ in range(6):
        flow.eval()
        with torch.no_grad():
            score = float(flow.log_prob(theta[500:], seen[500:]).mean())
        if score > best:
            best, kept = score, copy.deepcopy(flow.state_dict())
        flow.train()
        for part in torch.randperm(500, generator=generator).split(100):
            optimizer.zero_grad()
            flow.training_loss(theta[part], seen[part]).backward()
            optimizer.step()
    flow.load_state_dict(kept)
    flow.eval()
    posterior = flow.sample(300, torch.tensor([1.0, -1.0, 1.0]), rng=0)
    assert posterior.shape == (300, 2)
    assert float((posterior.mean(0) - torch.tensor([0.9, -0.9])).abs().max()) < 0.4


def test_copies_pickles_and_spawned_processes(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    flow = Flow([ActNorm(2), InvertibleResidual(net)]).initialize(samples(50, 2)).eval()
    x = samples(4, 2)
    with torch.no_grad():
        expected = flow.log_prob(x)
        torch.save(flow, tmp_path / "flow.pt")
        others = [copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))]
        others.append(torch.load(tmp_path / "flow.pt", weights_only=False))
        for other in others:
            torch.testing.assert_close(other.log_prob(x), expected)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load(tmp_path / "flow.pt", weights_only=True)
    # A function of the package, since the new process does not import this file.
    with multiprocessing.get_context("spawn").Pool(1) as pool, torch.no_grad():
        found = pool.apply(Flow.log_prob, (flow.requires_grad_(False), x))
    torch.testing.assert_close(found, expected)
