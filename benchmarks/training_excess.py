"""By how much the norms of weights exceed their caps while they are trained, where they are only estimated.

    python benchmarks/training_excess.py [--steps 200] [--lr 1e-3 --lr 1e-2]
    python benchmarks/training_excess.py --images --steps 60 [--alternating | --two-sizes]

Flows of two blocks are trained with Adam from the usual initialisation of PyTorch, below the caps, and from weights
scaled up to them (`fill_caps`). After every step the norms of all weights in use are computed, by SVD of the matrix or
of a small convolution's explicit matrix, with `--images` by Lanczos' method from below, and compared to the caps: the
largest excess of a layer over all steps, the share of layers and steps that exceed their cap by more than 0.1 %, and
the largest constant of a block (cap 0.9; in training a block relies on 0.95). In evaluation mode and in what is saved
no norm exceeds its cap; the last column is that.

With `--alternating` a step is made of passes over parts of the batch, with inverses in training mode between them. With
`--two-sizes` the blocks learn to blur images of two sizes in turn, so that the size changes with every step.
"""

import argparse
import math

import torch
from torch import nn

from iresnet_core import spectral_norm
from iresnet_core.adapters.shared.weight import training_layers
from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual

COEFF, BATCH, WIDTH, WIDE = 0.9, 100, 128, 512
# Images of channels, extent and hidden channels, in batches of so many.
IMAGES, IMAGE_BATCH = {"1x28x28": (1, 28, 32), "3x32x32": (3, 32, 64)}, 16
# Entries of a matrix whose norm is computed by SVD.
EXPLICIT = 2**17


def dense_flow(d, width=WIDTH):
    """Two blocks d - width - width - d."""

    def net():
        return nn.Sequential(
            nn.Linear(d, width),
            Activation("lipswish"),
            nn.Linear(width, width),
            Activation("lipswish"),
            nn.Linear(width, d),
        )

    layers = [layer for _ in range(2) for layer in (ActNorm(d), InvertibleResidual(net(), COEFF))]
    return Flow(layers, event_shape=(d,))


def wide_flow(d):
    """Two blocks d - 512 - 512 - d."""
    return dense_flow(d, WIDE)


def image_flow(_):
    """Two blocks of convolutions 3 x 3 - 1 x 1 - 3 x 3 on images of 6 x 6 pixels, 4 - 8 - 8 - 4 channels."""

    def net():
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 8, 1), nn.ELU(), nn.Conv2d(8, 4, 3, padding=1)
        )

    layers = [layer for _ in range(2) for layer in (ActNorm(4), InvertibleResidual(net(), COEFF))]
    return Flow(layers, event_shape=(4, 6, 6))


def large_image_flow(name):
    """Two blocks of convolutions 3 x 3 - 1 x 1 - 3 x 3 on images of the usual sizes."""
    channels, extent, hidden = IMAGES[name]

    def net():
        return nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            Activation("lipswish"),
            nn.Conv2d(hidden, hidden, 1),
            Activation("lipswish"),
            nn.Conv2d(hidden, channels, 3, padding=1),
        )

    layers = [layer for _ in range(2) for layer in (ActNorm(channels), InvertibleResidual(net(), COEFF))]
    return Flow(layers, event_shape=(channels, extent, extent))


def samples(flow, n):
    """Bent samples in the event shape."""
    d = math.prod(flow.event_shape)
    z = torch.randn(n, d)
    x = torch.sin(1.5 * z @ torch.randn(d, d) / d**0.5) + 0.1 * z
    return x.reshape(n, *flow.event_shape)


def norm(layer):
    """The norm of a layer, by SVD or from below."""
    if math.prod(layer.shape) <= EXPLICIT:
        return float(torch.linalg.svdvals(layer.matrix().double())[0])
    return float(spectral_norm(layer, rtol=1e-3).value)


def ratios(flow):
    """Norm over cap of every weight in use, and the constants of the blocks."""
    ratios, constants = [], []
    for block in flow.layers:
        if not isinstance(block, InvertibleResidual):
            continue
        capped, constant = block.capped_layers(), 1.0
        in_use = training_layers(capped) if flow.training else {c.state: c.certified() for c in capped}
        for layer in capped:
            found = norm(in_use[layer.state])
            ratios.append(found / layer.cap)
            constant *= found
        constants.append(constant)
    return ratios, constants


def ratios_of(flow):
    """As `ratios`, without gradients: such a pass has the weights of the last one that recorded some."""
    with torch.no_grad():
        return ratios(flow)


def measured(make, d, lr, fill, arguments, batch):
    """Train, and return the largest excess, the share above 0.1 %, the largest constant, and the certified excess."""
    torch.manual_seed(0)
    flow = make(d)
    data = samples(flow, 2000)
    flow.initialize(data[:500])
    if fill:
        flow.fill_caps()
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    seen, largest = [], 0.0
    for step in range(arguments.steps):
        optimizer.zero_grad()
        x = data[torch.randint(len(data), (batch,))]
        if arguments.two_sizes:
            x = x if step % 2 else nn.functional.avg_pool2d(x, 2)
            y = x
            for layer in flow.layers:
                y = layer(y)
            parts = [(y - nn.functional.avg_pool2d(x, 3, 1, 1)).square().sum(dim=(1, 2, 3)).mean()]
        else:
            parts = (-flow.log_prob(part).mean() for part in (x.split(batch // 4) if arguments.alternating else [x]))
        for loss in parts:
            found, constants = ratios_of(flow)
            seen += found
            largest = max(largest, *constants)
            loss.backward()
            if arguments.alternating:
                with torch.no_grad():
                    flow.inverse(x[:2])
        optimizer.step()
    flow.eval()
    certified, _ = ratios_of(flow)
    excess = torch.tensor(seen) - 1
    return float(excess.max()), float((excess > 1e-3).double().mean()), largest, max(certified) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, action="append")
    parser.add_argument("--images", action="store_true", help="images of the usual sizes instead")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--alternating", action="store_true", help="parts of the batch, with inverses between them")
    mode.add_argument("--two-sizes", action="store_true", help="images of two sizes in turn")
    arguments = parser.parse_args()
    if arguments.two_sizes and not arguments.images:
        parser.error("--two-sizes is for --images")
    torch.set_num_threads(1)
    models = [("d=2", dense_flow, 2), ("d=64", dense_flow, 64), ("d=64, wide", wide_flow, 64)]
    models.append(("convolutions", image_flow, 144))
    batch = BATCH
    if arguments.images:
        models, batch = [(name, large_image_flow, name) for name in IMAGES], IMAGE_BATCH
    print(f"{arguments.steps} steps of Adam, batch {batch}, cap of a block {COEFF}")
    print(f"{'model':14}{'lr':>8}  {'start':8}{'excess':>9}{'> 0.1 %':>9}{'constant':>10}{'evaluated':>11}")
    for name, make, d in models:
        for lr in arguments.lr or (1e-3, 1e-2):
            for fill in (False, True):
                excess, share, constant, certified = measured(make, d, lr, fill, arguments, batch)
                start = "at cap" if fill else "below"
                print(
                    f"{name:14}{lr:8g}  {start:8}{100 * excess:8.3f}%{100 * share:8.1f}%{constant:10.4f}"
                    f"{certified:11.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
