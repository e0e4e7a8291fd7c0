"""One method of a stochastic log-determinant at one batch: quadratic forms, and what their errors add up to."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches import Linearization
from iresnet_core.common import refuse_expansion, unit_roundoff
from iresnet_core.determinant.arnoldi import arnoldi_estimate, run_arnoldi
from iresnet_core.determinant.arnoldi_roulette import with_roulette
from iresnet_core.determinant.preconditioning import (
    PreconditionedProducts,
    preconditioned_form,
    preconditioner,
    require_reference,
)
from iresnet_core.determinant.probes import ProbeSource
from iresnet_core.determinant.request import Request, refuse_tolerance
from iresnet_core.determinant.roulette import Roulette, draw_lengths, roulette_form, roulette_on_remainder
from iresnet_core.determinant.series import (
    FormEstimate,
    Products,
    linear_share,
    mean_resolvent_bound,
    series_form,
    series_tail,
)
from iresnet_core.errors import (
    DerivativeError,
    InvalidArgumentError,
)
from iresnet_core.results import LogDet

__all__ = ["DEFAULT_BIAS", "Estimator", "Sums", "with_derivative"]

# Truncation error, in nats, that is allowed where no tolerance is given.
DEFAULT_BIAS = 1e-3
# Products of Arnoldi's method in a compiled program.
TRACED_PRODUCTS = 10
# The same for the mean-Jacobian method, which converges two to three times as fast.
TRACED_PRECONDITIONED = 4
# Certain terms before the roulette begins.
ROULETTE_TERMS = 4
# How many differences between probes the variance that is estimated from single probes is worth.
PRIOR_WEIGHT = 8


class Sums(NamedTuple):
    """Sums over the probes so far, (batch,), with their number and the products they took."""

    value: Array
    square: Array
    bias: Array
    variance: Array
    extra_variance: Array
    surrogate: Array
    probes: int
    products: int


class Estimator:
    """One method at one batch."""

    def __init__(
        self, backend: Backend, linearization: Linearization, x: Array, constant: float, method: str, request: Request
    ) -> None:
        self.backend, self.constant, self.method, self.request = backend, constant, method, request
        self.d = math.prod(x.shape[1:])
        self.errors = request.errors
        self.linearization, self.event = linearization, tuple(x.shape[1:])
        self.differentiable = backend.differentiates and backend.may_differentiate(linearization.value, x)
        u = unit_roundoff(backend, x.dtype)
        # Rounding perturbs every product by some u per layer.
        self.product_error = 8 * (linearization.depth + 2) * u
        # `trace` is known and added exactly, of J the share `linear` of it; its rounding is in `known_error`.
        self.trace: Array | None = None
        self.linear: Array | None = None
        self.remainder: Callable[[Array], Array] | None = None
        self.known_error: Any = 0.0
        self.products: Products
        if method == "mean-jacobian":
            self._precondition(x)
        else:
            self.products = Products(
                backend,
                linearization,
                self.event,
                constant,
                resolvent=self.differentiable,
                errors=request.errors or request.terms is None,
            )
            self._take_trace()
        rounding = self.product_error * self.d * mean_resolvent_bound(constant)
        target = DEFAULT_BIAS if request.tol is None else request.tol
        self.target = max(target - rounding, rounding)
        self.roulette = self._roulette()
        self.lengths: list[int] | None = None

    def _roulette(self) -> Roulette | None:
        """The chances of further products, where the answer is to have no bias; see `roulette`."""
        c = self.constant
        if self.method == "roulette":
            return Roulette(c, c)
        if not self.request.unbiased:
            return None
        return roulette_on_remainder(max(c, 1 - 1 / self.d) if self.method == "mean-jacobian" else c)

    def _take_trace(self) -> None:
        """Take the exact trace as a control variate, where it was asked for or is cheap; its share is a constant."""
        wanted, trace = self.request.control_variate, self.linearization.trace
        if wanted == "trace" and trace is None:
            raise DerivativeError(
                "control_variate='trace' needs a branch with a cheap exact trace: a Chain of Dense layers, or of "
                "convolutions that keep the extent, with at most two groups of entrywise slopes. Use 'auto' or 'none'."
            )
        if trace is not None and wanted != "none":
            whole = trace()
            self.linear = linear_share(self.backend.xp, self.backend.stop_gradient(whole), self.d, self.constant)
            self.trace = self.linear * whole

    def _precondition(self, x: Array) -> None:
        """Precondition by the mean Jacobian: log det(I + J) = -log det B + tr E + what is left to the probes."""
        backend, xp, request = self.backend, self.backend.xp, self.request
        if request.control_variate == "none":
            raise InvalidArgumentError("method 'mean-jacobian' takes the trace exactly; control_variate='none' is not.")
        if request.reference is None:
            with backend.no_grad():
                mean = preconditioner(backend, self.linearization, x, self.constant)
        else:
            mean = require_reference(request.reference, x)
        self.products = PreconditionedProducts(
            backend, self.linearization, self.event, self.constant, mean, resolvent=self.differentiable
        )
        assert self.linearization.preconditioned_trace is not None
        B = backend.stop_gradient(mean.inverse)
        exact, self.remainder = self.linearization.preconditioned_trace(B)
        constant = mean.log_determinant + xp.linalg.trace(xp.astype(B, xp.float64)) - self.d
        self.trace = exact + xp.astype(backend.stop_gradient(constant), exact.dtype)
        # ||B|| <= 1 / (1 - norm); a product with E rounds like one with B and one with J.
        inflation = (1 + self.constant) / (1 - backend.stop_gradient(mean.norm))
        self.product_error = 2 * self.product_error
        self.known_error = xp.astype(self.product_error * self.d * inflation, exact.dtype)
        self.inflation = xp.astype(inflation, exact.dtype)

    def forms(self, v: Array) -> FormEstimate:
        """Estimate v^T f(J) v for probes v (probes, batch, d)."""
        xp, terms = self.backend.xp, self.request.terms
        if self.backend.is_tracing(v, self.linearization.value):  # the probes may be all that is traced, or the weights
            refuse_tolerance(self.request)
            if terms is None:
                terms = self.backend.host_constant(traced_terms, self.method, self.constant, self.d)
        roulette, lengths = self.roulette, self.lengths
        if roulette is not None and lengths is None:
            lengths = draw_lengths(self.backend, v.shape[0], roulette, self.request.rng)
        chances: dict[str, Any] = {"lengths": lengths, "roulette": roulette}
        steps: dict[str, Any] = {"terms": terms, "enough": self._small_enough}
        if isinstance(self.products, PreconditionedProducts):
            form = preconditioned_form(self.products, v, **steps, **chances)
            form = form._replace(sensitivity=form.sensitivity * self.inflation)
            return form if self.remainder is None else _with_remainder(xp, form, v, self._remainder_image(v))
        if self.method == "arnoldi":
            process = run_arnoldi(self.products, v, goes_on=lengths is not None, **steps)
            # The forms are in float64.
            linear = None if self.linear is None else xp.astype(self.linear, xp.float64, copy=False)
            form = arnoldi_estimate(process, linear)
            return form if lengths is None else with_roulette(process, form, linear=linear, **chances)
        if roulette is None:
            return series_form(self.products, v, linear=self.linear, **steps)
        if self.method == "roulette":
            steps["terms"] = terms or ROULETTE_TERMS
        return roulette_form(self.products, v, linear=self.linear, **steps, **chances)

    def _remainder_image(self, v: Array) -> Array:
        """T^T B^T v for probes v: what the trace of E lacks."""
        assert self.remainder is not None
        return self.remainder(self.products.pulled_back(v))

    def _small_enough(self, bias: Array) -> bool:
        """Whether the truncation error, averaged over the probes, has met its target for every sample.

        A branch that breaks its constant would never get there, and is refused here.
        """
        self._refuse()
        xp = self.backend.xp
        return bool(xp.all(xp.mean(bias, axis=0) <= self.target))

    def add(self, sums: Sums | None, v: Array, kind: str) -> Sums:
        """Add the estimates of further probes."""
        xp = self.backend.xp
        with self.backend.no_grad():
            form = self.forms(v)
        self._refuse()
        surrogate = self._surrogate(form, v)
        if not self.errors:
            value = xp.sum(form.value, axis=0)
            unknown = xp.full_like(value, math.nan)
            new = Sums(value, unknown, unknown, unknown, unknown, surrogate, v.shape[0], form.products)
            return new if sums is None else Sums(*(a + b for a, b in zip(sums, new, strict=True)))
        # What the mean Jacobian leaves has few large directions, of which one probe knows little.
        few = self.d <= 4 or self.method == "mean-jacobian"
        variance = 2 * form.squared_image if few else _probe_variance(xp, form, self.d, kind)
        extra = xp.zeros_like(variance) if form.extra_variance is None else form.extra_variance
        bias = form.bias + self.product_error * form.sensitivity
        value, square, bias, variance, extra = (
            a[0, ...] if v.shape[0] == 1 else xp.sum(a, axis=0)
            for a in (form.value, form.value * form.value, bias, variance, extra)
        )
        new = Sums(value, square, bias, variance, extra, surrogate, v.shape[0], form.products)
        return new if sums is None else Sums(*(a + b for a, b in zip(sums, new, strict=True)))

    def _surrogate(self, form: FormEstimate, v: Array) -> Array:
        """Sum over the probes of w^T J v (batch,), whose derivative for fixed w is that of the value; else zeros."""
        xp = self.backend.xp
        if form.resolvent is None:
            return xp.zeros_like(form.value[0, ...])
        w = self.backend.stop_gradient(self.products.pulled_back(form.resolvent))
        left, right = (xp.reshape(a, (*a.shape[:2], *self.event)) for a in (w, v))
        if self.linearization.jvp is None:
            left, right = self.linearization.transposed_products(left), right
        else:
            right = self.linearization.products(right)
        total = xp.linalg.vecdot(xp.reshape(left, tuple(v.shape)), xp.reshape(right, tuple(v.shape)))
        if self.remainder is not None:
            total = total + xp.linalg.vecdot(v, self._remainder_image(v))
        return xp.sum(total, axis=0)

    def _refuse(self) -> None:
        """Refuse products that are not finite, or expand by more than the constant."""
        largest = self.products.largest_factor
        if largest is None or self.backend.is_tracing(largest):
            return
        refuse_expansion("a Jacobian product", float(largest), self.constant, self.product_error)

    def result(self, sums: Sums, source: ProbeSource) -> LogDet:
        """Average, and state the errors."""
        xp, p = self.backend.xp, sums.probes
        value = sums.value / p
        surrogate = sums.surrogate / p
        if self.trace is not None:
            value = value + self.backend.stop_gradient(self.trace)
            surrogate = surrogate + self.trace
        if self.differentiable:
            value = with_derivative(self.backend, value, surrogate)
        products = xp.full(value.shape, sums.products, dtype=xp.int32, device=device_of(value))
        if not self.errors:
            return LogDet(value, sums.bias, sums.bias, products, self.method)
        estimate = sums.value / p
        extra = sums.extra_variance / p
        variance = sums.variance / p
        # A probe may miss a dominating direction and see neither the value nor its variance; others do not.
        variance = xp.maximum(variance, 0.1 * xp.mean(variance))
        if p > 1:
            # What is seen is the sum of both: the noise of the probes and that of a roulette.
            seen = (sums.square - estimate * sums.value) / (p - 1)
            seen = xp.maximum(seen, xp.zeros_like(seen))
            trust = (p - 1) / (p - 1 + PRIOR_WEIGHT)
            of_roulette = xp.minimum(extra, seen)
            variance = trust * (seen - of_roulette) + (1 - trust) * variance
            extra = trust * of_roulette + (1 - trust) * extra
        variance = variance * source.remaining_variance(p) + extra
        return LogDet(value, xp.sqrt(variance / p), sums.bias / p + self.known_error, products, self.method)


def with_derivative(backend: Backend, value: Array, surrogate: Array) -> Array:
    """Return `value` with the first derivative of `surrogate`; a second one would be wrong, and is refused."""
    carrier = backend.first_order_only(surrogate)
    return backend.stop_gradient(value) + (carrier - backend.stop_gradient(surrogate))


def _with_remainder(xp: Any, form: FormEstimate, v: Array, image: Array) -> FormEstimate:
    """Add v^T (B T) v, `image` = (B T)^T v, to a form that has all of log(I + E) but for the trace without that."""
    combined = (xp.sqrt(form.squared_image) + xp.linalg.vector_norm(image, axis=-1)) ** 2
    return form._replace(value=form.value + xp.linalg.vecdot(v, image), squared_image=combined, squared_form=combined)


def traced_terms(method: str, constant: float, d: int) -> int | None:
    """Products a probe in a compiled program, which cannot look at its certificate; None: the roulette's default.

    Arnoldi's method meets `DEFAULT_BIAS` in ten on trained branches up to c = 0.99; its certificate says how far it
    came. The series takes what its a-priori bound asks for (report, Eq. 23).
    """
    if method == "arnoldi":
        return min(d, TRACED_PRODUCTS)
    if method == "mean-jacobian":
        return min(d, TRACED_PRECONDITIONED)
    if method == "series":
        n = 1
        while d * constant**n * series_tail(constant, n) > DEFAULT_BIAS:
            n += 1
        return n
    return None


def _probe_variance(xp: Any, form: FormEstimate, d: int, kind: str) -> Array:
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
