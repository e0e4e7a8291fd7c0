"""Estimates of a quadratic form v^T f(J) v with f = log(I + J) or log(I + J) - theta J, and what they are made of.

Probes v are arrays (probes, batch, d). `linear` is theta, a number for every sample (batch,): the share of the linear
term whose trace is known, see `linear_share`. It is None where nothing is subtracted.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import Linearization
from iresnet_core.determinant.probes import DrawnProbes
from iresnet_core.determinant.quadrature import Rule, contraction_rule
from iresnet_core.determinant.tails import series_tail

__all__ = [
    "FormEstimate",
    "JacobianProducts",
    "Roulette",
    "Steps",
    "Stops",
    "linear_share",
    "mean_resolvent_bound",
    "with_derivative",
]

# Lengths of products that are kept until the largest factor between them is found.
PENDING_LENGTHS = 256
# How much of the mean eigenvalue counts for `linear_share`: between 0.5 and 0.75 are best on trained branches.
SKEW = 0.6


class Roulette(NamedTuple):
    """Chances of further products: N of them follow the certain ones, with P(N >= j) = first keep^(j-1)."""

    first: float
    keep: float

    def chance(self, j: int) -> float:
        """P(N >= j)."""
        return 1.0 if j <= 0 else self.first * self.keep ** (j - 1)

    def draw(self, backend: Backend, probes: int, rng: Any) -> list[int]:
        """Return the numbers of further products of every probe, in descending order; they are drawn on the host."""
        first, keep = self
        if first <= 0:
            return [0] * probes
        uniforms = 1.0 - (rng.uniform(probes) if isinstance(rng, DrawnProbes) else backend.uniform((probes,), rng))
        return sorted(
            (0 if u > first else 1 + math.floor(math.log(u / first) / math.log(keep)) for u in uniforms), reverse=True
        )


class Steps(NamedTuple):
    """How many products a form takes from every probe.

    Attributes
    ----------
    terms : int or None
        That many; None for as many as `is_accurate` asks for, up to the limit of the method.
    roulette, lengths : Roulette and list of int (probes,), or None
        The chances of further products, and how many of them each probe takes; descending.
    target : float
        Truncation error that is small enough.
    late_target : float
        What is small enough after `MANY_TERMS` of a series.
    error_of : callable
        From a bound on the truncation error (probes, batch) to that of the mean over the probes, for the worst sample.
    by_sample : bool
        Whether the estimate of every probe and sample is that of the first product at which its own error is small
        enough, so that it does not depend on the others.
    """

    terms: int | None
    roulette: Roulette | None = None
    lengths: list[int] | None = None
    target: float = 0.0
    late_target: float = 0.0
    error_of: Callable[[Array], float] = lambda bias: math.inf
    by_sample: bool = False

    def is_accurate(self, bias: Array) -> bool:
        """Whether a bound on the truncation error (probes, batch) is small enough."""
        return self.error_of(bias) <= self.target

    def missed(self, bias: Array, products: int, why: str) -> str:
        """What is said of a form whose products ended before its error was small enough."""
        return (
            f"the truncation is bounded by {self.error_of(bias):.2g} nats, not {self.target:.2g}, after {products} "
            f"products per probe, {why}"
        )


class Stops:
    """The values (probes, batch) and their bounds at the first product that was accurate enough, for each alone."""

    def __init__(self) -> None:
        self._known: tuple[Array, Array, Array] | None = None

    def note(self, xp: Any, accurate: Array, value: Array, bound: Array) -> None:
        """Keep value and bound where they are accurate now and were not before."""
        if self._known is not None:
            done, known_value, known_bound = self._known
            value, bound = xp.where(done, known_value, value), xp.where(done, known_bound, bound)
            accurate = done | accurate
        self._known = accurate, value, bound

    def are_all(self, xp: Any) -> bool:
        """Whether nothing is left to do."""
        return self._known is not None and bool(xp.all(self._known[0]))

    def instead_of(self, xp: Any, value: Array, bound: Array) -> tuple[Array, Array]:
        """Return value and bound as they were kept; those given, where nothing was."""
        if self._known is None:
            return value, bound
        done, known_value, known_bound = self._known
        return xp.where(done, known_value, value), xp.where(done, known_bound, bound)


class FormEstimate(NamedTuple):
    """Estimates for every probe, arrays (probes, batch) but for `products`.

    `bias` bounds the truncation error of `value`. With L = f(J), `squared_image` is ||L v||^2 and `squared_form`
    v^T L^2 v; half their sum has the mean ||S||_F^2, S the symmetric part of L, from which the variance follows.
    `sensitivity` is how much a relative error of the products grows in `value`. `extra_variance` is the variance of
    `value` for a fixed probe. `products` counts Jacobian products, summed over the probes. `resolvent`
    (probes, batch, d) is w = (I + J^T)^-1 v, less theta v where the linear term is subtracted, to the accuracy of the
    form: w^T dJ v is the derivative of `value`. `resolvent_error` is a certified bound on its error, the norm of
    v - (I + J^T) w over 1 - c, from Arnoldi's method. Both are there only if `JacobianProducts.needs_gradient`.
    `peak` is f(theta)^2 for the eigenvalue theta of J whose f is largest of those that the products tell: where one
    direction dominates, a probe that hardly sees it has a small `squared_image`, and tells theta all the same.
    `fourth_moment` estimates the sum of (s - m)^4 over the eigenvalues s of S, m their mean: it says how well one probe
    knows the variance, see `single_probes.widened`.
    `shortfall` says why the products ended before the error was small enough; empty where they did not.
    """

    value: Array
    bias: Array
    squared_image: Array
    squared_form: Array
    sensitivity: Array
    extra_variance: Array | None
    products: int
    resolvent: Array | None = None
    resolvent_error: Array | None = None
    shortfall: str = ""
    peak: Array | None = None
    fourth_moment: Array | None = None

    @classmethod
    def without_errors(cls, xp: Any, value: Array, products: int, resolvent: Array | None) -> "FormEstimate":
        """Return an estimate whose errors nobody asks for: they are NaN."""
        unknown = xp.full_like(value, math.nan)
        return cls(value, unknown, unknown, unknown, unknown, None, products, resolvent)


class JacobianProducts:
    """Products with J^T at one batch, on flat vectors, watching that none expands by more than the constant.

    They are constants for differentiation. `needs_gradient` says whether the derivative of a form will be needed, and
    `needs_errors` whether its errors will. `tells_forms` says whether `FormEstimate.squared_form` will be, for which
    `squared_image` may stand.
    """

    tells_forms = True
    growth = 1.0  # what the rounding of a product grows by, see `layer_growth`

    def __init__(
        self,
        backend: Backend,
        linearization: Linearization,
        event: tuple[int, ...],
        constant: float,
        needs_gradient: bool = False,
        needs_errors: bool = True,
    ) -> None:
        self.backend, self.linearization, self.event, self.constant = backend, linearization, event, constant
        self.needs_gradient, self.needs_errors = needs_gradient, needs_errors
        self._lengths: list[tuple[Array, Array]] = []
        self._squares: list[Array] = []
        self._largest: Array | None = None

    def of_unit(self, u: Array) -> Array:
        """Return J^T u for unit vectors or zeros u (probes, batch, d)."""
        w = self._transposed(u)
        self._squares.append(self.backend.xp.linalg.vecdot(w, w))
        return w

    def _transposed(self, u: Array) -> Array:
        xp = self.backend.xp
        shaped = xp.reshape(u, (*u.shape[:2], *self.event))
        return self.backend.stop_gradient(xp.reshape(self.linearization.transposed_products(shaped), tuple(u.shape)))

    def __call__(self, u: Array, length: Array) -> tuple[Array, Array]:
        """Return J^T u for u (probes, batch, d) of the given length (probes, batch), and the length of that."""
        xp = self.backend.xp
        w = self._transposed(u)
        new_length = xp.linalg.vector_norm(w, axis=-1)
        self._lengths.append((length, new_length))
        if len(self._lengths) > PENDING_LENGTHS:
            _ = self.largest_factor  # lets go of them
        return w, new_length

    @property
    def largest_factor(self) -> Array | None:
        """Factor () by which a product has expanded a vector at most; None before the first.

        Found when it is asked for, from all products at once: on a GPU, an operation costs the same for one as for all.
        """
        xp = self.backend.xp
        found = [] if self._largest is None else [self._largest]
        if self._squares:
            found.append(xp.sqrt(xp.max(_joined(xp, self._squares))))
        if self._lengths:
            before, after = (_joined(xp, lengths) for lengths in zip(*self._lengths, strict=True))
            # Where squares are near underflow the length has lost its digits, and says nothing.
            info = xp.finfo(before.dtype)
            clear = before > float(info.smallest_normal) ** 0.5 / float(info.eps)
            found.append(
                xp.max(xp.where(clear, after, xp.zeros_like(after)) / xp.where(clear, before, xp.ones_like(before)))
            )
        if found:
            self._largest = found[0] if len(found) == 1 else xp.max(xp.stack(found))
            self._lengths, self._squares = [], []
        return self._largest

    def rule(self, like: Array) -> Rule:
        """Quadrature of the resolvent with a bound on its norm, for arrays like `like`."""
        return contraction_rule(self.backend, like, self.constant)

    def a_priori(self, m: int) -> float | None:
        """Bound on the error of m steps of Arnoldi's method from a unit vector that holds beforehand, if there is one.

        Twice that of the series, since the best polynomial of degree m in J and in H errs by no more.
        """
        bound: float = 2 * self.constant**m * self.backend.host_constant(series_tail, self.constant, m)
        return bound

    def pulled_back(self, w: Array) -> Array:
        """Turn the w of `FormEstimate.resolvent` into that of w^T dJ v."""
        return w


def _joined(xp: Any, arrays: Sequence[Array]) -> Array:
    """All entries, as one axis."""
    if len(arrays) == 1:
        return arrays[0]
    return xp.concat([xp.reshape(array, (-1,)) for array in arrays])


def linear_share(xp: Any, trace: Array, d: int, c: float) -> Array:
    """The share theta of the linear term that is taken exactly, for samples of known trace tr J (batch,).

    log det(I + J) = theta tr J + E[v^T (log(I + J) - theta J) v] for every theta that does not depend on v. The noise
    is least for the slope of the regression of log(1 + x) on x over the spectrum, which is 1 for none but a small one:
    it falls with the mean tr J / d of the eigenvalues, not as fast as the slope 1 / (1 + tr J / d) there, since on
    trained branches the spectrum is skew.
    """
    mean = xp.minimum(xp.maximum(trace / d, xp.full_like(trace, -c)), xp.full_like(trace, c))
    return 1 / (1 + SKEW * mean)


def mean_resolvent_bound(c: float) -> float:
    """Integral over t from 0 to 1 of 1 / (1 - t c), which bounds that of ||(I + t J)^-1||."""
    return -math.log1p(-c) / c if c > 1e-8 else 1.0


def with_derivative(backend: Backend, value: Array, surrogate: Array) -> Array:
    """Return `value` with the first derivative of `surrogate`; a second one would be wrong, and is refused."""
    carrier = backend.first_order_only(surrogate)
    return backend.stop_gradient(value) + (carrier - backend.stop_gradient(surrogate))
