"""What the exact log-determinant costs beside the estimate that "auto" would take instead, over orders.

    python benchmarks/exact_limit.py [--backend torch] [--batch 64] [--repeats 15]

prints, for a chain with two hidden layers of width d (c = 0.9), the time of both answers with their errors, as in
evaluation, and without them and with their gradient, as in a training step. The limits `EVALUATION_LIMIT` and
`TRAINING_LIMIT` of `iresnet_core.determinant.choice` are read off these tables. Times are the least process time of
several repeats, on one thread.
"""

import argparse
import time

import numpy as np
from threadpoolctl import threadpool_limits

from iresnet_core import Activation, Chain, Dense, logdet, normalize
from iresnet_core.backends import backend as find_backend

ORDERS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def branch(backend, d, rng):
    """A chain d -> d -> d -> d with the constant 0.9."""
    layers = []
    for _ in range(3):
        weight, bias = rng.standard_normal((d, d)) / d**0.5, rng.standard_normal(d)
        layers += [Dense(backend.from_numpy(weight), backend.from_numpy(bias)), Activation("lipswish")]
    return normalize(Chain(layers[:-1]), 0.9)


def least_time(answer, repeats):
    """The least process time of an answer in milliseconds, after one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        answer()
        times.append(time.process_time() - begin)
    return 1e3 * min(times[1:])


def evaluation(g, x, method):
    """An answer with its errors."""
    return lambda: logdet(g, x, method=method, rng=0)


def training(g, x, method):
    """An answer without errors and, where the backend is PyTorch, its gradient."""

    def step():
        at = x.clone().requires_grad_() if hasattr(x, "requires_grad_") else x
        value = logdet(g, at, method=method, rng=0, errors=False).value
        if at is not x:
            value.sum().backward()

    return step


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    backend, rng = find_backend(options.backend), np.random.default_rng(0)
    print(f"{options.backend}, batch {options.batch}, float64; milliseconds of process time")
    print(f"{'order':>5}  {'exact':>8} {'estimate':>8} {'ratio':>6}   {'exact':>8} {'estimate':>8} {'ratio':>6}")
    print(f"{'':>5}  {'with errors':>24}   {'without, with gradient':>24}")
    with threadpool_limits(1):
        for d in ORDERS:
            g, x = branch(backend, d, rng), backend.from_numpy(rng.standard_normal((options.batch, d)))
            row = []
            for kind in (evaluation, training):
                exact, estimate = (
                    least_time(kind(g, x, method), options.repeats) for method in ("exact", "mean-jacobian")
                )
                row.append(f"{exact:8.2f} {estimate:8.2f} {exact / estimate:6.2f}")
            print(f"{d:5}  {'   '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
