"""Quadratic forms v^T f(J) v with f = log(I + J) or log(I + J) - J: truncated series, roulette and Arnoldi.

All take probes v (probes, batch, d) and return a `FormEstimate`. The tail of the series after n terms is bounded
through ``series_tail(c, n)`` = sum over j >= 1 of c^j / (n + j), which is c^-n times the tau_n of the a-priori bound.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.linearization import Linearization

__all__ = ["FormEstimate", "Products", "roulette_form", "series_form", "series_tail", "sufficient_terms"]


class FormEstimate(NamedTuple):
    """Estimates for every probe, arrays (probes, batch) but for `products`.

    `bias` bounds the truncation error of `value`; `squared_image` is ||f(J) v||^2, from which the variance over the
    probes follows; `extra_variance` is the variance of `value` for a fixed probe; `products` counts Jacobian products,
    summed over the probes.
    """

    value: Array
    bias: Array
    squared_image: Array
    extra_variance: Array | None
    products: int


class Products:
    """Products with J^T at one batch, on flat vectors, watching that none expands by more than the constant."""

    def __init__(self, engine: Backend, linearization: Linearization, event: tuple[int, ...], constant: float) -> None:
        self.engine, self.linearization, self.event, self.constant = engine, linearization, event, constant
        self.largest_factor: Array | None = None

    def __call__(self, u: Array, length: Array) -> tuple[Array, Array]:
        """Return J^T u for u (probes, batch, d) of the given length (probes, batch), and the length of that."""
        xp = self.engine.xp
        shaped = xp.reshape(u, (*u.shape[:2], *self.event))
        w = xp.reshape(self.linearization.transposed_products(shaped), u.shape)
        new_length = xp.linalg.vector_norm(w, axis=-1)
        # A vector near underflow has lost its digits, and its length says nothing.
        info = xp.finfo(u.dtype)
        clear = length > float(info.smallest_normal) / float(info.eps) ** 2
        factor = xp.where(clear, new_length, xp.zeros_like(length)) / xp.where(clear, length, xp.ones_like(length))
        largest = xp.max(factor)
        self.largest_factor = largest if self.largest_factor is None else xp.maximum(self.largest_factor, largest)
        return w, new_length


def series_tail(c: float, n: int) -> float:
    """Upper bound on sum over j >= 1 of c^j / (n + j), tight to 1e-15.

    The sum is cut where its geometric remainder is negligible, and the remainder added.
    """
    if c == 0:
        return 0.0
    total, power, j = 0.0, 1.0, 0
    while True:
        j += 1
        power *= c
        total += power / (n + j)
        remainder = power * c / ((n + j + 1) * (1 - c))
        if remainder <= 1e-16 * total or j >= 20_000:
            return (total + remainder) * (1 + 1e-14)


def sufficient_terms(c: float, d: int, tol: float) -> int:
    """Smallest n whose a-priori bound d c^n series_tail(c, n) on the truncation error is at most `tol`."""
    if c == 0:
        return 1
    low, high = 1, 2
    while d * c**high * series_tail(c, high) > tol and high < 2**20:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if d * c**middle * series_tail(c, middle) <= tol:
            high = middle
        else:
            low = middle + 1
    return high


def series_form(
    multiply: Products, v: Array, *, subtract_linear: bool, terms: int | None, enough: Callable[[Array], bool]
) -> FormEstimate:
    """Truncated power series (report, Eq. 23): sum over k <= n of (-1)^(k+1) v^T J^k v / k; n products a probe.

    Truncation error at most ||v|| ||(J^T)^n v|| series_tail(c, n). With `terms` None, products are added until
    ``enough(bound)``; the a-priori bound ends that.
    """
    engine, c = multiply.engine, multiply.constant
    xp = engine.xp
    length = v_length = xp.linalg.vector_norm(v, axis=-1)
    limit = terms if terms is not None else 2**20
    w, k = v, 0
    value, image = xp.zeros_like(length), xp.zeros_like(v)
    bias = length * length * series_tail(c, 0)
    while k < limit:
        w, length = multiply(w, length)
        k += 1
        if k > 1 or not subtract_linear:
            weight = (-1.0) ** (k + 1) / k
            value = value + weight * xp.linalg.vecdot(v, w)
            image = image + weight * w
        bias = v_length * length * series_tail(c, k)
        if terms is None and enough(bias):
            break
    return FormEstimate(value, bias, xp.linalg.vecdot(image, image), None, k * v.shape[0])


def roulette_form(
    multiply: Products, v: Array, *, subtract_linear: bool, terms: int, lengths: Any, keep: float
) -> FormEstimate:
    """Series with Russian roulette on its tail (Chen et al. 2019, Eq. 6): unbiased.

    After `terms` certain terms, term ``terms + j`` is computed with probability keep^j and divided by it. The variance
    is finite if the spectral radius squared is below `keep`; keep = c is the best choice against the worst g with
    constant c. `lengths` (probes,), descending, are the numbers of further terms.

    `extra_variance` bounds the variance for a fixed probe: the terms that were computed enter as they are, those
    beyond through ||(J^T)^n v|| c^j.
    """
    engine, c = multiply.engine, multiply.constant
    xp = engine.xp
    v_length = xp.linalg.vector_norm(v, axis=-1)
    parts = []
    products = 0
    # Probes with the longest tails come first, so that those which are done drop off the end of the stack.
    w, length, probes = v, v_length, v.shape[0]
    value, image = xp.zeros_like(v_length), xp.zeros_like(v)
    second, weighted = xp.zeros_like(v_length), xp.zeros_like(v_length)
    k = 0
    while probes:
        alive = sum(1 for extra in lengths if terms + int(extra) > k)
        if alive < probes:
            kept = slice(alive, probes)
            parts.append(
                _finished(
                    xp,
                    c,
                    keep,
                    terms,
                    k,
                    v_length[kept],
                    length[kept],
                    value[kept],
                    image[kept],
                    second[kept],
                    weighted[kept],
                )
            )
            w, length, value, image = w[:alive, ...], length[:alive, ...], value[:alive, ...], image[:alive, ...]
            second, weighted, v_length, v = (
                second[:alive, ...],
                weighted[:alive, ...],
                v_length[:alive, ...],
                v[:alive, ...],
            )
            probes = alive
            if not probes:
                break
        w, length = multiply(w, length)
        products += probes
        k += 1
        if k == 1 and subtract_linear:
            continue
        sign = (-1.0) ** (k + 1) / k
        term = sign * xp.linalg.vecdot(v, w)
        chance = keep ** max(0, k - terms)
        value = value + term / chance
        image = image + sign * w
        # Var = sum t_k^2 (1/P_k - 1) + 2 sum_{j<k} t_j t_k (1/P_j - 1), accumulated term by term.
        second = second + term * term * (1 / chance - 1) + 2 * term * weighted
        weighted = weighted + term * (1 / chance - 1)
    value, image_square, extra = (xp.concat([p[i] for p in reversed(parts)]) for i in range(3))
    return FormEstimate(value, xp.zeros_like(value), image_square, extra, products)


def _finished(
    xp: Any,
    c: float,
    keep: float,
    terms: int,
    k: int,
    v_length: Array,
    length: Array,
    value: Array,
    image: Array,
    second: Array,
    weighted: Array,
) -> tuple[Array, Array, Array]:
    """Value, squared image and variance of probes whose roulette ended after k terms."""
    # The terms that were not computed are at most a c^j, a = ||v|| ||(J^T)^k v|| / (k + 1), j = 1, 2, ...
    a = v_length * length / (k + 1)
    chance = keep ** max(0, k - terms)
    ratio = c * c / keep if keep else 0.0
    squares = a * a / chance * ratio / (1 - ratio)
    crossed = 2 * xp.abs(weighted) * a * c / (1 - c) + 2 * squares * c / (1 - c)
    return value, xp.linalg.vecdot(image, image), xp.maximum(second, xp.zeros_like(second)) + squares + crossed


def draw_lengths(engine: Backend, probes: int, keep: float, rng: Any) -> list[int]:
    """Numbers of further terms N, P(N >= j) = keep^j, in descending order; drawn on the host."""
    if keep <= 0:
        return [0] * probes
    uniforms = 1.0 - engine.uniform((probes,), rng)
    return sorted((math.floor(math.log(u) / math.log(keep)) for u in uniforms), reverse=True)
