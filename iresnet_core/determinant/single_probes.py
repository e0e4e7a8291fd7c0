"""The variance of a quadratic form over its random probes, estimated from the vectors of each probe alone."""

from typing import Any

from iresnet_core.backends import Array
from iresnet_core.determinant.forms import FormEstimate

__all__ = ["probe_variance", "with_remainder"]


def with_remainder(xp: Any, form: FormEstimate, v: Array, image: Array) -> FormEstimate:
    """Add v^T (B T) v, `image` = (B T)^T v, to a form that has all of log(I + E) but for the trace without that."""
    combined = (xp.sqrt(form.squared_image) + xp.linalg.vector_norm(image, axis=-1)) ** 2
    return form._replace(value=form.value + xp.linalg.vecdot(v, image), squared_image=combined, squared_form=combined)


def probe_variance(xp: Any, form: FormEstimate, d: int, kind: str) -> Array:
    """Variance of v^T L v over the probes, L = f(J), estimated from each probe's own vectors; (probes, batch).

    Gaussian: 2 ||S||_F^2, S the symmetric part of L, ||S||_F^2 = E (||L v||^2 + v^T L^2 v) / 2. Rademacher: less the
    diagonal of S, of which at least (tr S)^2 / d is known from the value; the factor d / (d - 2) undoes the noise of
    the value's square. An uneven diagonal makes the estimate err upwards, and so does 2 ||L v||^2, which is taken where
    one probe says little.
    """
    square = form.squared_image
    symmetric = xp.maximum(0.5 * (square + form.squared_form), 0.1 * square)
    if kind == "rademacher":
        off = symmetric - form.value * form.value / d
        # The difference is that of two noisy numbers, and not trusted near zero.
        symmetric = xp.maximum(off * (d / (d - 2)), 0.02 * symmetric)
    return 2 * symmetric
