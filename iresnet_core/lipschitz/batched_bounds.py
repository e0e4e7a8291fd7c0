"""Certified bounds for many layers at once: stacks of Gram matrices instead of one layer after the other."""

from collections.abc import Iterator, Sequence
from typing import Any

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import round_up, widest
from iresnet_core.lipschitz.bounds import lipschitz_bound
from iresnet_core.lipschitz.certificates import cholesky_bound, cholesky_certificates, gram_bound, smaller_gram
from iresnet_core.lipschitz.lanczos import norms_from_gram
from iresnet_core.lipschitz.scaling import power_of_two_near
from iresnet_core.operators import Dense, LinearOperator, Matrices, as_operator, detached_operator
from iresnet_core.results import LipschitzBound

__all__ = ["lipschitz_bounds"]

# Order of the Gram matrices beyond which a stack saves nothing.
LARGEST_ORDER = 1024
# Steps of Lanczos' method after which a factorisation of all matrices is tried: later than for a single one, since all
# estimates have to be good enough at once, and for the same reason with a wider margin.
STACK_TRIED_AFTER = (24, 48, 96)
STACK_MARGIN = 4.5e-3


def lipschitz_bounds(layers: Sequence[Any]) -> list[LipschitzBound]:
    """Bound the spectral norms of many operators, sigma(A_i) <= value_i, in a fraction of the time of one by one.

    Parameters
    ----------
    layers : sequence of arrays (m, n), Dense, Convolution, or anything `as_operator` takes
        Of one backend. Matrices are worked on in stacks: their Gram matrices, of order min(m, n), are padded with zeros
        to the next order in the list that is at most a quarter larger. The others go to `lipschitz_bound` one by one.

    Returns
    -------
    list of LipschitzBound
        In the order of the layers; those of matrices have the method "cholesky" and lie within 0.5 % of the norm, or
        "gram", within 0.1 %, on an accelerator and in a compiled function.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, UnknownArrayError, MixedBackendsError
        As `lipschitz_bound`.

    Notes
    -----
    Cost: 2 m n^2 + n^3 / 3 operations for each m x n matrix, in float64, and a dozen products with its Gram matrix. The
    bounds have no derivative.

    Examples
    --------
    >>> import numpy as np
    >>> [round(float(bound.value), 1) for bound in lipschitz_bounds([np.diag([3.0, 1.0]), np.ones((2, 5))])]
    [3.0, 3.2]
    """
    operators = [detached_operator(as_operator(layer)) for layer in layers]
    bounds: list[LipschitzBound | None] = [None] * len(operators)
    stacked = [place for place, operator in enumerate(operators) if _is_matrix(operator)]
    for place in set(range(len(operators))) - set(stacked):
        backend = operators[place].backend
        with backend.no_grad():
            bounds[place] = lipschitz_bound(operators[place])
    if stacked:
        backend = get_backend(*(operators[place].like for place in stacked))
        with backend.certified_precision(), backend.no_grad():
            for places in _groups(operators, stacked):
                chosen = [operators[place] for place in places]
                for place, bound in zip(places, _stack_bounds(backend, chosen), strict=True):
                    bounds[place] = bound
    return [bound for bound in bounds if bound is not None]


def _is_matrix(operator: LinearOperator) -> bool:
    return isinstance(operator, Dense | Matrices) and not operator.batch_shape and min(operator.shape) <= LARGEST_ORDER


def _groups(operators: list[LinearOperator], places: list[int]) -> Iterator[list[int]]:
    """Split into groups whose Gram matrices differ by at most a quarter in order; the largest comes first."""
    group: list[int] = []
    for place in sorted(places, key=lambda place: -min(operators[place].shape)):
        if group and min(operators[place].shape) < 0.8 * min(operators[group[0]].shape):
            yield group
            group = []
        group.append(place)
    yield group


def _stack_bounds(backend: Backend, operators: list[LinearOperator]) -> list[LipschitzBound]:
    """Certify a group by one stack of padded Gram matrices, or by Gram iteration of each shape."""
    xp = backend.xp
    shapes: dict[tuple[int, int], list[int]] = {}
    for place, operator in enumerate(operators):
        shapes.setdefault(operator.shape, []).append(place)
    order = min(operators[0].shape)
    by_products = backend.is_tracing(operators[0].like) or backend.is_accelerated(operators[0].like)
    method = "gram" if by_products else "cholesky"
    parts: list[tuple[Array, ...]] = []
    for places in shapes.values():
        matrices, scale = _stack(backend, operators, places)
        if by_products:
            parts.append((gram_bound(backend, matrices) * scale,))
            continue
        gram, error = smaller_gram(xp, matrices)
        parts.append((_padded(xp, gram, order), error, scale))
    if by_products:
        values = xp.concat([part[0] for part in parts])
    else:
        gram, error, scale = (xp.concat([part[i] for part in parts]) for i in range(3))
        stack = _bounds_of_stack(backend, gram, error)
        if stack is None:  # one by one, so that each takes as many steps as it needs
            stack = xp.concat(
                [cholesky_bound(backend, _stack(backend, operators, places)[0]) for places in shapes.values()]
            )
        values = stack * scale
    found: list[Any] = [None] * len(operators)
    for at, place in enumerate(place for places in shapes.values() for place in places):
        value = round_up(backend, values[at], operators[place].like.dtype)
        found[place] = LipschitzBound(value, "certified", method)
    return found


def _stack(backend: Backend, operators: list[LinearOperator], places: list[int]) -> tuple[Array, Array]:
    """Matrices of one shape in float64, divided by powers of two near their largest entries, and those powers."""
    xp = backend.xp
    array = xp.stack([xp.astype(operators[place].matrix(), widest(backend), copy=False) for place in places])
    scale = power_of_two_near(backend, xp.max(xp.abs(array), axis=(-2, -1)))
    return array / scale[:, None, None], scale


def _padded(xp: Any, gram: Array, order: int) -> Array:
    """Append zero rows and columns to matrices (k, n, n)."""
    k, n = gram.shape[:2]
    if n == order:
        return gram
    right = xp.zeros((k, n, order - n), dtype=gram.dtype, device=device_of(gram))
    below = xp.zeros((k, order - n, order), dtype=gram.dtype, device=device_of(gram))
    return xp.concat([xp.concat([gram, right], axis=2), below], axis=1)


def _bounds_of_stack(backend: Backend, gram: Array, gram_error: Array) -> Array | None:
    """Bounds (k,) on the norms of matrices with Gram matrices (k, n, n); None if the estimates never pass.

    All are factorised together, after more and more steps of Lanczos' method for all.
    """
    for estimates in norms_from_gram(backend, gram, STACK_TRIED_AFTER, backend.xp.float32):
        bounds = cholesky_certificates(backend, gram, gram_error, estimates * (1 + STACK_MARGIN))
        if bounds is not None:
            return bounds
    return None
