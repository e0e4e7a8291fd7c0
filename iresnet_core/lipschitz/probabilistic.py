"""Probabilistic bound on the norm of an operator that is known by its products alone (Hochstenbach 2013)."""

import math
from typing import Any

import numpy as np

from iresnet_core.backends import Array
from iresnet_core.lipschitz.lanczos import Bidiagonalization, bidiagonalize
from iresnet_core.operators import LinearOperator, Transposed

__all__ = ["FAILURE_PROBABILITY", "probabilistic_bound"]

FAILURE_PROBABILITY = 1e-10
# Stop where the bound is this close to the Ritz value, which lies below the norm.
CLOSE_ENOUGH = 5e-3
MAX_STEPS = 100


def probabilistic_bound(operator: LinearOperator, rng: Any = None, close: float = CLOSE_ENOUGH) -> Array:
    """Bound the norm of an operator or of each matrix of a stack (...,), with probability 1 - 1e-10 each.

    After k steps from a random unit vector v, the Lanczos polynomial p_k of A^T A satisfies
    ``|p_k(sigma^2)| |v^T x| <= 1``, x the top singular vector; with the stated probability ``|v^T x| >= delta``, hence
    sigma^2 is at most the root of p_k(t) = 1 / delta above the largest Ritz value. The start must be fresh and random:
    a warm start voids the bound. Cost: two products a step, 100 steps at most; fewer where a bound that is up to
    `close` above the norm, relative to it, is close enough.
    """
    if operator.shape[0] < operator.shape[1]:
        operator = Transposed(operator)  # the shorter side, whose Krylov space is complete after n steps
    backend, xp = operator.backend, operator.backend.xp
    n = operator.shape[1]
    start = backend.sample("gaussian", (*operator.batch_shape, n), operator.like, rng)
    count = math.prod(operator.batch_shape)
    # The density of one coordinate of a random direction is at most sqrt(n / 2 pi) for n >= 3; for n <= 2 the
    # recurrence ends by itself before the polynomial matters.
    log_delta = math.log(FAILURE_PROBABILITY * math.sqrt(math.pi / (2 * max(n, 3))))
    bounds = np.full(count, np.inf)
    for k, state in enumerate(bidiagonalize(operator, start, min(MAX_STEPS, *operator.shape)), start=1):
        if k % 4 and k < min(operator.shape):
            continue
        ritz, bounds = _roots(backend, state, count, log_delta, bounds)
        if np.all(bounds <= (1 + close) * ritz):
            break
    rounding = 1 + 64 * n * float(xp.finfo(operator.like.dtype).eps)
    result = backend.from_numpy((bounds * rounding).reshape(operator.batch_shape), operator.like)
    return xp.astype(result, xp.float64)


def _roots(
    backend: Any, state: Bidiagonalization, count: int, log_delta: float, best: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest Ritz values, and for each operator the lowest bound so far."""
    alpha = np.stack([backend.to_numpy(a).astype(float).reshape(count) for a in state.alpha], axis=-1)
    beta = np.stack([backend.to_numpy(b).astype(float).reshape(count) for b in state.beta], axis=-1)
    ritz = np.empty(count)
    for i in range(count):
        diagonal, couplings = alpha[i], alpha[i] * beta[i]
        # Where a coupling vanishes the Krylov space is complete and its Ritz value is the norm.
        ends = np.flatnonzero(couplings == 0)
        k = int(ends[0]) + 1 if ends.size else len(diagonal)
        B = np.diag(diagonal[:k]) + np.diag(beta[i, : k - 1], 1)
        squares = np.linalg.svd(B, compute_uv=False) ** 2
        ritz[i] = math.sqrt(squares[0])
        if ends.size:
            best[i] = min(best[i], ritz[i])
        else:
            best[i] = min(best[i], _root_above(squares, float(np.sum(np.log(couplings[:k]))), log_delta))
    return ritz, best


def _root_above(squares: np.ndarray, log_couplings: float, log_delta: float) -> float:
    """Square root of the t > max(squares) with sum log(t - squares) - log_couplings = -log_delta, by bisection."""

    def excess(t: float) -> float:
        return float(np.sum(np.log(t - squares))) - log_couplings + log_delta

    low = float(squares[0])
    width = max(low, 1e-300)
    while excess(low + width) < 0:
        width *= 2
    high = low + width
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if middle > squares[0] and excess(middle) >= 0:
            high = middle
        else:
            low = middle
    return math.sqrt(high)
