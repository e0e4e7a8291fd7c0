"""The published estimators of log|det(I + J)|, written plainly from their formulas, with the products of the branch.

Each takes products u -> J^T u, probes and a generator, and returns the estimate (batch,) and the number of products.
"""

import numpy as np

from iresnet_core import Activation


def plain_products(g, x):
    """g(x), and u -> J^T u for two hidden layers, as one would write it: the slopes once, then three products.

    The block needs the value anyway, and automatic differentiation, which the peers use, computes it as well.
    """
    first, second, third = (np.asarray(operator.weight) for operator in g.operators)
    activation = next(layer for layer in g.layers if isinstance(layer, Activation))
    a = x @ first.T + g.operators[0].bias
    h, jacobian = activation.linearize(a)
    inner = jacobian.slope
    h, jacobian = activation.linearize(h @ second.T + g.operators[1].bias)
    outer = jacobian.slope
    value = h @ third.T + g.operators[2].bias
    return value, lambda u: (((u @ third) * outer) @ second * inner) @ first


def series(product, v, terms, chance=lambda k: 1.0):
    """Sum over k of (-1)^(k+1) v^T J^k v / (k chance(k)), chance(k) that term k is computed."""
    w, total = v, np.zeros(v.shape[0], dtype=v.dtype)
    for k in range(1, terms + 1):
        w = product(w)
        total += (-1) ** (k + 1) / (k * chance(k)) * (v * w).sum(-1)
    return total, terms


def geometric_chance(k, exact, p=0.5):
    """Chance that term k is computed after `exact` certain terms and a geometric number more, of mean 1 / p."""
    return (1 - p) ** max(0, k - exact - 1)


def residual_flow(g, x, rng, exact=2, extra=None):
    """Residual Flow (Chen et al. 2019) in training: two certain terms, geometric tail with p = 1/2, Gaussian probes.

    `extra` fixes the length of the tail, whose mean is 2, for timing.
    """
    v = rng.standard_normal(x.shape).astype(x.dtype, copy=False)
    terms = exact + (int(rng.geometric(0.5)) if extra is None else extra)
    return series(plain_products(g, x)[1], v, terms, lambda k: geometric_chance(k, exact))


def residual_flow_evaluation(g, x, rng, extra=None):
    """Residual Flow in evaluation: twenty certain terms."""
    return residual_flow(g, x, rng, exact=20, extra=extra)


def i_resnet(terms):
    """i-ResNet (Behrmann et al. 2019): a truncated series, Gaussian probes."""

    def estimate(g, x, rng):
        v = rng.standard_normal(x.shape).astype(x.dtype, copy=False)
        return series(plain_products(g, x)[1], v, terms)

    return estimate


def freia(g, x, rng):
    """FrEIA's i-ResNet layer: twenty terms, Rademacher probes."""
    v = rng.choice(np.asarray([-1.0, 1.0], dtype=x.dtype), x.shape)
    return series(plain_products(g, x)[1], v, 20)


PEERS = {
    "Residual Flow, training": residual_flow,
    "Residual Flow, evaluation": residual_flow_evaluation,
    "i-ResNet, 5 terms": i_resnet(5),
    "i-ResNet, 10 terms": i_resnet(10),
    "FrEIA, 20 terms": freia,
}
