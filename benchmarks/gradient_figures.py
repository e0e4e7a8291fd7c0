"""Variance and cost of the gradient of sum log det with respect to the weights, on PyTorch, single probes."""

import importlib.util
from typing import NamedTuple

import numpy as np
from peer_estimators import geometric_chance
from timing import medians

from iresnet_core import Activation, Chain, Dense, logdet

PEER = "Neumann series, Residual Flow"


class GradientFigures(NamedTuple):
    """Of one estimator: products, total variance and squared bias relative to the squared exact gradient, seconds."""

    products: float
    variance: float
    squared_bias: float
    seconds: float


def available():
    """Whether PyTorch is there."""
    return importlib.util.find_spec("torch") is not None


def _torch_block(g, x):
    """The block with weights that require gradients, and its inputs."""
    import torch

    layers = [
        Dense(*(torch.tensor(np.asarray(a), requires_grad=True) for a in (layer.weight, layer.bias)))
        if isinstance(layer, Dense)
        else layer
        for layer in g.layers
    ]
    return Chain(layers), torch.tensor(np.asarray(x))


def neumann(chain, x, exact=2, extra=2):
    """w^T J v, w a Neumann series with roulette in v: its gradient is Residual Flow's estimate (Chen et al. 2019).

    The products of the series are written out and record nothing; only the last one does.
    """
    import torch

    first, second, third = chain.operators
    activation = next(layer for layer in chain.layers if isinstance(layer, Activation))
    h, inner = activation.linearize(x @ first.weight.T + first.bias)
    h, outer = activation.linearize(h @ second.weight.T + second.bias)
    inner, outer = inner.slope, outer.slope
    _ = h @ third.weight.T + third.bias  # g(x), which the block needs
    v = torch.randn_like(x)
    with torch.no_grad():
        u, w = v, v.clone()
        for k in range(1, exact + extra + 1):
            u = (((u @ third.weight) * outer) @ second.weight * inner) @ first.weight
            w += (-1) ** k / geometric_chance(k, exact) * u
    image = ((v @ first.weight.T * inner) @ second.weight.T * outer) @ third.weight.T
    return (w * image).sum()


def estimators(chain, x, rng):
    """Label -> (scalar whose gradient is the estimate, its products without the one that is differentiated)."""
    fewest = {"errors": False, "rng": rng}
    return {
        PEER: (lambda extra=None: neumann(chain, x, extra=int(rng.geometric(0.5)) if extra is None else extra), 4.0),
        "plain probes, exact trace, m = 2": (
            lambda extra=None: logdet(chain, x, method="arnoldi", terms=2, **fewest).value.sum(),
            2.5,
        ),
        "plain probes, exact trace, m = 3": (
            lambda extra=None: logdet(chain, x, method="arnoldi", terms=3, **fewest).value.sum(),
            3.5,
        ),
        "mean Jacobian A0, m = 2": (
            lambda extra=None: logdet(chain, x, method="mean-jacobian", terms=2, rng=rng).value.sum(),
            2.5,
        ),
        # The form for training loops, which takes another control variate instead of the exact trace.
        "mean Jacobian in training, m = 2": (
            lambda extra=None: logdet(chain, x, method="mean-jacobian", terms=2, **fewest).value.sum(),
            2.5,
        ),
    }


def measure(g, x, draws, repetitions, clock):
    """Label -> `GradientFigures` on one block."""
    import torch

    torch.manual_seed(0)
    chain, x = _torch_block(g, x)
    weights = [operator.weight for operator in chain.operators]
    rng = np.random.default_rng(0)

    def gradient(scalar):
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(scalar, weights)])

    exact = gradient(logdet(chain, x, method="exact").value.sum())
    size = float(exact @ exact)
    known = estimators(chain, x, rng)
    times = medians(
        {label: (lambda scalar=scalar: gradient(scalar(extra=2))) for label, (scalar, _) in known.items()},
        repetitions,
        clock,
    )
    found = {}
    for label, (scalar, products) in known.items():
        total, squares = torch.zeros_like(exact), 0.0
        for _ in range(draws):
            error = gradient(scalar()) - exact
            total += error
            squares += float(error @ error)
        mean_square = float(total @ total) / draws**2
        variance = (squares - draws * mean_square) / (draws - 1)
        found[label] = GradientFigures(
            products, variance / size, max(0.0, mean_square - variance / draws) / size, times[label]
        )
    return found


HEADS = ["gradient", "products", "ms", "variance", "bias^2", "variance x time / RF", "variance x products / RF"]


def ratios(figures, label):
    """Variance times seconds, and times products, relative to the peer's."""
    base, f = figures[PEER], figures[label]
    variance = f.variance / base.variance
    return variance * f.seconds / base.seconds, variance * (f.products + 1) / (base.products + 1)


def rows(figures):
    """Rows of a table, one an estimator."""
    return [
        (
            label,
            f"{f.products:.1f} + 1",
            f"{1e3 * f.seconds:.2f}",
            f"{f.variance:.3g}",
            f"{f.squared_bias:.2g}",
            *(f"{ratio:.5f}" for ratio in ratios(figures, label)),
        )
        for label, f in figures.items()
    ]
