"""A step of reverse KL beside one of maximum likelihood and beside normflows', and the error of its gradient.

    pip install --no-deps normflows==1.7.3
    python benchmarks/reverse_kl.py [--dimensions 2 64] [--repeats 15] [--draws 100] [--markdown FILE]

float32, Adam, one thread, blocks d - 128 - 128 - 128 - d, the target a row of quartic double wells. `Inverted` blocks
and normflows' `Residual(reverse=False)` both sample by evaluation. Steps are timed in turn, by the time of the process.
The error of a gradient is that at fixed latents and weights, over the random probes and the choice of the share, to the
gradient with exact log-determinants of the same model: root mean square and bias, relative to its norm. The bias of a
mean of n draws has a noise of about rms / sqrt(n).
"""

import argparse

import normflows as nf
import torch
from report_tables import Report
from step_models import COEFF, Setting, branch, kernels, widths
from timing import medians

from iresnet_core.adapters.torch import Activation, Flow, Inverted, InvertibleResidual
from iresnet_core.flows.maximum_likelihood import part_of
from iresnet_core.flows.sampling import drawn

PEER, OURS, SOLVED = "normflows, reverse=False", "iresnet-core, Inverted", "iresnet-core, ordinary blocks"
LIKELIHOOD = "iresnet-core, maximum likelihood"


def log_target(x):
    """Return a double well in every coordinate, neighbours coupled."""
    wells = 2 * (x**2 - 1) ** 2
    return -wells.sum(1) - 0.5 * ((x[:, 1:] - x[:, :-1]) ** 2).sum(1)


def blocks(setting):
    """Return residual blocks of one size."""
    nets = [branch(setting, lambda: Activation("lipswish")) for _ in range(setting.blocks)]
    return [InvertibleResidual(net, coeff=COEFF) for net in nets]


def peer(setting):
    """Return normflows' flow, whose blocks are evaluated to sample."""
    cap = COEFF ** (1 / len(kernels(setting)))
    layers = []
    for _ in range(setting.blocks):
        net = nf.nets.LipschitzMLP(widths(setting), init_zeros=False, lipschitz_const=cap)
        layers.append(nf.flows.Residual(net, reverse=False, reduce_memory=True))
    target = nf.distributions.Target()
    target.log_prob = log_target
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(setting.shape, trainable=False), layers, target)


def step(module, loss, after=lambda: None):
    """Return a function that takes one training step."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

    def taken():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        after()

    return taken


def steps(setting):
    """Return the steps that are compared."""
    torch.manual_seed(0)
    n, x = setting.batch, torch.randn(setting.batch, *setting.shape)
    turned = Flow([Inverted(block) for block in blocks(setting)], setting.shape)
    solved, likely = (Flow(blocks(setting), setting.shape) for _ in range(2))
    other = peer(setting)
    return {
        LIKELIHOOD: step(likely, lambda: likely.training_loss(x)),
        f"{OURS}, share of a quarter": step(turned, lambda: turned.reverse_kl(log_target, n, share=None)),
        f"{OURS}, all log-determinants": step(turned, lambda: turned.reverse_kl(log_target, n)),
        PEER: step(other, lambda: other.reverse_kld(n), lambda: nf.utils.update_lipschitz(other, 5)),
        SOLVED: step(solved, lambda: solved.reverse_kl(log_target, n)),
    }


def gradient(module, loss):
    """Return the gradient of a loss as one vector."""
    weights = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def own_loss(flow, z, share=None, **options):
    """Return the loss at fixed latents."""
    part = part_of_batch(z, share)
    x, nats = drawn(flow._core(None, True), z, None, {"errors": False, **options}, part=part)
    return (nats.value - log_target(x.value)).mean()


def part_of_batch(z, share):
    """Return how many log-determinants a step takes."""
    from iresnet_core.backends import get_backend

    return part_of(get_backend(z), z.shape[0], z.shape[1], share)


def peer_loss(model, z, exact=False):
    """Return the loss of normflows' model at fixed latents, or that with the determinant of the whole Jacobian."""
    logs = -0.5 * (z**2).sum(1)
    for layer in model.flows:
        if exact:
            z = z if z.requires_grad else z.requires_grad_()
            image = layer.iresblock.nnet(z)
            rows = [torch.autograd.grad(entry.sum(), z, create_graph=True)[0] for entry in image.T]
            logs = logs - torch.linalg.slogdet(torch.stack(rows, 1) + torch.eye(z.shape[1]))[1]
            z = z + image
        else:
            z, logdet = layer(z)
            logs = logs - logdet.flatten()
    return (logs - log_target(z)).mean()


def accuracy(setting, draws):
    """Return rows of the errors of gradients."""
    torch.manual_seed(1)
    z = torch.randn(setting.batch, *setting.shape)
    turned, other = Flow([Inverted(block) for block in blocks(setting)], setting.shape), peer(setting)
    nf.utils.update_lipschitz(other, 50)
    turned.reverse_kl(log_target, 2)  # the norms of training settle
    cases = {
        f"{OURS}, all log-determinants": (turned, lambda: own_loss(turned, z, 1), True),
        f"{OURS}, share of a quarter": (turned, lambda: own_loss(turned, z), True),
        PEER: (other, lambda: peer_loss(other, z), False),
    }
    rows = []
    for name, (module, loss, own) in cases.items():
        whole = own_loss(turned, z, 1, method="exact") if own else peer_loss(other, z.clone(), exact=True)
        exact = gradient(module, whole)
        off = []
        for _ in range(draws):
            order = torch.randperm(len(z))  # the share is the first of latents in random order
            z = z[order]
            off.append(gradient(module, loss()) - exact)
        errors = torch.stack(off)
        size = exact.norm()
        rms = errors.norm(dim=1).square().mean().sqrt() / size
        rows.append((name, f"{rms:.2e}", f"{errors.mean(0).norm() / size:.1e}", f"{rms / draws**0.5:.1e}"))
    return rows


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 64])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(options.markdown)
    for d in options.dimensions:
        setting = Setting((d,), batch=options.batch, blocks=options.blocks)
        seconds = medians(steps(setting), options.repeats, "cpu")
        rows = [
            (name, f"{1e3 * t:.1f}", f"{t / seconds[LIKELIHOOD]:.2f}", f"{t / seconds[PEER]:.2f}")
            for name, t in seconds.items()
        ]
        report.table(f"{setting}: a step", ["step", "ms", "/ maximum likelihood", "/ normflows"], rows)
        heads = ["gradient", "rms error", "bias", "noise of the bias"]
        report.table(f"{setting}: the gradient", heads, accuracy(setting, options.draws))
    report.write()


if __name__ == "__main__":
    main()
