"""The truncated power series of the logarithm, with random probes (Behrmann et al. 2019, Section 3.2).

    v^T log(I + J) v = sum over k >= 1 of (-1)^(k+1) / k v^T J^k v

After n products with J^T the rest is at most ||v|| ||(J^T)^n v|| times the sum over j >= 1 of c^j / (n + j).
"""

from iresnet_core.backends import Array
from iresnet_core.determinant.estimator import DEFAULT_BIAS, ProbedMethod
from iresnet_core.determinant.forms import FormEstimate, JacobianProducts, Steps, Stops
from iresnet_core.determinant.power_series import MANY_TERMS, MOST_TERMS, PowerSeries
from iresnet_core.determinant.request import Problem
from iresnet_core.determinant.roulette import form_with_roulette
from iresnet_core.determinant.tails import series_tail

__all__ = ["SERIES"]

# Terms in a compiled program at most: each is a piece of the program.
COMPILED_TERMS = 256


class Series(ProbedMethod):
    """The truncated series: the cheapest products and two vectors per sample, but many products where c is near 1."""

    name = "series"

    def applies_to(self, problem: Problem) -> bool:
        """Never by itself: Arnoldi's method makes more of the same products."""
        return False

    def form(self, products: JacobianProducts, v: Array, linear: Array | None, steps: Steps) -> FormEstimate:
        """Sum the first `terms` terms for probes v (probes, batch, d), or as many as are accurate enough.

        After `MANY_TERMS` a thousandth of a nat a dimension is accurate enough, unless a tolerance was given: tails
        are long where c is near 1, and the noise of a probe is far above that there. `MOST_TERMS` end the sum at the
        latest.
        """
        if steps.lengths is not None:
            return form_with_roulette(products, v, linear, steps)
        c, terms, shortfall = products.constant, steps.terms, ""
        series, stops, xp = PowerSeries(products, v, linear), Stops(), products.backend.xp
        while True:
            series.step(products)
            n, scale = series.terms, series.scale()
            if n == MANY_TERMS:
                steps = steps._replace(target=steps.late_target)
            if steps.by_sample:
                bias = scale * products.backend.host_constant(series_tail, c, n)
                stops.note(xp, bias <= steps.target, series.value(), bias)
                if terms is None and stops.are_all(xp):
                    break
            # The tail is at least its first term: as long as that is too much, its bound need not be known.
            if n < (terms or MOST_TERMS) and (terms is not None or not steps.is_accurate(scale * (c / (n + 1)))):
                continue
            bias = scale * products.backend.host_constant(series_tail, c, n)
            if n == terms or (terms is None and steps.is_accurate(bias)):
                break
            if terms is None and n >= MOST_TERMS:
                shortfall = steps.missed(bias, n, "the most that are taken")
                break
        value, bias = stops.instead_of(xp, series.value(), bias)
        return FormEstimate(
            value=value,
            bias=bias,
            squared_image=series.squared_image(),
            squared_form=series.squared_form(),
            sensitivity=series.sensitivity(),
            extra_variance=None,
            products=n * v.shape[0],
            resolvent=series.resolvent,
            shortfall=shortfall,
            peak=series.peak(),
            fourth_moment=series.fourth_moment(),
        )

    @staticmethod
    def compiled_products(c: float, d: int) -> int:
        """As many as the a-priori bound asks for, up to a limit."""
        n = 1
        while n < COMPILED_TERMS and d * c**n * series_tail(c, n) > DEFAULT_BIAS:
            n += 1
        return n


SERIES = Series()
