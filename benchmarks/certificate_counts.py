"""Counts of violated certificates over many random cases, and means of the unbiased estimators over many draws."""

import itertools
import math

import numpy as np

from iresnet_core import Activation, Chain, Dense, invert, logdet, normalize
from iresnet_core.errors import InvalidArgumentError

D, BATCH = 6, 100
ACTIVATIONS = ("lipswish", "elu", "sin", "tanh")
CONSTANTS = (0.5, 0.9, 0.97)
UNBIASED = ("series", "arnoldi", "mean-jacobian", "roulette")


def _random_chain(seed):
    rng = np.random.default_rng(seed)
    sizes = (D, *([8] * int(rng.integers(1, 4))), D)
    layers = []
    for n, m in itertools.pairwise(sizes):
        W = rng.standard_normal((m, n))
        if seed % 2:
            U, _, Vt = np.linalg.svd(W, full_matrices=False)
            W = U @ Vt
        layers += [Dense(W, rng.standard_normal(m)), Activation(ACTIVATIONS[seed % 4])]
    return normalize(Chain(layers[:-1]), CONSTANTS[seed % 3]), 2 * rng.standard_normal((BATCH, D)), rng


def _logarithm(J):
    """log(I + J) of matrices (batch, d, d), as the integral of J (I + t J)^-1."""
    nodes, weights = np.polynomial.legendre.leggauss(120)
    t = (nodes + 1)[:, None, None, None] / 2
    return np.tensordot(weights / 2, np.linalg.solve(np.eye(D) + t * J, np.broadcast_to(J, (120, *J.shape))), axes=1)


def violations(cases):
    """Number of cases, and for each kind how many certificates were violated: forms, exact values, inverses."""
    broken = {"truncation of the log-determinant": 0, "exact log-determinant": 0, "error of the inverse": 0}
    done = 0
    for seed in range(math.ceil(cases / BATCH)):
        g, x, rng = _random_chain(seed)
        J = np.asarray(g.linearize(x).matrix())
        reference = np.linalg.slogdet(np.eye(D) + J)[1]
        v = rng.choice([-1.0, 1.0], x.shape)
        form = np.einsum("bi,bij,bj->b", v, _logarithm(J), v)
        for method in ("series", "arnoldi"):
            terms = int(rng.integers(1, D))
            answer = logdet(g, x, method=method, terms=terms, noise=v, control_variate="none")
            broken["truncation of the log-determinant"] += int(np.sum(np.abs(answer.value - form) > answer.bias_bound))
        answer = logdet(g, x, method="exact")
        broken["exact log-determinant"] += int(np.sum(np.abs(answer.value - reference) > answer.bias_bound + 1e-13))
        inverse = invert(g, x + g(x), rtol=0.0, atol=10.0 ** -int(rng.integers(1, 9)))
        error = np.linalg.norm(inverse.value - x, axis=-1)
        broken["error of the inverse"] += int(np.sum(error > inverse.error_bound + 1e-14))
        done += BATCH
    return done, broken


def _jacobians(trained):
    """One small branch with one input for every kind of Jacobian."""
    rng = np.random.default_rng(0)
    d = 8
    matrices = {
        "orthogonal": np.linalg.qr(rng.standard_normal((d, d)))[0],
        "nilpotent": np.diag(np.ones(d - 1), 1),
        "non-normal": np.triu(rng.standard_normal((d, d))),
    }
    chains = {}
    for kind, A in matrices.items():
        # Two layers with slopes between, so that every method has what it needs.
        half = 0.9 * A / np.linalg.norm(A, 2)
        chains[kind] = (
            normalize(Chain([Dense(half), Activation("sin"), Dense(np.eye(d))]), 0.9),
            0.5 * np.ones((1, d)),
        )
    g, x = trained
    chains["trained"] = (g, x[:1])
    return chains


def unbiased_deviations(trained, draws, groups=50):
    """(method, kind) -> deviation of the mean over the draws from the exact value, in standard errors.

    The probes are independent: a full set of Hadamard probes would have no noise left.
    """
    found = {}
    for kind, (g, x) in _jacobians(trained).items():
        exact = float(logdet(g, x, method="exact").value[0])
        options = {"unbiased": True, "probes": draws // groups, "probe_kind": "gaussian"}
        for method in UNBIASED:
            rng = np.random.default_rng(1)
            try:
                means = [float(logdet(g, x, method=method, rng=rng, **options).value[0]) for _ in range(groups)]
            except InvalidArgumentError:
                continue  # not offered without bias
            error = np.std(means, ddof=1) / math.sqrt(groups)
            found[method, kind] = abs(float(np.mean(means)) - exact) / max(error, 1e-14)
    return found
