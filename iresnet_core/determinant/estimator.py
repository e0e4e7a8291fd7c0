"""Log-determinants from random probes: what the methods with probes share, and how their errors add up."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from iresnet_core.backends import Array, device_of
from iresnet_core.common import flatten, refuse_expansion, unit_roundoff
from iresnet_core.determinant.forms import (
    FormEstimate,
    JacobianProducts,
    Roulette,
    Steps,
    linear_share,
    mean_resolvent_bound,
    with_derivative,
)
from iresnet_core.determinant.probes import DrawnProbes, ExplicitProbes, ProbeSource, make_source
from iresnet_core.determinant.request import (
    Method,
    Problem,
    Request,
    given_lengths,
    given_probes,
    refuse_tolerance,
)
from iresnet_core.determinant.sample_seed import SampleSeed
from iresnet_core.determinant.single_probes import probe_variance, widened, with_remainder
from iresnet_core.determinant.tolerance import MOST_PROBES, Found, above_its_floor, next_goal, too_many_probes
from iresnet_core.determinant.trace_control import expands_trace, known_trace
from iresnet_core.errors import DerivativeError, InvalidArgumentError, NotConvergedError
from iresnet_core.results import LogDet

__all__ = ["DEFAULT_BIAS", "FIRST_CHANCE", "Prepared", "ProbedMethod"]

# Truncation error, in nats, that is allowed where no tolerance is given.
DEFAULT_BIAS = 1e-3
# Chance that a roulette takes a product at all where the certain ones leave little.
FIRST_CHANCE = 0.125
# How many differences between probes the variance that is estimated from single probes is worth.
PRIOR_WEIGHT = 8
# A tolerance is not believed to be met by fewer probes than this: all of fewer may miss a dominating direction.
FEWEST_PROBES = 8
# Products that a probe is taken to cost where the exact answer is weighed against more probes for single samples: a
# number that no other sample of the batch changes.
TYPICAL_PRODUCTS = 4
# Probes x samples, and their entries, that are worked on at a time.
VECTORS_AT_A_TIME, ENTRIES_AT_A_TIME = 2**12, 2**22
# The Rademacher variance needs more dimensions than this to be told from one probe.
FEW_DIMENSIONS = 4


class Prepared(NamedTuple):
    """What a method knows at a batch before the first probe.

    Attributes
    ----------
    products : JacobianProducts
        The products that its forms are made of.
    trace : array (batch,), optional
        The part of the answer that is known without probes, and differentiated.
    linear : array (batch,), optional
        The share of the linear term that the forms leave out, since `trace` has it.
    remainder : callable, optional
        u -> T^T u for stacks u, where `trace` lacks the trace of B T, see `SlopeTrace`.
    product_error : float
        Relative rounding error of a product.
    known_error : float or array (batch,)
        Rounding error of `trace`.
    gradient_by_probes : bool
        Whether `trace` and `remainder` have no derivative, so that the probes estimate all of it.
    """

    products: JacobianProducts
    trace: Array | None
    linear: Array | None
    product_error: float
    remainder: Callable[[Array], Array] | None = None
    known_error: Any = 0.0
    gradient_by_probes: bool = False


class ProbedMethod(Method):
    """A method that averages quadratic forms of random probes.

    One form is all that a new method has to add; the others say what is particular to it.
    """

    has_few_directions = False

    @abstractmethod
    def form(self, products: JacobianProducts, v: Array, linear: Array | None, steps: Steps) -> FormEstimate:
        """Estimate v^T f(J) v with its errors for probes v (probes, batch, d)."""

    @staticmethod
    @abstractmethod
    def compiled_products(c: float, d: int) -> int | None:
        """Products per probe in a compiled program, which cannot look at its certificate; None: as in an eager call."""

    def default_products(self, request: Request, d: int) -> int | None:
        """Products per probe if `terms` does not say; None: as many as the accuracy takes."""
        return None

    def rate(self, c: float, d: int) -> float:
        """The `keep` of an unbiased answer's roulette: the chance that one further product is followed by another."""
        return c

    def roulette(self, c: float, d: int, unbiased: bool) -> Roulette | None:
        """The chances of further products; None where the answer may keep its truncation error."""
        keep = self.rate(c, d)
        return Roulette(min(FIRST_CHANCE, keep), keep) if unbiased else None

    def prepare(self, problem: Problem, needs_gradient: bool, needs_errors: bool) -> Prepared:
        """Make the products with J^T, and take the exact trace where it was asked for or is cheap."""
        backend, _, x, linearization, c, request, *_ = problem
        products = JacobianProducts(backend, linearization, tuple(x.shape[1:]), c, needs_gradient, needs_errors)
        products.growth = problem.growth
        wanted = request.control_variate
        if wanted == "trace" and linearization.trace is None and not expands_trace(problem):
            raise DerivativeError(
                "control_variate='trace' needs a branch with a cheap exact trace: a Chain of Dense layers with at "
                "most four groups of entrywise slopes, or of convolutions that keep the extent, with at most six "
                "and, beyond three convolutions, few taps. Use 'auto' or 'none'."
            )
        error = rounding_of_products(problem)
        known = None if wanted == "none" else known_trace(problem)
        if known is None:
            return Prepared(products, None, None, error)
        whole, remainder = known
        share = linear_share(backend.xp, backend.stop_gradient(whole), math.prod(x.shape[1:]), c)
        if remainder is None:
            return Prepared(products, share * whole, share, error)
        return Prepared(products, share * whole, share, error, lambda u: share[:, None] * remainder(u))

    def answer(self, problem: Problem) -> tuple[Array, LogDet | None]:
        """Take as many probes as asked for, or as the tolerance needs."""
        backend, _, x, linearization, _, request, max_products, _ = problem
        if backend.is_tracing(x, linearization.value):  # before anything is drawn, which may fail there
            refuse_tolerance(request)
        estimator = Estimator(self, problem)
        source, count = estimator.source()
        # A batch of unknown size is worked on as a whole.
        batch = max(1, x.shape[0]) if backend.knows_size(x.shape[0]) else 1
        vectors = min(VECTORS_AT_A_TIME, ENTRIES_AT_A_TIME // max(1, estimator.d))
        sums: Sums | None = None
        found: Found | None = None
        goal = count if request.tol is None else max(count, FEWEST_PROBES)
        while True:
            while sums is None or sums.probes < goal:
                left = goal - (0 if sums is None else sums.probes)
                step = goal if isinstance(source, ExplicitProbes) else min(left, max(1, vectors // batch))
                sums = estimator.add(sums, source.draw(step), source.kind)
            result = estimator.result(sums, source)
            if request.tol is None:
                return estimator.recorded(result)
            if estimator.by_sample:
                found = Found.with_further(backend.xp, found, result, request.tol)
                goal = 2 * sums.probes
                if found.are_all(backend.xp):
                    return linearization.value, above_its_floor(backend, found.result, request.tol)
                if max_products is not None and (estimator.shortfall or goal * TYPICAL_PRODUCTS > max_products):
                    return linearization.value, found.or_exact(problem)
            elif not estimator.shortfall:
                goal = next_goal(backend, result, sums.probes, source, request)
                if goal <= sums.probes:
                    return linearization.value, above_its_floor(backend, result, request.tol)
                if max_products is not None and goal * sums.products / sums.probes > max_products:
                    return linearization.value, None
            if estimator.shortfall:
                if max_products is not None:
                    return linearization.value, None
                raise NotConvergedError(
                    f"logdet: tol={request.tol:g} nats cannot be met by method {self.name!r}: {estimator.shortfall}. "
                    "Raise tol, or use method='exact' (or 'auto')."
                )
            if goal > MOST_PROBES:
                raise too_many_probes(self.name, request, goal, sums.probes, result, backend)


def rounding_of_products(problem: Problem) -> float:
    """Rounding error of a product with J, relative to the vector: some roundings a layer, and what they grow by."""
    unit = unit_roundoff(problem.backend, problem.x.dtype)
    return 8 * (problem.linearization.depth + 2) * problem.growth * unit


class Sums(NamedTuple):
    """Sums over the probes so far, (batch,), with their number and the products they took."""

    value: Array
    square: Array
    bias: Array
    variance: Array
    extra_variance: Array
    fourth_moment: Array
    surrogate: Array
    probes: int
    products: int


class Estimator:
    """One method at one batch: the forms of probes, their sum, and the errors of that."""

    def __init__(self, method: ProbedMethod, problem: Problem) -> None:
        backend, _, x, linearization, c, request, *_ = problem
        self.method, self.backend, self.constant, self.request, self.x = method, backend, c, request, x
        self.linearization, self.event, self.d = linearization, tuple(x.shape[1:]), math.prod(x.shape[1:])
        self.joint = linearization.joint
        recorded = self.joint is not None or backend.may_differentiate(linearization.value, x)
        self.differentiable = backend.differentiates and recorded
        self.forms: tuple[Array, Array] | None = None
        self.terms = request.terms or method.default_products(request, self.d)
        self.roulette = method.roulette(c, self.d, request.unbiased)
        needs_errors = request.errors or self.terms is None or self.roulette is not None
        self.prepared = method.prepare(problem, self.differentiable, needs_errors)
        rounding = self.prepared.product_error * self.d * mean_resolvent_bound(c)
        target = DEFAULT_BIAS if request.tol is None else request.tol
        self.target = max(target - rounding, rounding)
        self.late_target = self.target if request.tol is not None else max(self.target, DEFAULT_BIAS * self.d)
        self.rng = request.rng
        self.lengths: list[int] | None = None
        self.shortfall = ""
        self.by_sample = isinstance(request.rng, SampleSeed)

    def source(self) -> tuple[ProbeSource, int]:
        """Where the probes come from, and how many to begin with."""
        backend, request, noise = self.backend, self.request, self.request.noise
        if noise is None:
            known = self.by_sample or isinstance(request.rng, DrawnProbes)
            self.rng = request.rng if known else backend.generator(request.rng)
            flat = flatten(backend.xp, self.x)
            return make_source(backend, request.probe_kind, flat, self.rng), request.probes
        if self.roulette is not None:
            if not (isinstance(noise, tuple) and len(noise) == 2):
                raise InvalidArgumentError(
                    "for an unbiased answer, and so for method 'roulette', noise is a pair (probes, lengths)."
                )
            noise, lengths = noise
            self.lengths = given_lengths(lengths)
        probes = given_probes(backend, self.x, noise, request.probes, self.method.name)
        if self.lengths is not None:
            given = self.lengths
            if len(given) != probes.shape[0] or min(given) < 0:
                raise InvalidArgumentError(
                    f"lengths must hold one number >= 0 for each of the {probes.shape[0]} probes, got {given}."
                )
            order = sorted(range(len(given)), key=lambda i: -given[i])
            probes = backend.xp.stack([probes[i, ...] for i in order])
            self.lengths = [given[i] for i in order]
        return ExplicitProbes(probes, request.probe_kind), probes.shape[0]

    def steps(self, v: Array) -> Steps:
        """How many products the forms of probes v take."""
        backend, terms, lengths = self.backend, self.terms, self.lengths
        if backend.is_tracing(v, self.linearization.value):  # the probes may be all that is traced, or the weights
            refuse_tolerance(self.request)
            if terms is None:
                terms = backend.host_constant(self.method.compiled_products, self.constant, self.d)
        if self.roulette is not None and lengths is None:
            lengths = self.roulette.draw(backend, v.shape[0], self.rng)
        chosen = self.by_sample and not self.request.terms and self.request.errors
        return Steps(terms, self.roulette, lengths, self.target, self.late_target, self._error_of, chosen)

    def _error_of(self, bias: Array) -> float:
        """The truncation error of the worst sample, averaged over the probes.

        A branch that breaks its constant would never be accurate enough, and is refused here.
        """
        self._refuse()
        xp = self.backend.xp
        return float(xp.max(xp.mean(bias, axis=0)))

    def add(self, sums: Sums | None, v: Array, kind: str) -> Sums:
        """Add the forms of further probes v."""
        xp, prepared = self.backend.xp, self.prepared
        image = self._remainder_image(v)
        with self.backend.no_grad():
            form = self.method.form(prepared.products, v, prepared.linear, self.steps(v))
            if image is not None:
                form = with_remainder(xp, form, v, self.backend.stop_gradient(image))
        self._refuse()
        self.shortfall = form.shortfall or self.shortfall
        surrogate = self._surrogate(form, v, image)
        if not self.request.errors:
            value = xp.sum(form.value, axis=0)
            unknown = xp.full_like(value, math.nan)
            new = Sums(value, unknown, unknown, unknown, unknown, unknown, surrogate, v.shape[0], form.products)
            return new if sums is None else Sums(*(a + b for a, b in zip(sums, new, strict=True)))
        # One probe knows little of a few large directions, or of a few dimensions.
        few = self.d <= FEW_DIMENSIONS or self.method.has_few_directions
        variance = 2 * form.squared_image if few else probe_variance(xp, form, self.d, kind)
        if form.peak is not None:
            share = (self.d - 1) / (self.d + 2) if kind == "rademacher" else 1.0
            variance = xp.maximum(variance, 2 * share * form.peak)
        extra = xp.zeros_like(variance) if form.extra_variance is None else form.extra_variance
        fourth = xp.zeros_like(variance) if few or form.fourth_moment is None else form.fourth_moment
        bias = form.bias + prepared.product_error * form.sensitivity
        value, square, bias, variance, extra, fourth = (
            a[0, ...] if v.shape[0] == 1 else xp.sum(a, axis=0)
            for a in (form.value, form.value * form.value, bias, variance, extra, fourth)
        )
        new = Sums(value, square, bias, variance, extra, fourth, surrogate, v.shape[0], form.products)
        return new if sums is None else Sums(*(a + b for a, b in zip(sums, new, strict=True)))

    def _remainder_image(self, v: Array) -> Array | None:
        """T^T B^T v for probes v: what the known trace lacks."""
        remainder, products = self.prepared.remainder, self.prepared.products
        with nullcontext() if self.joint is None else self.backend.no_grad():
            return None if remainder is None else remainder(products.pulled_back(v))

    def _surrogate(self, form: FormEstimate, v: Array, image: Array | None) -> Array:
        """Sum over the probes of w^T J v (batch,), whose derivative for fixed w is that of the value; else zeros."""
        xp = self.backend.xp
        if form.resolvent is None:
            return xp.zeros_like(form.value[0, ...])
        if self.joint is not None:
            self.forms = form.resolvent, v
            return xp.zeros_like(form.value[0, ...])
        resolvent, image = (form.resolvent + v, None) if self.prepared.gradient_by_probes else (form.resolvent, image)
        w = self.backend.stop_gradient(self.prepared.products.pulled_back(resolvent))
        left, right = (xp.reshape(a, (*a.shape[:2], *self.event)) for a in (w, v))
        if self.linearization.jvp is None:
            left, right = self.linearization.transposed_products(left), right
        else:
            right = self.linearization.products(right)
        total = xp.linalg.vecdot(xp.reshape(left, tuple(v.shape)), xp.reshape(right, tuple(v.shape)))
        if image is not None:
            total = total + xp.linalg.vecdot(v, image)
        return xp.sum(total, axis=0)

    def _refuse(self) -> None:
        """Refuse products that are not finite, or expand by more than the constant."""
        largest = self.prepared.products.largest_factor
        if largest is not None and not self.backend.is_tracing(largest):
            refuse_expansion("a Jacobian product", float(largest), self.constant, self.prepared.product_error)

    def result(self, sums: Sums, source: ProbeSource) -> LogDet:
        """Average, and state the errors."""
        xp, p, trace = self.backend.xp, sums.probes, self.prepared.trace
        value, surrogate = sums.value / p, sums.surrogate / p
        if trace is not None:
            value = value + self.backend.stop_gradient(trace)
            surrogate = surrogate if self.prepared.gradient_by_probes else surrogate + trace
        if self.differentiable and self.joint is None:
            value = with_derivative(self.backend, value, surrogate)
        products = xp.full(value.shape, sums.products, dtype=xp.int32, device=device_of(value))
        if not self.request.errors:
            return LogDet(value, sums.bias, sums.bias, products, self.method.name)
        estimate, extra, variance = sums.value / p, sums.extra_variance / p, sums.variance / p
        # A probe that misses a dominating direction sees neither the value nor its variance; those of the other
        # samples see them.
        if not (self.by_sample and self.request.tol is not None):  # whose probes must not depend on other samples
            variance = xp.maximum(variance, 0.1 * xp.mean(variance))
        if p > 1:
            # What is seen is the sum of both: the noise of the probes and that of a roulette.
            seen = (sums.square - estimate * sums.value) / (p - 1)
            seen = xp.maximum(seen, xp.zeros_like(seen))
            trust = (p - 1) / (p - 1 + PRIOR_WEIGHT)
            of_roulette = xp.minimum(extra, seen)
            variance = trust * (seen - of_roulette) + (1 - trust) * variance
            extra = trust * of_roulette + (1 - trust) * extra
        variance = widened(xp, variance, sums.fourth_moment / p, p) * source.remaining_variance(p) + extra
        bias = sums.bias / p + self.prepared.known_error
        return LogDet(value, xp.sqrt(variance / p), bias, products, self.method.name, self.shortfall)

    def recorded(self, result: LogDet) -> tuple[Array, LogDet]:
        """Return g(x) with a result, and record the derivatives of both where that was left to a joint pass."""
        joint, backend, trace = self.joint, self.backend, self.prepared.trace
        if joint is None:
            return self.linearization.value, result
        assert self.forms is not None  # else the derivative would be lost
        xp = backend.xp
        w, v = (xp.reshape(a, (*a.shape[:2], *self.event)) for a in self.forms)
        w = w / w.shape[0] if w.shape[0] > 1 else w

        def plain(images: Array, _: Any, known: Sequence[Array]) -> Array:
            forms = xp.reshape(known[1] * images, (*images.shape[:2], -1))
            return with_derivative(backend, known[2], xp.sum(forms, axis=(0, 2)))

        with backend.no_grad():
            joint.products(v)
        g, value, *slopes = joint.recorded(result.value, w, plain, with_slopes=trace is not None)
        if trace is not None:
            assert self.prepared.linear is not None
            trace, remainder = joint.trace(slopes)
            trace = self.prepared.linear * trace
            if remainder is not None:
                flat = self.forms[1]
                of_rest = xp.linalg.vecdot(flat, self.prepared.linear[:, None] * remainder(flat))
                trace = trace + xp.mean(of_rest, axis=0)
            value = value + (trace - backend.stop_gradient(trace))
        return g, result._replace(value=value)
