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

The remainder is small after the certain products, so that the chance to look at it at all may be small too.
"""

from typing import NamedTuple

from iresnet_core.backends import Array
from iresnet_core.determinant.estimator import ProbedMethod
from iresnet_core.determinant.forms import (
    FormEstimate,
    JacobianProducts,
    Roulette,
    Steps,
)
from iresnet_core.determinant.power_series import MOST_TERMS, PowerSeries
from iresnet_core.determinant.request import Problem
from iresnet_core.determinant.tails import series_tail
from iresnet_core.errors import InvalidArgumentError

__all__ = ["LEAST_CHANCE", "ROULETTE", "form_with_roulette"]

# Certain terms of method "roulette".
CERTAIN_TERMS = 4
# Products per probe at most, of the certain terms and the roulette together. Beyond them c^k is below rounding up to
# c = 0.998, and nothing is left; nearer 1 the bound on the bias says what is.
MOST_PRODUCTS = 2**14
# Products after which it is looked at whether what is left is down to rounding.
PRODUCTS_BETWEEN_LOOKS = 16
# Lengths with a smaller chance than this cannot have been drawn, and dividing by it would overflow.
LEAST_CHANCE = 1e-200


def form_with_roulette(products: JacobianProducts, v: Array, linear: Array | None, steps: Steps) -> FormEstimate:
    """Series with Russian roulette on its tail (Chen et al. 2019, Eq. 6): unbiased.

    After the certain terms, term ``terms + j`` is computed with probability P_j and divided by it. The lengths are
    descending: the probes with the longest tails come first, so that those which are done drop off the end of the
    stack.

    The series ends, whatever the lengths, where the bound on what is left is down to rounding for every probe and
    sample, or after `MOST_PRODUCTS`. Where it ends does not depend on the lengths of the probe itself, so that the mean
    over them is the sum up to there: the bias is what is left then, at most the larger of rounding and the a-priori
    bound after `MOST_PRODUCTS`.
    """
    xp, c, lengths, roulette = products.backend.xp, products.constant, steps.lengths, steps.roulette
    assert lengths is not None
    assert roulette is not None
    if max(lengths) and roulette.chance(max(lengths)) < LEAST_CHANCE:
        raise InvalidArgumentError(f"lengths of {max(lengths)} have no chance under the constant {roulette.keep:.3g}.")
    series = PowerSeries(products, v, linear)
    zero = xp.zeros_like(series.length_of_v)
    sums = _Sums(zero, zero, zero)
    while steps.terms is None or series.terms < steps.terms:
        sums = sums.plus(series.step(products), 1.0)
        if steps.terms is None:
            tail = products.backend.host_constant(series_tail, c, series.terms)
            if steps.is_accurate(series.scale() * tail) or series.terms >= MOST_TERMS:
                break
    certain = series.terms
    count = certain * v.shape[0]
    limit = max(MOST_PRODUCTS, certain)
    eps = 8 * float(xp.finfo(v.dtype).eps)
    traced = products.backend.is_tracing(v, products.linearization.value)
    parts = []
    while True:
        further = series.terms - certain
        alive = sum(1 for n in lengths if n > further)
        following = roulette.chance(further + 1)
        if alive < series.v.shape[0]:
            ended = _Sums(*(a[alive:, ...] for a in sums))
            parts.append(_ended(c, roulette.keep, following, series.split(alive), ended))
            sums = _Sums(*(a[:alive, ...] for a in sums))
        if not alive:
            break
        looks = further % PRODUCTS_BETWEEN_LOOKS == 0 and not traced
        if series.terms >= limit or (looks and _is_rounding(series, eps)):
            parts.append(_ended(c, roulette.keep, following, series, sums))
            break
        count += alive
        sums = sums.plus(series.step(products, following), following)
    value, bias, image, form, growth, variance, resolvent, peak, fourth = (
        None if parts[0][i] is None else xp.concat([part[i] for part in reversed(parts)]) for i in range(9)
    )
    left = max(eps, c**limit * products.backend.host_constant(series_tail, c, limit))
    return FormEstimate(
        value=value,
        bias=bias + left * xp.linalg.vecdot(v, v),
        squared_image=image,
        squared_form=form,
        sensitivity=growth,
        extra_variance=variance,
        products=count,
        resolvent=resolvent,
        peak=peak,
        fourth_moment=fourth,
    )


def _is_rounding(series: PowerSeries, eps: float) -> bool:
    """Whether the bound on what is left of every probe is down to rounding."""
    xp, tail = series.xp, series_tail(series.constant, series.terms)
    return bool(xp.all(series.length * tail <= eps * series.length_of_v))


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


def _ended(c: float, keep: float, following: float, series: PowerSeries, sums: _Sums) -> tuple[Array | None, ...]:
    """The fields of a FormEstimate, but products, for probes whose roulette has ended.

    Terms that were computed enter the variance as they are. Those that were not are taken to be a r^j, j = 1, 2, ...,
    a = ||v|| ||(J^T)^n v|| / (n + 1), with r half-way from the last ratio of lengths to c, which it cannot exceed.
    `following` is the chance of the first of them.
    """
    xp = series.xp
    a = series.scale() / (series.terms + 1)
    previous, last = series.previous_length, series.length
    before = xp.where(previous > 0, previous, xp.ones_like(a))
    r = 0.5 * (c + xp.minimum(last / before, xp.full_like(a, c)))
    squares = a * a * r * r / following / (1 - r * r / keep) if keep else xp.zeros_like(a)
    crossed = 2 * xp.abs(sums.weighted) * a * r / (1 - r) + 2 * squares * r / (1 - r)
    return (
        sums.value,
        xp.zeros_like(a),
        series.squared_image(),
        series.squared_form(),
        series.sensitivity(),
        xp.maximum(sums.variance, xp.zeros_like(squares)) + squares + crossed,
        series.resolvent,
        series.peak(),
        series.fourth_moment(),
    )


class RussianRoulette(ProbedMethod):
    """The series with Russian roulette, as residual flows are trained with: never biased, but noisy."""

    name = "roulette"
    always_unbiased = True

    def applies_to(self, problem: Problem) -> bool:
        """Never by itself: `unbiased` takes the bias from the other methods with less noise."""
        return False

    def roulette(self, c: float, d: int, unbiased: bool) -> Roulette:
        """After the certain terms, each product has the chance c to be followed by another."""
        return Roulette(c, c)

    def form(self, products: JacobianProducts, v: Array, linear: Array | None, steps: Steps) -> FormEstimate:
        """Sum the terms that the lengths tell."""
        return form_with_roulette(products, v, linear, steps._replace(terms=steps.terms or CERTAIN_TERMS))

    @staticmethod
    def compiled_products(c: float, d: int) -> None:
        """The certain terms are those of an eager call."""
        return None


ROULETTE = RussianRoulette()
