"""Time and memory of a training step beside a plain residual network and normflows, in one run.

    pip install --no-deps normflows==1.7.3
    python benchmarks/training_step.py [--compile] [--repeats 30]

Ten blocks d - 128 - 128 - 128 - d, batch 500, float32, Adam. The floor is the same network of nn.Linear without
normalisation and log-determinant. Every model is timed in turn, round after round, and the medians are compared.
"""

import argparse
import importlib.util
import itertools
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

BLOCKS, WIDTH, BATCH, COEFF = 10, 128, 500, 0.9


class PlainBlock(nn.Module):
    """x + net(x)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        """Apply the block."""
        return x + self.net(x)


def widths(d):
    return [d, WIDTH, WIDTH, WIDTH, d]


def mlp(d, activation):
    sizes = widths(d)
    layers = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(n, m)] + ([activation()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def plain(d):
    model = nn.Sequential(*[PlainBlock(mlp(d, nn.SiLU)) for _ in range(BLOCKS)])
    return model, lambda x: (model(x) ** 2).sum(1).mean()


def ours(d):
    from iresnet_core.adapters.torch import Activation, Flow, InvertibleResidual

    blocks = [InvertibleResidual(mlp(d, lambda: Activation("lipswish")), coeff=COEFF) for _ in range(BLOCKS)]
    flow = Flow(blocks, event_shape=(d,))
    return flow, lambda x: -flow.log_prob(x).mean()


def normflows(d):
    import normflows as nf

    layers = [
        nf.flows.Residual(nf.nets.LipschitzMLP(widths(d), init_zeros=False, lipschitz_const=COEFF), reduce_memory=True)
        for _ in range(BLOCKS)
    ]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(d, trainable=False), layers)

    def loss(x):
        nf.utils.update_lipschitz(model, 5)
        return model.forward_kld(x)

    return model, loss


MODELS = {"plain": plain, "iresnet-core": ours, "iresnet-core compiled": ours, "normflows": normflows}


def stepper(name, d, batch=BATCH):
    """Return a function that takes one training step."""
    torch.manual_seed(0)
    model, loss = MODELS[name](d)
    if "compiled" in name:
        loss = torch.compile(loss, fullgraph=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    samples = torch.randn(batch, d)

    def step(x=samples):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def _status(key):
    """A figure of this process in MiB, as the kernel has it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def grown(name, d):
    """Growth (MiB) of the peak of resident memory over ten steps, in this process.

    A few steps with four samples come before: they import, start threads and make the state of the optimizer. With a
    compiler that would be another program, so that they have the whole batch.
    """
    torch.set_num_threads(1)
    step = stepper(name, d)
    small = torch.randn(BATCH if "compiled" in name else 4, d)
    for _ in range(3):
        step(small)
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is that from now on
    for _ in range(10):
        step()
    return _status("VmHWM") - before


def memory(name, d):
    """`grown`, in a process of its own; one that was forked has its parent's peak, and so have those of `resource`."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import training_step as t;"
        "print(t.grown(sys.argv[2], int(sys.argv[3])))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, sys.path[0], name, str(d)], capture_output=True, text=True, check=True
    )
    return float(out.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [name for name in MODELS if arguments.compile or "compiled" not in name]
    if importlib.util.find_spec("normflows") is None:
        names.remove("normflows")
        print("normflows is not installed: pip install --no-deps normflows==1.7.3")
    for d in (2, 64):
        steps = {name: stepper(name, d) for name in names}
        for step in steps.values():
            for _ in range(3):
                step()
        times = {name: [] for name in names}
        for _ in range(arguments.repeats):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"\nd = {d}: {BLOCKS} blocks of {'-'.join(map(str, widths(d)))}, batch {BATCH}, {arguments.threads} thread"
        )
        print(f"{'':24}{'ms':>8}{'x plain':>9}{'MiB':>7}")
        for name in names:
            mebibytes = memory(name, d)
            print(f"{name:24}{1e3 * medians[name]:8.1f}{medians[name] / medians['plain']:9.2f}{mebibytes:7.0f}")
        if "normflows" in names:
            print(f"normflows / iresnet-core: {medians['normflows'] / medians['iresnet-core']:.2f}")


if __name__ == "__main__":
    main()
