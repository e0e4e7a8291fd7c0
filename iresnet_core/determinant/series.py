"""The truncated power series of the logarithm, with random probes (Behrmann et al. 2019, Section 3.2).

    v^T log(I + J) v = sum over k >= 1 of (-1)^(k+1) / k v^T J^k v

After n products with J^T the rest is at most ||v|| ||(J^T)^n v|| times the sum over j >= 1 of c^j / (n + j).
"""

from iresnet_core.backends import Array
from iresnet_core.determinant.estimator import DEFAULT_BIAS, ProbedMethod
from iresnet_core.determinant.forms import (
    FormEstimate,
    JacobianProducts,
    Steps,
    sensitivity,
    series_tail,
    squared_form,
)
from iresnet_core.determinant.request import Problem
from iresnet_core.determinant.roulette import form_with_roulette

__all__ = ["SERIES"]


class Series(ProbedMethod):
    """The truncated series: the cheapest products and two vectors a sample, but many products where c is near 1."""

    name = "series"

    def applies_to(self, problem: Problem) -> bool:
        """Never by itself: Arnoldi's method makes more of the same products."""
        return False

    def form(self, products: JacobianProducts, v: Array, linear: Array | None, steps: Steps) -> FormEstimate:
        """Sum the first `terms` terms for probes v (probes, batch, d), or as many as are accurate enough.

        The a-priori bound, c^n in place of ||(J^T)^n v|| / ||v||, ends the sum at the latest.
        """
        if steps.lengths is not None:
            return form_with_roulette(products, v, linear, steps)
        xp, c, terms = products.backend.xp, products.constant, steps.terms
        v_length = xp.linalg.vector_norm(v, axis=-1)
        lengths, moments = [v_length], []
        share = None if linear is None else (1 - linear)[..., None]  # of J v, where theta J v is subtracted
        power, resolvent, n = v, v if share is None else share * v, 0
        while True:
            n += 1
            power, length = products(power, lengths[-1])  # (J^T)^n v
            if n == 1:
                log_times_v = power if share is None else share * power
            else:
                log_times_v = log_times_v + (-1.0) ** (n + 1) / n * power
            if products.needs_gradient:
                resolvent = resolvent + (-1.0) ** n * power  # (I + J^T)^-1 v
            lengths.append(length)
            moments.append(xp.linalg.vecdot(v, power))
            # The tail is at least its first term: as long as that is too much, its sum need not be known.
            if n != terms and (terms is not None or not steps.is_accurate(v_length * length * (c / (n + 1)))):
                continue
            bias = v_length * length * products.backend.host_constant(series_tail, c, n)
            if n == terms or steps.is_accurate(bias):
                break
        return FormEstimate(
            value=xp.linalg.vecdot(v, log_times_v),
            bias=bias,
            squared_image=xp.linalg.vecdot(log_times_v, log_times_v),
            squared_form=squared_form(products.backend, moments, linear, log_times_v),
            sensitivity=sensitivity(xp, lengths, c),
            extra_variance=None,
            products=n * v.shape[0],
            resolvent=resolvent if products.needs_gradient else None,
        )

    def compiled_products(self, c: float, d: int) -> int:
        """As many as the a-priori bound asks for."""
        n = 1
        while d * c**n * series_tail(c, n) > DEFAULT_BIAS:
            n += 1
        return n


SERIES = Series()
