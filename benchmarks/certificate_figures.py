"""Certificates of all layers of a flow beside its forward pass, and of large matrices beside their SVD."""

import itertools

import numpy as np
from timing import medians

from iresnet_core import Activation, Chain, Dense, lipschitz_bound, lipschitz_bounds

WIDTHS, BLOCKS, BATCH = (64, 128, 128, 64), 10, 500


def flow(dtype):
    """Ten blocks with Gaussian weights, of norm about .9."""
    rng = np.random.default_rng(0)
    blocks = []
    for _ in range(BLOCKS):
        layers = []
        for n, m in itertools.pairwise(WIDTHS):
            W = rng.standard_normal((m, n))
            W *= 0.9 / np.linalg.norm(W, 2)
            layers += [Dense(W.astype(dtype), np.zeros(m, dtype=dtype)), Activation("elu")]
        blocks.append(Chain(layers[:-1]))
    return blocks


def beside_forward(dtype, repetitions, clock):
    """Seconds of all certificates, and of one plain forward pass of a batch."""
    blocks = flow(dtype)
    layers = [operator for g in blocks for operator in g.operators]
    x = np.random.default_rng(1).standard_normal((BATCH, WIDTHS[0])).astype(dtype)

    def forward():
        z = x
        for g in blocks:
            z = z + g(z)

    spent = medians({"certificates": lambda: lipschitz_bounds(layers), "forward": forward}, repetitions, clock)
    return spent["certificates"], spent["forward"]


def beside_svd(n, repetitions, clock):
    """Excess of the certified norm of a Gaussian n x n matrix, and its time relative to the SVD's."""
    A = np.random.default_rng(n).standard_normal((n, n))
    spent = medians(
        {"bound": lambda: lipschitz_bound(A), "svd": lambda: np.linalg.svd(A, compute_uv=False)}, repetitions, clock
    )
    return float(lipschitz_bound(A).value) / np.linalg.norm(A, 2) - 1, spent["bound"] / spent["svd"]
