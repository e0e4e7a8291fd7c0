"""Test log-density after a given time of training, beside normflows' residual flow of the same size.

    pip install --no-deps normflows==1.7.3
    python benchmarks/density.py [--seconds 120] [--data moons --data digits]

Eight blocks between d and d with two hidden layers (64 units at d = 2, 128 at d = 64), an ActNorm before each and one
at the end, batch 256, Adam with a cosine over the time, gradients clipped at 10, two threads. Ours: `iresnet train`
with its default settings, and with the activation of the peer. Peer: `LipschitzMLP` with its defaults (0.97 a layer, so
0.91 a block; ours is 0.9), `Residual` with its defaults, `update_lipschitz` after every step, two learning rates.

The clock stands still during evaluations. Every model is evaluated twenty times on the same validation set, and the
state that was best there is scored on the test set with exact log-determinants, in float64: no noise of an estimator is
in the result. `constant` is the largest product of the layers' exact spectral norms (times the Lipschitz constants of
the activations) that a block has then; a log-density is one only below 1.
"""

import argparse
import copy
import importlib.util
import itertools
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import svdvals
from torch import nn

import iresnet_core
from iresnet_core.adapters.torch.training import Trainer
from iresnet_core.training import (
    DatasetSource,
    default_settings,
    dequantized,
    load_dataset,
    mean_score,
    planned_layers,
    scores,
)

BATCH, CLIP, EVALUATIONS, HELD = 256, 10.0, 20, 500
PEER_RATES = (1e-3, 5e-3)


class Ours:
    """The flow that `iresnet train` trains by default."""

    def __init__(self, settings, dataset, first):
        plan = planned_layers(settings.model, dataset.event_shape)
        self.trainer = Trainer(plan, first.shape[1:], settings.training, first)
        self.rate = settings.training.lr

    def step(self, x, lr):
        """One step of Adam."""
        self.trainer.step(x, lr)

    def held_out(self, x):
        """Mean log-density."""
        return float(np.mean(self.trainer.log_prob(x, 0)))

    def snapshot(self):
        """Copy of the state."""
        return self.trainer.state()

    def restore(self, state):
        """Take up a copy."""
        self.trainer.load_state(state)

    def test(self, x):
        """Mean log-density with exact determinants, its standard error, the largest constant of a block."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            iresnet_core.save(self.trainer.to_core(), path)
            flow = iresnet_core.load(path).astype(np.float64)
        found = mean_score(scores(flow, x, method="exact"))
        constants = [_norm_product(layer.branch) for layer in flow.layers if layer.is_block]
        return found.mean, found.sampling_error, max(constants)


def _norm_product(chain):
    """Product of the exact norms of a chain's layers, with its activations' constants."""
    activations = math.prod(layer.lipschitz for layer in chain.layers if layer not in chain.operators)
    return activations * math.prod(svdvals(np.asarray(layer.weight))[0] for layer in chain.operators)


class Peer:
    """The residual flow of normflows; images go through our Logit first, which it lacks."""

    def __init__(self, settings, dataset, first, rate):
        import normflows as nf

        self.nf, self.rate = nf, rate
        self.logit = None if settings.model.alpha is None else iresnet_core.Logit(settings.model.alpha)
        d, hidden = first.shape[1], settings.model.hidden
        torch.manual_seed(settings.training.seed)
        layers = [nf.flows.ActNorm(d)]
        for _ in range(settings.model.blocks):
            net = nf.nets.LipschitzMLP([d, *(hidden,) * settings.model.layers, d])
            layers += [nf.flows.Residual(net), nf.flows.ActNorm(d)]
        self.model = nf.NormalizingFlow(nf.distributions.DiagGaussian(d, trainable=False), layers)
        self.model.log_prob(self._prepared(first)[0])  # initialises the ActNorms
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate)

    def _prepared(self, x):
        """Samples after the logit, and its log-determinants."""
        if self.logit is None:
            return torch.from_numpy(np.asarray(x)), np.zeros(len(x))
        out = self.logit.forward(np.asarray(x))
        return torch.from_numpy(out.value), np.asarray(out.logdet.value, dtype=np.float64)

    def step(self, x, lr):
        """One step of Adam, as the library's documentation has it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.forward_kld(self._prepared(x)[0])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.nf.utils.update_lipschitz(self.model, 5)

    def held_out(self, x):
        """Mean log-density."""
        return float(np.mean(self._exact(self.model, x)))

    def snapshot(self):
        """Copy of the state."""
        return copy.deepcopy(self.model.state_dict())

    def restore(self, state):
        """Take up a copy."""
        self.model.load_state_dict(state)

    def test(self, x):
        """Mean log-density with exact determinants, its standard error, the largest constant of a block."""
        values = self._exact(copy.deepcopy(self.model).double(), x)
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return float(np.mean(values)), error, max(_peer_constant(flow) for flow in self._blocks(self.model))

    def _blocks(self, model):
        return [flow for flow in model.flows if isinstance(flow, self.nf.flows.Residual)]

    @torch.no_grad()
    def _exact(self, model, x):
        """Log-density by the explicit Jacobian of every block; one's own estimator would add its noise."""
        from iresnet_core.adapters.torch.peers.normflows import values_and_jacobians

        model.eval()
        z, total = self._prepared(x)
        for flow in reversed(model.flows):
            if isinstance(flow, self.nf.flows.Residual):
                g, J = values_and_jacobians(flow.iresblock.nnet, z)
                total = total + torch.linalg.slogdet(torch.eye(z.shape[1], dtype=z.dtype) + J)[1].numpy()
                z = z + g
            else:
                z, logdet = flow.inverse(z)
                total = total + logdet.numpy()
        return total + model.q0.log_prob(z).numpy()


def _peer_constant(flow):
    """Product of the exact norms of the weights in use; its Swish is 1-Lipschitz."""
    layers = [m for m in flow.modules() if hasattr(m, "compute_weight")]
    weights = [m.compute_weight(update=False).detach().double().numpy() for m in layers]
    return math.prod(svdvals(weight)[0] for weight in weights)


def trained(model, dataset, seconds):
    """Train for a time, restore the best state, and return the number of steps."""
    rng, noise = np.random.default_rng(0), np.random.default_rng(1)
    held = ready(dataset.validation[:HELD], dataset.levels, np.random.default_rng(2)).astype(np.float32)
    best, kept, spent, steps, looks = -math.inf, None, 0.0, 0, 1
    for _ in itertools.count():
        order = rng.permutation(len(dataset.train))
        for i in range(0, len(order) - BATCH + 1, BATCH):
            x = ready(dataset.train[order[i : i + BATCH]], dataset.levels, noise).astype(np.float32)
            begin = time.perf_counter()
            model.step(x, model.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, spent / seconds)))))
            spent += time.perf_counter() - begin
            steps += 1
            if spent >= seconds * looks / EVALUATIONS:
                looks += 1
                score = model.held_out(held)
                if score > best:
                    best, kept = score, model.snapshot()
            if spent >= seconds:
                if kept is not None:
                    model.restore(kept)
                return steps


def ready(x, levels, rng):
    """Dequantised samples in a row."""
    return dequantized(x, levels, rng).reshape(len(x), -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--data", action="append", choices=("moons", "digits"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    has_peer = importlib.util.find_spec("normflows") is not None
    if not has_peer:
        print("normflows is not installed: ours alone.\n")
    for name in arguments.data or ("moons", "digits"):
        source = DatasetSource(name)
        dataset = load_dataset(source)
        first = ready(dataset.train[:1000], dataset.levels, np.random.default_rng(3)).astype(np.float32)
        test = ready(dataset.test, dataset.levels, np.random.default_rng(4))
        default = default_settings(source, dataset, "torch", {})
        swish = default_settings(source, dataset, "torch", {"activation": "lipswish"})
        models = {
            f"ours, {default.model.activation}": lambda s=default: Ours(s, dataset, first),  # noqa: B023
            "ours, lipswish": lambda s=swish: Ours(s, dataset, first),  # noqa: B023
        }
        for rate in PEER_RATES if has_peer else ():
            models[f"normflows, lr {rate:g}"] = lambda s=default, r=rate: Peer(s, dataset, first, r)  # noqa: B023
        print(f"{name}: {arguments.seconds:g} s of training, {len(test)} test samples")
        print(f"{'model':24} {'steps':>7} {'test log-density':>22} {'constant':>9}")
        for label, make in models.items():
            model = make()
            steps = trained(model, dataset, arguments.seconds)
            value, error, constant = model.test(test)
            print(f"{label:24} {steps:>7} {value:>12.4f} ± {error:.4f}   {constant:>9.4f}", flush=True)
        print()


if __name__ == "__main__":
    main()
