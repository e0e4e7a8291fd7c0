"""Quadratic forms v^T f(J) v with f = log(I + J) or log(I + J) - theta J: truncated series; the parts of others.

All forms take probes v (probes, batch, d) and return a `FormEstimate`. Their argument `linear` is theta, a number for
every sample (batch,), None where nothing is subtracted: the share of the linear term whose trace is known, see
`linear_share`. The tail of the series after n terms is bounded through ``series_tail(c, n)`` = sum over j >= 1 of
c^j / (n + j), which is c^-n times the tau_n of the a-priori bound.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import Linearization
from iresnet_core.determinant.quadrature import Rule, contraction_rule

__all__ = [
    "FormEstimate",
    "PowerSeries",
    "Products",
    "linear_share",
    "mean_resolvent_bound",
    "series_form",
    "series_tail",
]

# How much of the mean eigenvalue counts for `linear_share`: between 0.5 and 0.75 are best on trained branches.
SKEW = 0.6


class FormEstimate(NamedTuple):
    """Estimates for every probe, arrays (probes, batch) but for `products`.

    `bias` bounds the truncation error of `value`. With L = f(J), `squared_image` is ||L v||^2 and `squared_form`
    v^T L^2 v; half their sum has the mean ||S||_F^2, S the symmetric part of L, from which the variance follows.
    `sensitivity` is how much a relative error of the products grows in `value`. `extra_variance` is the variance of
    `value` for a fixed probe. `products` counts Jacobian products, summed over the probes. `resolvent`
    (probes, batch, d) is w = (I + J^T)^-1 v, less theta v where the linear term is subtracted, to the accuracy of the
    form: w^T dJ v is the derivative of `value`. `resolvent_error` is a certified bound on its error, the norm of
    v - (I + J^T) w over 1 - c, from Arnoldi's method. Both only where `Products.resolvent` asks for them.
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

    @classmethod
    def without_errors(cls, xp: Any, value: Array, products: int, resolvent: Array | None) -> "FormEstimate":
        """Return an estimate of which nobody asks the errors: they are NaN."""
        unknown = xp.full_like(value, math.nan)
        return cls(value, unknown, unknown, unknown, unknown, None, products, resolvent)


class Products:
    """Products with J^T at one batch, on flat vectors, watching that none expands by more than the constant.

    They are constants for differentiation. `resolvent` says whether the derivative of a form will be needed, `errors`
    whether its errors will; `tells_forms` whether `FormEstimate.squared_form` is, for which `squared_image` may stand.
    """

    tells_forms = True

    def __init__(
        self,
        backend: Backend,
        linearization: Linearization,
        event: tuple[int, ...],
        constant: float,
        resolvent: bool = False,
        errors: bool = True,
    ) -> None:
        self.backend, self.linearization, self.event, self.constant = backend, linearization, event, constant
        self.resolvent, self.errors = resolvent, errors
        self._lengths: list[tuple[Array, Array]] = []
        self._squares: list[Array] = []
        self._largest: Array | None = None

    def of_unit(self, u: Array, inverse: Array | None = None) -> Array:
        """Return J^T u for u (probes, batch, d): zeros, unit vectors, or those of given `inverse` lengths."""
        xp = self.backend.xp
        w = self._transposed(u)
        square = xp.linalg.vecdot(w, w)
        self._squares.append(square if inverse is None else square * inverse * inverse)
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
        """Bound on the error of m steps of Arnoldi's method from a unit vector that needs no look at it, if any."""
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


def series_tail(c: float, n: int) -> float:
    """Upper bound on sum over j >= 1 of c^j / (n + j), tight to 1e-15.

    The sum is cut where its geometric remainder is negligible, and the remainder added.
    """
    powers, places = _powers(c)
    remainder = c * powers[-1] / ((n + powers.size + 1) * (1 - c)) if c else 0.0
    return float(np.sum(powers / (n + places)) + remainder) * (1 + 1e-13)


@cache
def _powers(c: float) -> tuple[np.ndarray, np.ndarray]:
    """c^j and j for j = 1, 2, ... until c^j is negligible."""
    count = 1 if c == 0 else min(200_000, math.ceil(40 / -math.log(c)))
    places = np.arange(1, count + 1)
    return c**places, places


class PowerSeries:
    """Running sums of sum over k of a_k v^T J^k v, a_k = (-1)^(k+1) / k, as (probes, batch) arrays and one vector."""

    def __init__(self, multiply: Products, v: Array, linear: Array | None) -> None:
        xp = multiply.backend.xp
        self.backend, self.xp, self.v = multiply.backend, xp, v
        self.first: Array | None = None if linear is None else 1 - linear  # a_1, where it is not 1
        self.resolvent: Array | None = v if multiply.resolvent else None
        if multiply.resolvent and self.first is not None:
            self.resolvent = self.first[..., None] * v
        self.v_length = self.length = self.previous = xp.linalg.vector_norm(v, axis=-1)
        self.w, self.image = v, xp.zeros_like(v)
        self.lengths: list[Array] = [self.v_length]
        self.moments: list[Array] = []
        self.terms = 0

    def step(self, multiply: Products, chance: float = 1.0) -> None:
        """Take the next product; `chance` is that of taking it."""
        self.previous = self.length
        self.w, self.length = multiply(self.w, self.length)
        self.lengths.append(self.length)
        self.terms += 1
        if self.resolvent is not None:
            self.resolvent = self.resolvent + (-1.0) ** self.terms / chance * self.w
        self.moments.append(self.xp.linalg.vecdot(self.v, self.w))
        self.image = self._weighted(self.w, self.first) if self.terms == 1 else self.image + self._weighted(self.w)

    def _weighted(self, array: Array, first: Array | None = None) -> Array:
        """A vector or moment of the last product times its coefficient a_k; `first` is that of the first."""
        if self.terms == 1:
            return array if first is None else first[(...,) + (None,) * (array.ndim - 2)] * array
        return (-1.0) ** (self.terms + 1) / self.terms * array

    def term(self) -> Array:
        """The term of the last product."""
        return self._weighted(self.moments[-1], self.first)

    def value(self) -> Array:
        """The sum of all terms."""
        return self.xp.linalg.vecdot(self.v, self.image)

    def keep(self, count: int) -> "PowerSeries":
        """Split off the probes beyond the first `count`, which are returned as a series of their own."""
        rest = PowerSeries.__new__(PowerSeries)
        rest.backend, rest.xp, rest.first, rest.terms = self.backend, self.xp, self.first, self.terms
        for name in ("v", "v_length", "length", "previous", "w", "image", "resolvent"):
            array = getattr(self, name)
            if array is None:
                rest.resolvent = None
                continue
            setattr(rest, name, array[count:, ...])
            setattr(self, name, array[:count, ...])
        for name in ("moments", "lengths"):
            arrays = getattr(self, name)
            setattr(rest, name, [array[count:, ...] for array in arrays])
            setattr(self, name, [array[:count, ...] for array in arrays])
        return rest

    def squared_form(self) -> Array:
        """v^T f(J)^2 v, as far as the moments go; where they do not reach that of (J^2)^2, ||f(J) v||^2.

        Without a subtracted term that of J^2 is enough.
        """
        if self.terms < (2 if self.first is None else 4):
            return self.xp.linalg.vecdot(self.image, self.image)
        both = self._combined(_cross_terms)
        mixed = self._combined(_first_terms)
        if self.first is None:
            return both + mixed + self.moments[1]
        return both + self.first * (mixed + self.first * self.moments[1])

    def _combined(self, coefficients: Callable[[int], np.ndarray]) -> Array:
        """The sum of the moments from the third one on times their coefficients, of which the function knows."""
        xp = self.xp
        if self.terms < 3:
            return xp.zeros_like(self.moments[0])
        moments = xp.stack(self.moments[2:])
        weights = xp.astype(self.backend.constant_array(coefficients, self.terms, like=moments), moments.dtype)
        return xp.sum(moments * weights[:, None, None], axis=0)

    def sensitivity(self, c: float) -> Array:
        """||v|| (||v|| + ||J^T v|| + ...) times the integral of 1 / (1 - t c): see `FormEstimate`."""
        lengths = self.xp.sum(self.xp.stack(self.lengths), axis=0)
        return self.v_length * (lengths + self.length * c / (1 - c)) * mean_resolvent_bound(c)


def _cross_terms(terms: int) -> np.ndarray:
    """Coefficients of J^p, p = 3, ..., in log(I + J)^2 without those of the term J.

    (-1)^p times the sum over j from 2 to p - 2 of 1 / (j (p - j)), which is 2 / p times a harmonic sum.
    """
    powers = np.arange(3.0, terms + 1)
    harmonic = np.cumsum(np.where(powers > 3, 1 / (powers - 2), 0.0))
    coefficients: np.ndarray = (-1) ** powers * 2 * harmonic / powers
    return coefficients


def _first_terms(terms: int) -> np.ndarray:
    """Coefficients of J^p, p = 3, ..., in twice J times what log(I + J) is without it: (-1)^p 2 / (p - 1)."""
    powers = np.arange(3.0, terms + 1)
    coefficients: np.ndarray = (-1) ** powers * 2 / (powers - 1)
    return coefficients


def mean_resolvent_bound(c: float) -> float:
    """Integral over t from 0 to 1 of 1 / (1 - t c), which bounds that of ||(I + t J)^-1||."""
    return -math.log1p(-c) / c if c > 1e-8 else 1.0


def series_form(
    multiply: Products, v: Array, *, linear: Array | None, terms: int | None, enough: Callable[[Array], bool]
) -> FormEstimate:
    """Truncated power series (report, Eq. 23): sum over k <= n of (-1)^(k+1) v^T J^k v / k; n products a probe.

    Truncation error at most ||v|| ||(J^T)^n v|| series_tail(c, n). With `terms` None, products are added until
    ``enough(bound)``; the a-priori bound ends that.
    """
    xp, c = multiply.backend.xp, multiply.constant
    series = PowerSeries(multiply, v, linear)
    while True:
        series.step(multiply)
        scale = series.v_length * series.length
        # The tail is at least its first term: as long as that is too much, its sum need not be known.
        if series.terms != terms and (terms is not None or not enough(scale * (c / (series.terms + 1)))):
            continue
        bias = scale * multiply.backend.host_constant(series_tail, c, series.terms)
        if series.terms == terms or enough(bias):
            break
    return FormEstimate(
        series.value(),
        bias,
        xp.linalg.vecdot(series.image, series.image),
        series.squared_form(),
        series.sensitivity(c),
        None,
        series.terms * v.shape[0],
        series.resolvent,
    )
