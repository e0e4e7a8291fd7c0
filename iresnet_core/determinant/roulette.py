"""Russian roulette on what a quadratic form leaves out, so that it has no bias.

Estimates L_m of L = v^T f(J) v from m products converge to it. With a random number N of further products,
independent of v,

    L_m + sum over j = 1 .. N of (L_(m+j) - L_(m+j-1)) / P_j,    P_j = P(N >= j),

has the mean L for every probe. With the remainders R_j = L - L_(m+j) and the steps D_j = R_(j-1) - R_j, for which
D_j^2 + 2 D_j R_j = R_(j-1)^2 - R_j^2, its variance over N is

    sum over j, k of D_j D_k (1 / P_min(j,k) - 1)
        = sum over j of (1 / P_j - 1) (R_(j-1)^2 - R_j^2)
        = (1 / P_1 - 1) R_0^2 + sum over j >= 1 of (1 / P_(j+1) - 1 / P_j) R_j^2.

Here P_j = first keep^(j-1), and keep follows from the certified constant c:

- Series and Arnoldi's method: |R_j| <= C c^j by their a-priori bounds. keep = c, above c^2, makes the sum converge.
- Arnoldi's method for a preconditioned E: no bound that falls with j is known, but L_d is exact, and of two estimates
  the one with the smaller certificate counts, so that |R_j| never exceeds the certificate b of R_0. keep >= 1 - 1/d
  keeps 1 / P_j below e / first for all j < d, and the variance below e b^2 / first.

The remainder is small after the certain products, hence `FIRST`, the chance to look at it at all, may be small too.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.determinant.series import FormEstimate, PowerSeries, Products, series_tail
from iresnet_core.errors import InvalidArgumentError

__all__ = ["Roulette", "draw_lengths", "roulette_form", "roulette_on_remainder"]

# Chance that a certified remainder is looked at.
FIRST = 0.125


class Roulette(NamedTuple):
    """Numbers N of further products with P(N >= j) = first keep^(j-1)."""

    first: float
    keep: float

    def chance(self, j: int) -> float:
        """P(N >= j)."""
        return 1.0 if j <= 0 else self.first * self.keep ** (j - 1)


def roulette_on_remainder(keep: float) -> Roulette:
    """The roulette after products that leave little."""
    return Roulette(min(FIRST, keep), keep)


def draw_lengths(backend: Backend, probes: int, roulette: Roulette, rng: Any) -> list[int]:
    """Numbers of further products for every probe, in descending order; drawn on the host."""
    first, keep = roulette
    if first <= 0:
        return [0] * probes
    uniforms = 1.0 - backend.uniform((probes,), rng)
    return sorted(
        (0 if u > first else 1 + math.floor(math.log(u / first) / math.log(keep)) for u in uniforms), reverse=True
    )


def roulette_form(
    multiply: Products,
    v: Array,
    *,
    linear: Array | None,
    terms: int | None,
    lengths: list[int],
    roulette: Roulette,
    enough: Callable[[Array], bool],
) -> FormEstimate:
    """Series with Russian roulette on its tail (Chen et al. 2019, Eq. 6): unbiased.

    After `terms` certain terms, or as many as make ``enough(bound)`` true of the truncation, term ``terms + j`` is
    computed with probability P_j and divided by it. `lengths` (probes,), descending, are the numbers of further terms:
    the probes with the longest tails come first, so that those which are done drop off the end of the stack.
    """
    xp, c = multiply.backend.xp, multiply.constant
    series = PowerSeries(multiply, v, linear)
    zero = xp.zeros_like(series.length)
    sums = _Sums(zero, zero, zero)
    while terms is None or series.terms < terms:
        series.step(multiply)
        sums = sums.plus(series.term(), 1.0)
        if terms is None:
            tail = multiply.backend.host_constant(series_tail, c, series.terms)
            if enough(series.v_length * series.length * tail):
                break
    certain = series.terms
    products = certain * v.shape[0]
    parts = []
    while True:
        further = series.terms - certain
        alive = sum(1 for n in lengths if n > further)
        following = roulette.chance(further + 1)
        if alive and following < 1e-200:
            raise InvalidArgumentError(
                f"lengths of {max(lengths)} have no chance under the constant {roulette.keep:.3g}."
            )
        if alive < series.v.shape[0]:
            ended = _Sums(*(a[alive:, ...] for a in sums))
            parts.append(_ended(xp, c, roulette.keep, following, series.keep(alive), ended))
            sums = _Sums(*(a[:alive, ...] for a in sums))
        if not alive:
            break
        products += alive
        series.step(multiply, following)
        sums = sums.plus(series.term(), following)
    value, bias, image, form, sensitivity, variance, resolvent = (
        None if parts[0][i] is None else xp.concat([part[i] for part in reversed(parts)]) for i in range(7)
    )
    return FormEstimate(value, bias, image, form, sensitivity, variance, products, resolvent)


class _Sums(NamedTuple):
    """The weighted series t_k / P_k, and its variance over the roulette for a fixed probe.

    Var = sum t_k^2 (1 / P_k - 1) + 2 sum over j < k of t_j t_k (1 / P_j - 1), with P_k the chance of term k; `weighted`
    is the inner sum so far.
    """

    value: Array
    variance: Array
    weighted: Array

    def plus(self, term: Array, chance: float) -> "_Sums":
        """Add a term that had this chance of being computed."""
        odds = 1 / chance - 1
        return _Sums(
            self.value + term / chance,
            self.variance + term * term * odds + 2 * term * self.weighted,
            self.weighted + term * odds,
        )


def _ended(
    xp: Any, c: float, keep: float, following: float, series: PowerSeries, sums: _Sums
) -> tuple[Array | None, ...]:
    """The fields of a FormEstimate, but products, for probes whose roulette has ended.

    Terms that were computed enter the variance as they are. Those that were not are taken to be a r^j, j = 1, 2, ...,
    a = ||v|| ||(J^T)^n v|| / (n + 1), with r half-way from the last ratio of lengths to c, which it cannot exceed.
    `following` is the chance of the first of them.
    """
    a = series.v_length * series.length / (series.terms + 1)
    before = xp.where(series.previous > 0, series.previous, xp.ones_like(a))
    r = 0.5 * (c + xp.minimum(series.length / before, xp.full_like(a, c)))
    squares = a * a * r * r / following / (1 - r * r / keep) if keep else xp.zeros_like(a)
    crossed = 2 * xp.abs(sums.weighted) * a * r / (1 - r) + 2 * squares * r / (1 - r)
    variance = xp.maximum(sums.variance, xp.zeros_like(squares)) + squares + crossed
    squared_image = xp.linalg.vecdot(series.image, series.image)
    bias = xp.zeros_like(a)
    return sums.value, bias, squared_image, series.squared_form(), series.sensitivity(c), variance, series.resolvent
