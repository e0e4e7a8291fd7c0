"""Arnoldi's method for quadratic forms v^T f(J) v: the estimate from a Krylov basis, and the same without bias.

``krylov`` has the process and its certificate, ``roulette`` the proof that the further steps leave no bias.
"""

import functools
import operator
from typing import Any, NamedTuple

from iresnet_core.backends import Array
from iresnet_core.common import round_up
from iresnet_core.determinant.estimator import ProbedMethod
from iresnet_core.determinant.forms import FormEstimate, JacobianProducts, Roulette, Steps
from iresnet_core.determinant.hessenberg import resolvent_coefficients, spectral_measure
from iresnet_core.determinant.krylov import ArnoldiProcess, run_arnoldi
from iresnet_core.determinant.request import Problem, Request
from iresnet_core.determinant.roulette import LEAST_CHANCE
from iresnet_core.errors import InvalidArgumentError

__all__ = ["ARNOLDI", "arnoldi_estimate", "with_roulette"]

# Products per probe in a compiled program. Trained branches meet the default accuracy in ten up to c = 0.99; the
# certificate says how far they came.
COMPILED_PRODUCTS = 10
# Products per probe where nobody looks at the errors.
PRODUCTS_WITHOUT_ERRORS = 4
# Eigenvalue below which the logarithm is not taken: that of a symmetric part may be below -1 where E is not symmetric.
LEAST_EIGENVALUE = -0.999999
# Residual, relative to ||v||, below which the resolvent is taken to have converged.
CONVERGED_RESIDUAL = 1e-9


class Arnoldi(ProbedMethod):
    """Arnoldi's method: a third of the products of the series or fewer, for any branch; memory for their basis."""

    name = "arnoldi"

    def applies_to(self, problem: Problem) -> bool:
        """Always."""
        return True

    def form(self, products: JacobianProducts, v: Array, linear: Array | None, steps: Steps) -> FormEstimate:
        """Estimate v^T f(J) v for probes v (probes, batch, d); one product per step."""
        process = run_arnoldi(products, v, steps)
        if linear is not None:  # the process computes in float64
            linear = process.xp.astype(linear, process.xp.float64, copy=False)
        form = arnoldi_estimate(process, linear)
        return form if steps.lengths is None else with_roulette(process, form, linear, steps)

    @staticmethod
    def compiled_products(c: float, d: int) -> int:
        """A fixed number, at most d."""
        return min(d, COMPILED_PRODUCTS)

    def default_products(self, request: Request, d: int) -> int | None:
        """A few where nobody looks at the errors; else as many as they ask for."""
        return None if request.errors else min(PRODUCTS_WITHOUT_ERRORS, d)


ARNOLDI = Arnoldi()


def arnoldi_estimate(process: ArnoldiProcess, linear: Array | None) -> FormEstimate:
    """Return the form that the steps so far give, with its errors where they are needed."""
    products, xp, columns, m = process.products, process.xp, process.columns, process.steps
    v = process.v
    square = xp.astype(process.v_length, xp.float64, copy=False) ** 2
    value, bound = process.integral.logarithm(), None
    if products.needs_errors:
        value, bound = process.stops.instead_of(xp, value, process.bound())
    value = value if linear is None else value - linear * columns[0][0]

    def scaled(a: Any) -> Array:
        return xp.astype(square * a, v.dtype, copy=False)

    resolvent = resolvent_error = None
    if products.needs_gradient:
        y, residual = resolvent_coefficients(xp, columns)
        y = y if linear is None else [y[0] - linear, *y[1:]]  # the first vector of the basis is v / ||v||
        resolvent = process.combination(y)
        resolvent_error = xp.astype(residual, v.dtype) * process.v_length / (1 - products.constant)
    if not products.needs_errors:
        return FormEstimate.without_errors(xp, scaled(value), m * v.shape[0], resolvent)
    column, row, sensitivity = process.integral.mean_resolvent()
    image = [_dot([columns[j][i] for j in range(max(0, i - 1), m)], column[max(0, i - 1) :]) for i in range(m + 1)]
    if linear is not None:
        image[:2] = [entry - linear * h for entry, h in zip(image, columns[0], strict=False)]
    squared_image = scaled(_dot(image, image))
    squared_form = squared_image
    if products.tells_forms:
        pulled = [_dot([columns[j][i] for i in range(min(j + 2, m))], row) for j in range(m)]
        if linear is not None:
            pulled = [entry - linear * columns[j][0] for j, entry in enumerate(pulled)]
        squared_form = scaled(_dot(pulled, image))
    peak, fourth = _peak_and_fourth_moment(process, linear)
    return FormEstimate(
        value=scaled(value),
        bias=round_up(products.backend, square * bound, v.dtype),
        squared_image=squared_image,
        squared_form=squared_form,
        sensitivity=scaled(sensitivity),
        extra_variance=None,
        products=m * v.shape[0],
        resolvent=resolvent,
        resolvent_error=resolvent_error,
        shortfall=process.shortfall,
        peak=xp.astype(peak, v.dtype),
        fourth_moment=scaled(fourth),
    )


def _peak_and_fourth_moment(process: ArnoldiProcess, linear: Array | None) -> tuple[Array, Array]:
    """See `FormEstimate`; the fourth moment is relative to ||v||^2."""
    xp = process.xp
    theta, weights = spectral_measure(xp, process.columns)
    value = xp.log1p(xp.maximum(theta, xp.full_like(theta, LEAST_EIGENVALUE)))
    if linear is not None:
        value = value - (linear[..., None] if hasattr(linear, "shape") else linear) * theta
    centred = value - xp.sum(weights * value, axis=-1, keepdims=True)
    return xp.max(value**2, axis=-1), xp.sum(weights * centred**4, axis=-1)


def _dot(a: list[Array], b: list[Array]) -> Array:
    """Sum of the products of entries, as far as both lists go."""
    return functools.reduce(operator.add, map(operator.mul, a, b))


class _Tail(NamedTuple):
    """Weighted sums over the further steps, (probes, batch): of the form, and of the coefficients of the resolvent."""

    value: Array
    y: list[Array]


def with_roulette(
    process: ArnoldiProcess,
    form: FormEstimate,
    linear: Array | None,
    steps: Steps,
    ceiling: Array | None = None,
) -> FormEstimate:
    """Add further steps by roulette to a form, from the process that gave it.

    `lengths` (probes,), descending, are the numbers of further steps. They end where the certificate is down to
    rounding, or after d steps, when the form is exact: no later step would add anything. Of two estimates the one
    with the smaller certificate counts; where the certificate is above `ceiling`, relative to ||v||^2, the estimate is
    zero and `ceiling` bounds its error. The resolvent, from the same steps, has no bias either: the residual of GMRES
    falls from step to step, to zero after d.
    """
    lengths, roulette = steps.lengths, steps.roulette
    assert lengths is not None
    assert roulette is not None
    products, xp, dtype = process.products, process.xp, process.v.dtype
    backend = products.backend
    traced = backend.is_tracing(process.v, products.linearization.value)
    floor = process.integral.error + 8 * process.eps
    best, bound = process.form(linear), process.bound()
    if ceiling is not None:
        usable = bound <= ceiling  # False for NaN
        best, bound = xp.where(usable, best, xp.zeros_like(best)), xp.where(usable, bound, ceiling)
    start = best
    square = xp.astype(process.v_length, xp.float64) ** 2
    size, r = _remaining(process, bound)
    variance = _variance(xp, size, r, roulette) * square**2 if roulette.first else xp.zeros_like(square)
    y, residual = resolvent_coefficients(xp, process.columns) if products.needs_gradient else ([], None)
    tail = _Tail(xp.zeros_like(best), [xp.zeros_like(entry) for entry in y])
    count, certain, done = form.products, process.steps, []
    for j in range(1, max(lengths) + 1):
        alive = sum(1 for n in lengths if n >= j)
        if alive < best.shape[0]:
            done.append(_finished(process, tail, alive))
            process.keep(alive)
            tail = _Tail(tail.value[:alive, ...], [a[:alive, ...] for a in tail.y])
            best, bound, y = best[:alive, ...], bound[:alive, ...], [a[:alive, ...] for a in y]
            residual = None if residual is None else residual[:alive, ...]
        if certain + j > process.d or (not traced and _converged(xp, bound, residual, floor)):
            break
        chance = roulette.chance(j)
        if chance < LEAST_CHANCE:
            raise InvalidArgumentError(f"lengths of {max(lengths)} have no chance under the rate {roulette.keep:.3g}.")
        process.step()
        count += alive
        new, new_bound = process.form(linear), process.bound()
        better = (new_bound < bound) & (bound > floor)
        new = xp.where(better, new, best)
        tail = tail._replace(value=tail.value + (new - best) / chance)
        best, bound = new, xp.where(better, new_bound, bound)
        if products.needs_gradient:
            before = [*y, xp.zeros_like(y[0])]
            y, residual = resolvent_coefficients(xp, process.columns)
            sums = [*tail.y, xp.zeros_like(y[0])]
            tail = tail._replace(y=[s + (a - b) / chance for s, a, b in zip(sums, y, before, strict=True)])
    done.append(_finished(process, tail, 0))
    value = xp.concat([part[0] for part in reversed(done)])
    resolvent = form.resolvent
    if resolvent is not None:
        resolvent = resolvent + xp.concat([part[1] for part in reversed(done)])
    return form._replace(
        value=xp.astype(square * (start + value), dtype),
        bias=round_up(backend, floor * square, dtype),
        extra_variance=xp.astype(variance, dtype),
        products=count,
        resolvent=resolvent,
        resolvent_error=None,
    )


def _converged(xp: Any, bound: Array, residual: Array | None, floor: float) -> bool:
    """Whether neither form nor resolvent can change beyond rounding; normal equations leave a residual of their own."""
    if residual is not None and not bool(xp.all(residual <= max(floor, CONVERGED_RESIDUAL))):
        return False
    return bool(xp.all(bound <= floor))


def _finished(process: ArnoldiProcess, tail: _Tail, begin: int) -> tuple[Array, Array | None]:
    """What the roulette gave to the probes from `begin` on: of the form, and of the resolvent."""
    if not tail.y:
        return tail.value[begin:, ...], None
    return tail.value[begin:, ...], process.combination(tail.y)[begin:, ...]


def _remaining(process: ArnoldiProcess, bound: Array) -> tuple[Array, Array]:
    """Estimates of what is left after the certain steps, relative to ||v||^2, and of the ratio by which it falls.

    After several steps they are taken to go on like a r^j, a the last of them and r half-way from the last ratio of
    certificates to c. One step says nothing of that, but the vector v_2 behind it is orthogonal to v_1 = v / ||v||, so
    that v_1^T (I + t J^T)^-1 v_2 = -t v_1^T J^T (I + t J^T)^-1 v_2. With y(t) = 1 / (1 + t a) what is left is

        h integral of y(t) t v_1^T J^T (I + t J^T)^-1 v_2,

    whose size is at most h max(1, 1 / (1 + a)) times the integral of t r / (1 - t r), which is -log(1 - r) / r - 1, if
    no product on the way grows by more than r. The probe sees s = ||J^T v|| / ||v||, the root mean square of the
    singular values, and no singular value is above c: r is their geometric mean (for a preconditioned E, of which c
    says nothing, s itself). That is more than what is left of a symmetric J, for which v_1^T J^T v_2 = h; without
    symmetry it is much less. The certificate bounds the estimate.
    """
    xp, integral, c = process.xp, process.integral, process.products.constant
    limit: Any = xp.full_like(bound, c)
    if process.steps == 1:
        a, h = process.columns[0]
        r = xp.minimum(xp.sqrt(a * a + h * h + 1e-12), limit)
        r = xp.sqrt(r * c) if process.products.tells_forms else r
        size = h * xp.maximum(0 * a + 1, 1 / (1 + a)) * (-xp.log1p(-r) / r - 1)
    else:
        last, before = integral.last_gain(), integral.last_certificate()
        ratio = xp.where(before > 0, integral.residual_certificate() / xp.where(before > 0, before, limit + 1), limit)
        ratio = xp.where((ratio >= 0) & (ratio < c), ratio, limit)
        r = 0.5 * (ratio + c)
        size = xp.abs(last) * r / (1 - r)
    size = xp.minimum(bound, size)
    return xp.where(xp.isfinite(size), size, bound), r


def _variance(xp: Any, size: Array, r: Array, roulette: Roulette) -> Array:
    """Variance of the roulette for remainders R_j = `size` r^j, see `roulette`; r counts for at most its rate.

    With q = r^2 / keep the sum over j >= 1 of (1 / P_(j+1) - 1 / P_j) r^(2 j) is (1 - keep) / first q / (1 - q).
    """
    first, keep = roulette
    q = xp.minimum(r * r / keep, xp.full_like(r, keep))
    return size * size * (1 / first - 1 + (1 - keep) / first * q / (1 - q))
