"""Log-determinants of operators of known sparsity, from probes that see the entries of one colour at a time.

log det(I + B) is the sum over the colours of E[v^T log(I + B) v], v random signs on the entries of that colour and zero
elsewhere (Tang and Saad 2012). The noise is that of the entries of log(I + B) between two places of one colour, more
than k steps apart in the pattern. It falls like q^k, since log(I + B) is near a polynomial of degree k, whose entries
vanish there: q is the rate of Bernstein's bound for the interval, (1 - sqrt(1 - c^2)) / c. Random probes without
colours have the noise of all entries.

Every colour gets two vectors of independent signs, whose difference tells the noise.
"""

import math
from collections.abc import Iterator
from typing import Any

from iresnet_core.backends import Array, device_of
from iresnet_core.common import refuse_expansion
from iresnet_core.determinant.coloring import color_count, colorings, masks
from iresnet_core.determinant.estimator import DEFAULT_BIAS, ENTRIES_AT_A_TIME, ProbedMethod, rounding_of_products
from iresnet_core.determinant.forms import JacobianProducts, Steps, with_derivative
from iresnet_core.determinant.request import Problem
from iresnet_core.results import LogDet

__all__ = ["colored_logdet"]

# Independent signs for each colour: two tell the noise, and more colours lower it better than more signs.
SETS = 2
# Share of what the a-priori rate leaves of the noise that the truncation may have where no tolerance is given. Its
# bound is certified whatever it is.
SHARE = 0.01
# Vectors of a Krylov basis that are held for each probe, as far as memory is concerned.
BASIS = 16
# Probes that are few enough to begin with the second order, and those of the default at most.
FEW_PROBES, DEFAULT_PROBES = 32, 128
# Probes at most, and the order up to which the exact determinant takes their place: where they would cost more than its
# d products, with as many products per probe at least.
MOST_PROBES, LARGEST_EXACT, FEWEST_PRODUCTS = 2**12, 4096, 8


def colored_logdet(problem: Problem, method: ProbedMethod, pattern: Any, least_order: int | None) -> LogDet | None:
    """Answer for one operator; None where other probes, or none, are better.

    With a tolerance the order k is raised until the noise is below it, or until the exact determinant would cost less.
    Without, it is the largest one whose probes are at most `probes`, or `least_order` where nobody asked for a number.
    """
    request, orders = problem.request, colorings(pattern)
    if request.tol is None:
        chosen = _within(orders, request.probes, least_order)
        return None if chosen is None else _answer(problem, method, *chosen)[1]
    d, wanted = problem.x.shape[1], 2
    rate, before = _rate(problem.constant), None
    for order, colors, complete in orders:
        count = SETS * color_count(colors)
        if order < wanted and not complete and (before is not None or count <= FEW_PROBES):
            continue
        if count > MOST_PROBES or (d <= LARGEST_EXACT and FEWEST_PRODUCTS * count > d):
            return None
        noise, result = _answer(problem, method, order, colors)
        if noise <= request.tol or complete:  # which tells all entries apart, and has no noise
            return result
        if before is not None and noise < before[1]:
            rate = (noise / before[1]) ** (1 / (order - before[0]))
        before, missing = (order, noise), math.log(noise / request.tol) / -math.log(rate)
        wanted = min(2 * order, order + max(1, math.ceil(missing)))
    return None


def _within(orders: Iterator[tuple[int, Any, bool]], probes: int, least_order: int | None) -> tuple[int, Any] | None:
    """The last order whose probes are within their number; up to `least_order`, if there is one, within the default."""
    chosen, most = None, probes if least_order is None else DEFAULT_PROBES
    for order, colors, _ in orders:
        if SETS * color_count(colors) > most:
            break
        chosen = order, colors
        if order == least_order:
            break
    return chosen


def _rate(c: float) -> float:
    """By which the best polynomials of log(1 + x) on [-c, c] gain with every degree."""
    return max(1e-16, (1 - math.sqrt(1 - c * c)) / c)


def _answer(problem: Problem, method: ProbedMethod, order: int, colors: Any) -> tuple[float, LogDet]:
    """Return the noise, and the answer with this colouring."""
    backend, _, x, linearization, c, request, *_ = problem
    xp, d, count = backend.xp, x.shape[1], color_count(colors)
    needs_gradient = backend.differentiates and backend.may_differentiate(linearization.value, x)
    products = JacobianProducts(backend, linearization, (d,), c, needs_gradient)
    target = request.tol or max(DEFAULT_BIAS, SHARE * math.sqrt(2 * d) * _rate(c) ** (order + 1))
    steps = Steps(request.terms, target=target / count, error_of=lambda bias: float(xp.mean(bias)))
    signs = backend.sample("rademacher", (SETS, 1, d), x, backend.generator(request.rng))
    step = max(1, ENTRIES_AT_A_TIME // (BASIS * d))
    values: list[list[Array]] = [[] for _ in range(SETS)]
    bias, sensitivity, surrogate, shortfall = 0.0, 0.0, xp.zeros_like(x[0, 0]), ""
    for number, own in enumerate(values):
        for begin in range(0, count, step):
            mask = backend.from_numpy(masks(colors, begin, min(count, begin + step)), x)
            v = xp.astype(mask, x.dtype)[:, None, :] * signs[number, ...]
            with backend.no_grad():
                form = method.form(products, v, None, steps)
            own.append(xp.astype(form.value[:, 0], xp.float64))
            bias = bias + float(xp.sum(form.bias)) / SETS
            sensitivity = sensitivity + float(xp.sum(form.sensitivity)) / SETS
            shortfall = form.shortfall or shortfall
            if form.resolvent is not None:
                surrogate = surrogate + _surrogate(problem, products, form.resolvent, v) / SETS
    largest, error = products.largest_factor, rounding_of_products(problem)
    if largest is not None:
        refuse_expansion("a product", float(largest), c, error)
    forms = xp.stack([xp.concat(own) for own in values])
    value = xp.astype(xp.reshape(xp.sum(forms) / SETS, (1,)), x.dtype)
    spread = float(xp.sum((forms[0, :] - forms[1, :]) ** 2)) / SETS**2
    # Colours differ in size, so that the differences of fewer than all of them tell the noise.
    freedom = max(2.0, count / 2)
    noise = math.sqrt(spread * (freedom + 1) / (freedom - 1))
    if needs_gradient:
        value = with_derivative(backend, value, xp.reshape(surrogate, (1,)))
    bias += error * sensitivity
    std_error, bound = (xp.full((1,), number, dtype=x.dtype, device=device_of(x)) for number in (noise, bias))
    none = xp.zeros((1,), dtype=xp.int32, device=device_of(x))  # the operator counts them
    reason = f"{count} colours, more than {order} steps apart, with {SETS} signs each"
    reason = "; ".join(word for word in (reason, shortfall) if word)
    return noise, LogDet(value, std_error, bound, none, method.name, reason)


def _surrogate(problem: Problem, products: JacobianProducts, resolvent: Array, v: Array) -> Array:
    """Sum of w^T B v (), whose derivative for fixed w is that of the value."""
    backend, linearization = problem.backend, problem.linearization
    w = backend.stop_gradient(products.pulled_back(resolvent))
    if linearization.jvp is None:
        return backend.xp.sum(linearization.transposed_products(w) * v)
    return backend.xp.sum(w * linearization.products(v))
