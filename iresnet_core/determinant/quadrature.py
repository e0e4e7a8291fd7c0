"""Gauss-Legendre rules for integrals of the resolvent, (I + t J)^-1 for t from 0 to 1, with bounds on their errors."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from iresnet_core.backends import Array, Backend

__all__ = ["Rule", "contraction_rule", "gauss_legendre", "preconditioned_rule", "segment_rule"]

# Nodes a panel: where the singularity is no nearer than the length of the panel, rho > 5.8 and 5.8^-32 < 4e-25.
PANEL_NODES = 16
# The error of a rule for contractions is e to the power of minus this, the rounding of float64.
EXPONENT = 36.0
# Error of the rule for preconditioned integrands, relative to ||v||^2.
SEGMENT_ERROR = 1e-10
# Constant below which the rule for preconditioned integrands is not made smaller.
LEAST_CONSTANT = 0.05


@cache
def gauss_legendre(c: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Nodes and weights on [0, 1] for integrands that are analytic but for |t| >= 1 / c, and their relative error.

    The error of one rule falls like rho^(-2 n), rho the parameter of the Bernstein ellipse through 1 / c. Towards c = 1
    that needs n ~ (1 - c)^(-1/2); panels that halve towards t = 1 need only log(1 / (1 - c)) rules of a few nodes.
    The error is that of rounding in float64, e^-36, for arrays of every dtype. It is relative to ||v||^2 = d, so that a
    rule that was only as good as float32 would keep the certificate of a large image above every useful target.
    """
    if c <= 0:
        return _panels([0.0, 1.0], 2, 0.0)
    centre = 2 / c - 1
    log_rho = math.log(centre + math.sqrt(centre * centre - 1))
    count = max(4, math.ceil(EXPONENT / (2 * log_rho)))
    halvings = max(1, math.ceil(math.log2(c / (1 - c))))
    if count <= PANEL_NODES * (halvings + 1):
        return _panels([0.0, 1.0], count, 64 * math.exp(-2 * count * log_rho) / (1 - c) ** 2)
    edges = [0.0, *(1 - 2.0**-k for k in range(1, halvings + 1)), 1.0]
    return _panels(edges, PANEL_NODES, 64 * 5.8 ** (-2 * PANEL_NODES) / (1 - c) ** 2)


def _panels(edges: list[float], count: int, error: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The same Gauss-Legendre rule on every panel between neighbouring edges."""
    nodes, weights = _gauss_legendre_on_symmetric(count)
    lengths = np.diff(edges)
    return (
        (np.asarray(edges[:-1])[:, None] + lengths[:, None] * (nodes + 1) / 2).ravel(),
        (lengths[:, None] * weights / 2).ravel(),
        error,
    )


def _gauss_legendre_on_symmetric(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1], by Newton's method on the recurrence of the Legendre polynomials.

    In place of the eigenvalues of a matrix, which take minutes for the 5,000 nodes that c = 0.99999 needs.
    """
    x = np.cos(np.pi * (np.arange(count, 0, -1) - 0.25) / (count + 0.5))
    for _ in range(8):
        before, value = np.ones(count), x
        for n in range(2, count + 1):
            before, value = value, ((2 * n - 1) * x * value - (n - 1) * before) / n
        slope = count * (x * value - before) / (x * x - 1)
        step = value / slope
        if np.max(np.abs(step)) < 1e-15:
            break
        x = x - step
    weights = 2 / ((1 - x * x) * slope * slope)
    return x, weights * (2 / np.sum(weights))


def _rule(c: float) -> np.ndarray:
    """Nodes t, weights, weights over 1 - t c, and weights times t c / (1 - t^2 c^2), as (4, nodes, 1, 1)."""
    return _kept_rule(c)  # torch.compile takes a function for a constant, but none that is cached


@cache
def _kept_rule(c: float) -> np.ndarray:
    nodes, weights, _ = gauss_legendre(c)
    damping = weights / (1 - nodes * c)
    return np.stack([nodes, weights, damping, damping * nodes * c / (1 + nodes * c)])[:, :, None, None]


def _rule_error(c: float) -> float:
    return gauss_legendre(c)[2]


@cache
def segment_rule(c: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Nodes and weights on [0, 1] for the integrand of a preconditioned E, and their error relative to ||v||^2.

    With ||J||, ||J0|| <= c, (I + z E)^-1 E = (I + (1 - z) J0 + z J)^-1 (J - J0) is analytic where
    (|1 - z| + |z|) c < 1, inside an ellipse with the foci 0 and 1: the Bernstein ellipse with (rho + 1 / rho) / 2 =
    1 / c. On a smaller one, |1 - z| + |z| = s, it is at most 2 c / (1 - s c), and Gauss-Legendre with n + 1 nodes errs
    by (32 / 15) of that times rho^(-2 n) / (1 - rho^-2) (Trefethen 2008, Thm 4.5). A factor of two allows for a J0 of
    norm up to `segment_limit`.
    """
    c = max(c, LEAST_CONSTANT)
    s = 1 + 0.9 * (1 / c - 1)
    rho = s + math.sqrt(s * s - 1)
    size = 2 * (32 / 15) * 2 * c / (1 - s * c) / (1 - rho**-2)
    count = 1 + max(3, math.ceil(math.log(size / SEGMENT_ERROR) / (2 * math.log(rho))))
    return *_panels([0.0, 1.0], count, 0.0)[:2], size * rho ** (-2 * (count - 1))


def segment_limit(c: float) -> float:
    """Norm of J0, a little above c, up to which `segment_rule` of c holds: then 1 - s ||J0|| >= (1 - s c) / 2."""
    c = max(c, LEAST_CONSTANT)
    return c * (1 + (1 - c) / 20)


def _segment_nodes(c: float) -> np.ndarray:
    return _kept_segment_nodes(c)


@cache
def _kept_segment_nodes(c: float) -> np.ndarray:
    return np.stack(segment_rule(c)[:2])[:, :, None, None]


def _segment_error(c: float) -> float:
    return segment_rule(c)[2]


class Rule(NamedTuple):
    """A quadrature on [0, 1] for integrands with (I + t J)^-1, and bounds on that for any J of its kind.

    Attributes
    ----------
    t, weight : array (nodes, 1, 1)
        Nodes and weights.
    damping, crossing : array (nodes, 1, 1)
        Weights times bounds on ||(I + t J)^-1||, and on |u^T (I + t J)^-1 v| for orthogonal unit vectors u and v. With
        ||P|| <= k < 1, (1 - k^2) (I + P)^-1 - I = -(k^2 I + P) (I + P)^-1 has at most the norm k, since |k^2 x + P x|
        is at most k |x + P x| for all x. Hence |u^T (I + P)^-1 w| <= (|u^T w| + k |w|) / (1 - k^2) for a unit u.
    error : float
        Error of the rule.
    norm : float or None
        Bound on the norm of J itself, where it is below 1.
    """

    t: Array
    weight: Array
    damping: Array
    crossing: Array
    error: float
    norm: float | None = None


def contraction_rule(backend: Backend, like: Array, c: float) -> Rule:
    """The rule for ||J|| <= c, in the dtype of `like`."""
    table = backend.constant_array(_rule, c, like=like)
    t, weight, damping, crossing = (table[i, ...] for i in range(4))
    return Rule(t, weight, damping, crossing, backend.host_constant(_rule_error, c), c)


def preconditioned_rule(backend: Backend, like: Array, largest: float, c: float, norm: Array, growth: Array) -> Rule:
    """The rule for I + E = B (I + J), ||J|| <= c <= largest, ||B^-1 - I|| <= norm, ||B^-1|| <= growth.

    With A = B^-1 and P = (1 - t) (A - I) + t J, of norm k at most, (I + t E)^-1 = (I + P)^-1 A. For orthogonal u and v,
    |(A v)^T u| <= norm; and (I + t E)^-1 v = v - t (I + P)^-1 (J - A + I) v. The better of the two bounds is taken.

    Where `norm` is above `largest`, but for rounding, nothing is certified.
    """
    xp = backend.xp
    table = backend.constant_array(_segment_nodes, largest, like=like)
    t, weight = table[0, ...], table[1, ...]
    k = (1 - t) * norm + t * c
    damping = weight * growth / (1 - k)
    by_ball = weight * (norm + k * growth) / (1 - k) / (1 + k)
    by_step = weight * t * (norm + c) / (1 - k)
    crossing = xp.where(xp.sum(by_ball) <= xp.sum(by_step), by_ball, by_step)
    return Rule(t, weight, damping, crossing, backend.host_constant(_segment_error, largest))
