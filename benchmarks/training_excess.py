"""By how much the norms of weights exceed their caps while they are trained, where they are only estimated.

    python benchmarks/training_excess.py [--steps 200] [--lr 1e-3 --lr 1e-2]

Flows of two blocks are trained with Adam from the usual initialisation of PyTorch, below the caps, and from weights
scaled up to them (`fill_caps`). After every step the norms of all weights in use are computed, by SVD of the matrix or
of the convolution's explicit matrix, and compared to the caps: the largest excess of a layer over all steps, the share
of layers and steps that exceed their cap by more than 0.1 %, and the largest constant of a block (cap 0.9; in training
a block relies on 0.95). In evaluation mode and in what is saved no norm
exceeds its cap; the last column is that, by SVD.
"""

import argparse
import math

import torch
from torch import nn

from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual
from iresnet_core.adapters.torch.weight import cap_of, weight_before_cap

COEFF, BATCH, WIDTH = 0.9, 100, 128


def dense_flow(d):
    """Two blocks d - 128 - 128 - d."""

    def net():
        return nn.Sequential(
            nn.Linear(d, WIDTH),
            Activation("lipswish"),
            nn.Linear(WIDTH, WIDTH),
            Activation("lipswish"),
            nn.Linear(WIDTH, d),
        )

    layers = [layer for _ in range(2) for layer in (ActNorm(d), InvertibleResidual(net(), COEFF))]
    return Flow(layers, event_shape=(d,))


def image_flow(_):
    """Two blocks of convolutions 3 x 3 - 1 x 1 - 3 x 3 on images of 6 x 6 pixels, 4 - 8 - 8 - 4 channels."""

    def net():
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 8, 1), nn.ELU(), nn.Conv2d(8, 4, 3, padding=1)
        )

    layers = [layer for _ in range(2) for layer in (ActNorm(4), InvertibleResidual(net(), COEFF))]
    return Flow(layers, event_shape=(4, 6, 6))


def samples(flow, n):
    """Bent samples in the event shape."""
    d = math.prod(flow.event_shape)
    z = torch.randn(n, d)
    x = torch.sin(1.5 * z @ torch.randn(d, d) / d**0.5) + 0.1 * z
    return x.reshape(n, *flow.event_shape)


def ratios(flow):
    """Norm over cap of every weight in use, and the constants of the blocks."""
    ratios, constants = [], []
    for block in flow.layers:
        if not isinstance(block, InvertibleResidual):
            continue
        constant = 1.0
        for module in block.net:
            cap = cap_of(module)
            if cap is None:
                continue
            layer = (cap.trained_layer if flow.training else cap.certified_layer)(weight_before_cap(module), None)
            norm = float(torch.linalg.svdvals(layer.matrix().double())[0])
            ratios.append(norm / cap.cap)
            constant *= norm
        constants.append(constant)
    return ratios, constants


def measured(make, d, lr, steps, fill):
    """Train, and return the largest excess, the share above 0.1 %, the largest constant, and the certified excess."""
    torch.manual_seed(0)
    flow = make(d)
    data = samples(flow, 2000)
    flow.initialize(data[:500])
    if fill:
        flow.fill_caps()
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    seen, largest = [], 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -flow.log_prob(data[torch.randint(len(data), (BATCH,))]).mean()
        with torch.no_grad():  # a pass that records nothing has the weights of the last one that did
            found, constants = ratios(flow)
        seen += found
        largest = max(largest, *constants)
        loss.backward()
        optimizer.step()
    flow.eval()
    with torch.no_grad():
        certified, _ = ratios(flow)
    excess = torch.tensor(seen) - 1
    return float(excess.max()), float((excess > 1e-3).double().mean()), largest, max(certified) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.steps} steps of Adam, batch {BATCH}, cap of a block {COEFF}")
    print(f"{'model':14}{'lr':>8}  {'start':8}{'excess':>9}{'> 0.1 %':>9}{'constant':>10}{'evaluated':>11}")
    for name, make, d in (("d=2", dense_flow, 2), ("d=64", dense_flow, 64), ("convolutions", image_flow, 144)):
        for lr in arguments.lr or (1e-3, 1e-2):
            for fill in (False, True):
                excess, share, constant, certified = measured(make, d, lr, arguments.steps, fill)
                start = "at cap" if fill else "below"
                print(
                    f"{name:14}{lr:8g}  {start:8}{100 * excess:8.3f}%{100 * share:8.1f}%{constant:10.4f}"
                    f"{certified:11.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
