"""Log-determinants for training: two or three products per sample, and hardly any noise in value and gradient.

With J0 the Jacobian at the mean slopes of a batch, B = (I + J0)^-1 and I + E = B (I + J),

    log det(I + J) = log det(I + J0) + E_v[v^T (E - E^2 / 2 + E^3 / 3 - ...) v],
    d log det(I + J) = E_v[w^T dJ v], w = (I + J)^-T v = B^T (v - E^T v + (E^T)^2 v - ...).

E is small where the slopes differ little over the batch, so that two or three terms will do. The derivative has the
noise of v v^T all the same, of which the same form of J0 takes the larger part away (a control variate): for fixed B

    E_v[(B^T v)^T dJ0 v] - tr(B dJ0) = 0.

Both identities hold for every B and every J0, sample by sample; only the truncation of the series is an error, of the
order E^(m + 2) in the value and E^(m + 1) in the derivative for m transposed products. The last moment comes from the
product J v, which the derivative needs anyway. No error is estimated here: see `preconditioned_arnoldi` for that.
"""

import math
from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches import Control, Linearization
from iresnet_core.common import refuse_expansion, unit_roundoff, widest
from iresnet_core.determinant.forms import with_derivative
from iresnet_core.determinant.preconditioning import require_reference
from iresnet_core.results import LogDet

__all__ = ["CONTROLLED_PRODUCTS", "controlled_logdet"]

# Products with J^T for each probe, where nothing else is asked for.
CONTROLLED_PRODUCTS = 1


def controlled_logdet(
    backend: Backend,
    linearization: Linearization,
    x: Array,
    constant: float,
    flat: Array,
    *,
    products: int,
    reference: Any = None,
) -> tuple[Array, LogDet]:
    """Estimate the log-determinant and its derivative, without its errors.

    `flat` are the probes (probes, batch, d). The value g(x) comes with the estimate. `linearization` offers
    `mean_matrix` and `jvp`. The mean Jacobian behind B is that of the batch, or the one given as `reference`.
    """
    xp = backend.xp
    probes = flat.shape[0]
    v = xp.reshape(flat, (probes, *x.shape))
    joint = linearization.joint
    if joint is not None:
        recorded = False
        image, mean = xp.reshape(joint.products(v), tuple(flat.shape)), joint.mean_matrix()
    else:
        recorded = backend.differentiates and backend.may_differentiate(linearization.value, x)
        image = xp.reshape(linearization.products(v), tuple(flat.shape))
        assert linearization.mean_matrix is not None
        mean = linearization.mean_matrix()
    with backend.no_grad():
        fixed = backend.stop_gradient(image)
        _refuse_expansion(backend, flat, fixed, constant, linearization.depth)
        if reference is None:
            inverse, start = _inverse(backend, backend.stop_gradient(mean), x)
        else:
            known = require_reference(reference, x)
            inverse, start = (backend.stop_gradient(a) for a in (known.inverse, known.log_determinant))
        pulled = backend.rows_times(flat, inverse)
        first, w, u, series, sign = pulled, pulled, flat, None, 1.0
        for k in range(1, products + 1):
            pushed = linearization.transposed_products(xp.reshape(pulled, tuple(v.shape)))
            u = pulled - u + backend.stop_gradient(xp.reshape(pushed, tuple(flat.shape)))  # (E^T)^k v
            term = xp.linalg.vecdot(flat, u)
            series = term if series is None else series + (sign / k) * term
            sign = -sign
            pulled = backend.rows_times(u, inverse)
            w = w + sign * pulled
        term = xp.linalg.vecdot(pulled, flat + fixed) - xp.linalg.vecdot(u, flat)
        series = series + (sign / (products + 1)) * term
        value = xp.mean(series, axis=0) + xp.astype(start, series.dtype)
    g = linearization.value
    if probes > 1:
        w, first = w / probes, first / probes
    if recorded:
        value = _with_derivative(backend, image, mean, (flat, w, value, inverse, first))
    elif joint is not None:
        g, value = joint.recorded(value, w, lambda *known: _with_derivative(backend, *known), Control(inverse, first))
    unknown = xp.full_like(value, math.nan)
    count = xp.full(value.shape, probes * products, dtype=xp.int32, device=device_of(value))
    return g, LogDet(value, unknown, unknown, count, "mean-jacobian")


def _with_derivative(backend: Backend, image: Array, mean: Array | None, known: Sequence[Array]) -> Array:
    """The log-determinant with the derivative of the forms, summed over probes that carry their share."""
    xp = backend.xp
    flat, w, value, inverse, first = known
    assert mean is not None
    control = backend.rows_times(flat, xp.matrix_transpose(mean))
    forms = xp.linalg.vecdot(w, image) - xp.linalg.vecdot(first, control)
    trace = xp.sum(xp.matrix_transpose(inverse) * mean)
    return with_derivative(backend, value, xp.sum(forms, axis=0) + trace)


def _inverse(backend: Backend, J0: Array, x: Array) -> tuple[Array, Array]:
    """(I + J0)^-1 in the dtype of x, and log det(I + J0)."""
    xp, wide = backend.xp, widest(backend)
    A = xp.eye(J0.shape[-1], dtype=wide, device=device_of(x)) + xp.astype(J0, wide)
    inverse, log_determinant = backend.inverse_and_log_determinant(A)
    return xp.astype(inverse, x.dtype), log_determinant


def _refuse_expansion(backend: Backend, v: Array, image: Array, constant: float, depth: int) -> None:
    """Refuse products that are not finite, or expand by more than the constant."""
    if backend.is_tracing(image, v):
        return
    xp = backend.xp
    # Zero where the probe is zero: then so is its image.
    squares = xp.linalg.vecdot(image, image) / xp.maximum(xp.linalg.vecdot(v, v), _smallest(backend, v))
    rounding = 8 * (depth + 2) * unit_roundoff(backend, v.dtype)
    refuse_expansion("a Jacobian product", math.sqrt(float(xp.max(squares))), constant, rounding)


def _smallest(backend: Backend, v: Array) -> Array:
    xp = backend.xp
    return xp.full((), float(xp.finfo(v.dtype).smallest_normal), dtype=v.dtype, device=device_of(v))
