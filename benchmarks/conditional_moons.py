"""Posterior log-density of an amortised flow on conditional two moons, after a given time of one core.

    python benchmarks/conditional_moons.py [--seconds 40] [--seed 0] [--picture docs/images/conditional_moons.png]

The task of the benchmark of simulation-based inference (Lueckmann et al. 2021, T.8): parameters theta uniform on
[-1, 1]^2, data x in the plane, and a posterior of two crescents, a hundredth of the prior wide. 20 000 simulations; the
flow q(theta | x) is trained on pairs, and scored by the mean of log q(theta | x) over 5000 new ones, in nats. The best
possible is about 3.65: the entropy of a crescent, and log 2 for not knowing which of the two.

The condition passes two hidden layers that all blocks share, and enters every one of them behind its first layer. Then
the trained flow is saved, and read by NumPy alone: its log-densities are compared there, and, with --picture, its
posterior for one x is drawn beside the exact one. Time is the process's own, with one thread, without evaluations.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import iresnet_core
from iresnet_core.adapters.torch import Activation, ActNorm, Condition, Flow, InvertibleResidual

SIMULATIONS, TESTS, BATCH = 20_000, 5_000, 256
BLOCKS, HIDDEN, COEFF = 8, 64, 0.98
EMBEDDING, ENTERING = 64, 32
RATE, CLIP, WARM = 2e-2, 10.0, 50
OBSERVED = np.zeros((1, 2), np.float32)


def simulate(theta, rng):
    """Data x (n, 2) for parameters theta (n, 2)."""
    angle, radius = rng.uniform(-math.pi / 2, math.pi / 2, len(theta)), rng.normal(0.1, 0.01, len(theta))
    crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)
    sums = np.stack([-np.abs(theta.sum(axis=1)), theta[:, 1] - theta[:, 0]], axis=1)
    return crescent + sums / math.sqrt(2)


def pairs(n, seed):
    """Parameters from the prior, and data, in float32."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-1, 1, (n, 2))
    return theta.astype(np.float32), simulate(theta, rng).astype(np.float32)


def posterior(x, n, rng):
    """Exact samples (n, 2) of the posterior for one x (2,), by the crescent that led to it."""
    angle, radius = rng.uniform(-math.pi / 2, math.pi / 2, 4 * n), rng.normal(0.1, 0.01, 4 * n)
    crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)
    sums = math.sqrt(2) * (x - crescent)
    total = -sums[:, 0] * rng.choice([-1.0, 1.0], 4 * n)
    theta = np.stack([total - sums[:, 1], total + sums[:, 1]], axis=1) / 2
    return theta[(sums[:, 0] <= 0) & (np.abs(theta) <= 1).all(axis=1)][:n]


def flow_for(x, seed):
    """A flow of theta under conditions like x."""
    torch.manual_seed(seed)
    sizes = [(2, EMBEDDING), (EMBEDDING, EMBEDDING), (EMBEDDING, ENTERING)]
    embedding = [part for size in sizes for part in (nn.Linear(*size), Activation("sin"))][:-1]
    condition = Condition(nn.Sequential(*embedding), mean=x.mean(axis=0), std=x.std(axis=0))
    layers = []
    for _ in range(BLOCKS):
        net = nn.Sequential(nn.Linear(2, HIDDEN), Activation("sin"), nn.Linear(HIDDEN, 2))
        nn.init.orthogonal_(net[0].weight)
        nn.init.orthogonal_(net[2].weight)
        own = Condition(nn.Linear(ENTERING, HIDDEN))
        layers += [ActNorm(2), InvertibleResidual(net, COEFF, condition=own)]
    return Flow([*layers, ActNorm(2)], event_shape=(2,), condition=condition)


def train(theta, x, seconds, seed):
    """The flow after so many seconds of the process, and its steps."""
    flow = flow_for(x, seed)
    theta, x = torch.from_numpy(theta), torch.from_numpy(x)
    flow.initialize(theta[:2000], x[:2000]).train()
    optimizer, generator = torch.optim.Adam(flow.parameters(), RATE), torch.Generator().manual_seed(seed)
    begin, steps = time.process_time(), 0
    while (done := (time.process_time() - begin) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.5 * (1 + math.cos(math.pi * done)) + 1e-3) * min(1, (steps + 1) / WARM)
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        flow.training_loss(theta[chosen], x[chosen], share=1).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
        optimizer.step()
        steps += 1
    return flow.eval(), steps


def draw(flow, path):
    """The posterior of the flow for one observation beside the exact one."""
    from matplotlib.figure import Figure

    found = flow.sample(2000, OBSERVED[0], rng=0, errors=False).value
    exact = posterior(OBSERVED[0], 2000, np.random.default_rng(0))
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, points, title in zip(figure.subplots(1, 2), (exact, found), ("exact posterior", "flow"), strict=True):
        axes.plot(*points.T, ".", markersize=2, color="#0072B2")
        axes.set(title=f"{title}, x = (0, 0)", xlabel="theta 1", ylabel="theta 2", xlim=(-0.6, 0.6), ylim=(-0.6, 0.6))
        axes.set_aspect("equal")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main():
    """Train, score, save and read again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    theta, x = pairs(SIMULATIONS, options.seed)
    flow, steps = train(theta, x, options.seconds, options.seed)
    tests, data = pairs(TESTS, options.seed + 1000)
    with torch.no_grad():
        nats = flow.log_prob(torch.from_numpy(tests), torch.from_numpy(data), method="exact").numpy()
    error = nats.std(ddof=1) / math.sqrt(TESTS)
    print(f"{steps} steps in {options.seconds:g} s: mean posterior log-density {nats.mean():.3f} +- {error:.3f} nats")
    with tempfile.TemporaryDirectory() as folder:
        flow.save(Path(folder) / "flow")
        loaded = iresnet_core.load(Path(folder) / "flow")
    again = loaded.log_prob(tests, data, method="exact").value
    print(f"read by NumPy: mean {again.mean():.3f}, difference at most {np.abs(again - nats).max():.1e} nats")
    if options.picture is not None:
        draw(loaded, options.picture)


if __name__ == "__main__":
    main()
