"""Estimates of a quadratic form v^T f(J) v with f = log(I + J) or log(I + J) - theta J, and what they are made of.

Probes v are arrays (probes, batch, d). `linear` is theta, a number for every sample (batch,): the share of the linear
term whose trace is known, see `linear_share`. It is None where nothing is subtracted.
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
    "JacobianProducts",
    "Roulette",
    "Steps",
    "linear_share",
    "mean_resolvent_bound",
    "sensitivity",
    "series_tail",
    "squared_form",
]

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
        uniforms = 1.0 - backend.uniform((probes,), rng)
        return sorted(
            (0 if u > first else 1 + math.floor(math.log(u / first) / math.log(keep)) for u in uniforms), reverse=True
        )


class Steps(NamedTuple):
    """How many products a form takes from every probe.

    Attributes
    ----------
    terms : int or None
        That many; None for as many as make ``is_accurate(bias)`` true.
    is_accurate : callable
        From a bound on the truncation error (probes, batch) to whether that is small enough.
    roulette, lengths : Roulette and list of int (probes,), or None
        The chances of further products, and how many of them each probe takes; descending.
    """

    terms: int | None
    is_accurate: Callable[[Array], bool] = lambda bias: False
    roulette: Roulette | None = None
    lengths: list[int] | None = None


class FormEstimate(NamedTuple):
    """Estimates for every probe, arrays (probes, batch) but for `products`.

    `bias` bounds the truncation error of `value`. With L = f(J), `squared_image` is ||L v||^2 and `squared_form`
    v^T L^2 v; half their sum has the mean ||S||_F^2, S the symmetric part of L, from which the variance follows.
    `sensitivity` is how much a relative error of the products grows in `value`. `extra_variance` is the variance of
    `value` for a fixed probe. `products` counts Jacobian products, summed over the probes. `resolvent`
    (probes, batch, d) is w = (I + J^T)^-1 v, less theta v where the linear term is subtracted, to the accuracy of the
    form: w^T dJ v is the derivative of `value`. `resolvent_error` is a certified bound on its error, the norm of
    v - (I + J^T) w over 1 - c, from Arnoldi's method. Both are there only if `JacobianProducts.needs_gradient`.
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


def series_tail(c: float, n: int) -> float:
    """Upper bound on sum over j >= 1 of c^j / (n + j), tight to 1e-15: c^-n times what n terms of log(1 + c) leave.

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


def squared_form(backend: Backend, moments: Sequence[Array], linear: Array | None, log_times_v: Array) -> Array:
    """v^T f(J)^2 v from the moments v^T J^k v, k = 1, 2, ..., (probes, batch), as far as they go.

    Where they do not reach v^T J^4 v (v^T J^2 v, if nothing is subtracted), ||f(J) v||^2 stands for it.
    """
    if len(moments) < (2 if linear is None else 4):
        return backend.xp.linalg.vecdot(log_times_v, log_times_v)
    both, mixed = (_combined(backend, moments, table) for table in (_cross_terms, _first_terms))
    if linear is None:
        return both + mixed + moments[1]
    share = 1 - linear
    return both + share * (mixed + share * moments[1])


def _combined(backend: Backend, moments: Sequence[Array], coefficients: Callable[[int], np.ndarray]) -> Array:
    """Sum the moments from the third one on, times the coefficients that a function of their number gives."""
    xp = backend.xp
    if len(moments) < 3:
        return xp.zeros_like(moments[0])
    further = xp.stack(moments[2:])
    weights = xp.astype(backend.constant_array(coefficients, len(moments), like=further), further.dtype)
    return xp.sum(further * weights[:, None, None], axis=0)


def sensitivity(xp: Any, lengths: Sequence[Array], c: float) -> Array:
    """||v|| (||v|| + ||J^T v|| + ...) times the integral of 1 / (1 - t c), see `FormEstimate`."""
    total = xp.sum(xp.stack(lengths), axis=0)
    return lengths[0] * (total + lengths[-1] * c / (1 - c)) * mean_resolvent_bound(c)


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
