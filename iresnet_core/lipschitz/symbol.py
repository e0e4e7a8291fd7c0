"""Certified norms of layers by matrix products alone, looking at no value: the same eagerly and in compiled programs.

The norm of a convolution is the largest one of its symbol, a small complex matrix per frequency,
A(w) = sum over t of K_t e^(i w t): `frequencies.py` says why, and at which frequencies it is taken.

The Gram matrices A(w)^H A(w) = P + iQ, P symmetric and Q antisymmetric, are held as the real matrices P + Q, their
Hartley transform: sum over d of C_d (cos w d + sin w d), where C_d is the sum of K_t^T K_(t + d) over t. It has the
same Frobenius norm, and its square takes two real products (Bracewell 1983 for the transform).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import gamma, widest, working_dtype
from iresnet_core.lipschitz.certificates import NOTHING, U, at_largest, carried_back, gram_bound, gram_bound_and_vectors
from iresnet_core.lipschitz.frequencies import ENTRIES_AT_A_TIME, RESOLUTION, Grid, grid_of
from iresnet_core.lipschitz.scaling import power_of_two_near
from iresnet_core.operators import Convolution, LinearLayer

__all__ = ["certified_bound"]

# Beyond so many channels or axes the cost of the frequencies, n^3 each, counts more than 0.9 % per axis.
FEW_CHANNELS, FEW_AXES, COARSE_RESOLUTION = 32, 2, 12
# Entries of the matrices that are squared at a time: fewer stay in a processor's cache, which is 2 to 4 times faster
# (64 and 128 channels), but programs shall not be cut into more than so many pieces unless memory asks for it.
ENTRIES_IN_CACHE, PIECES = 2**17, 16
# Norms of Gram iteration that rank the frequencies, with few channels, for which they cost little, and with more. If
# all n singular values at more than `CANDIDATES` frequencies are equal, the bound is n^(2^-norms / 2) too large.
MANY_RANKING_NORMS, RANKING_NORMS, LITTLE_CHANNELS = 8, 5, 16
# Frequencies that are then bounded to the accuracy of `CERTIFICATE_NORMS`.
CANDIDATES = 8
# Norms of Gram iteration in a certificate: n equal singular values, the worst case, are bounded within log(n) / 2^13.
CERTIFICATE_NORMS = 12


def certified_bound(layer: LinearLayer, *, derivative: bool) -> tuple[Array, Array | None]:
    """Bound the norm of a layer, whose weight is a constant for differentiation, in float64.

    Returns the bound () and, if asked for, the array of the weight's shape, float64, whose inner product with the
    weight is the norm, or for a convolution that on the torus: the derivative. The Gram matrices of a convolution of
    single or half precision are squared in single precision; their rounding is part of the bound.
    """
    backend, xp = layer.backend, layer.backend.xp
    wide = widest(backend)
    weight = xp.astype(layer.weight, wide)
    scale = power_of_two_near(backend, xp.max(xp.abs(weight)))
    weight = weight / scale
    if isinstance(layer, Convolution):
        scaled = layer.with_parameters(weight, None)
        if math.prod(layer.window) == 1:
            bound, direction = _matrix_bound(scaled, derivative=derivative)
        else:
            bound, direction = _symbol_bound(scaled, working_dtype(backend, layer.weight.dtype), derivative=derivative)
        return bound * scale, direction
    tall = weight.shape[0] >= weight.shape[1]
    bound, direction = _stack_bound(
        backend, (weight if tall else xp.matrix_transpose(weight))[None, :, :], derivative=derivative
    )
    if direction is not None:
        direction = direction[0, :, :] if tall else xp.matrix_transpose(direction[0, :, :])
    return bound * scale, direction


def kernel_matrices(layer: Convolution) -> Array:
    """Return the matrices of the taps (taps, groups, long, short), transposed where there are more inputs than outputs.

    The norms of the symbol do not mind.
    """
    xp, groups = layer.backend.xp, layer.groups
    kernel = layer.standard_kernel
    out, inner = kernel.shape[0] // groups, kernel.shape[1]
    kernel = xp.reshape(kernel, (groups, out, inner, math.prod(layer.window)))
    return xp.permute_dims(kernel, (3, 0, 1, 2) if inner <= out else (3, 0, 2, 1))


def symbol_chunk(backend: Backend, taps: Array, phases: Array) -> Array:
    """Return real over imaginary parts (count, groups, 2 long, short) of the symbol at phases (count, 2, taps)."""
    xp = backend.xp
    number, groups, long, short = taps.shape
    rows = xp.reshape(phases, (-1, number))
    symbol = xp.matmul(rows, xp.reshape(taps, (number, -1)))
    if groups == 1:
        return xp.reshape(symbol, (-1, 1, 2 * long, short))
    symbol = xp.permute_dims(xp.reshape(symbol, (-1, 2, groups, long, short)), (0, 2, 1, 3, 4))
    return xp.reshape(symbol, (-1, groups, 2 * long, short))


class _Transform(NamedTuple):
    """How the Hartley transform of the Gram matrices is taken.

    Attributes
    ----------
    grid : Grid
        The frequencies, for the taps or for their differences.
    at : callable (count, 2, taps or differences) -> array (count, groups, n, n)
        P + Q at frequencies with such phases.
    error : array ()
        Its rounding in the Frobenius norm, at most; a phase is good to 64 u.
    """

    grid: Grid
    at: Callable[[Array], Array]
    error: Array


def _transform(taps: Array, grid: Grid) -> _Transform:
    """Return the cheaper transform of taps (taps, groups, m, n), m >= n.

    With few taps that is the one by correlations: 3 to 10 times, for 3 x 3 windows and 3 to 12 channels.
    """
    backend = get_backend(taps)
    xp = backend.xp
    number, groups, m, n = taps.shape
    differences = grid.differences
    size = math.prod(differences.window)
    norms = xp.sum(xp.sqrt(xp.sum(taps * taps, axis=(1, 2, 3))))
    error = 2 * gamma(4 * (number + 64) + 4 * (m + n) + size, U) * norms * norms
    cheaper = number**2 * n * (m + size) + grid.total * size * n < grid.total * (2 * number * m + 3 * m * n)
    if cheaper and number**2 * size <= ENTRIES_AT_A_TIME:  # so large is the table of pairs of taps
        half = _correlations(taps, grid)
        others = xp.matrix_transpose(xp.flip(half[1:, ...], axis=0))
        rows = xp.reshape(xp.concat([others, half], axis=0), (size, -1))
        return _Transform(
            differences, lambda phases: xp.reshape(xp.matmul(xp.sum(phases, axis=1), rows), (-1, groups, n, n)), error
        )

    def by_symbol(phases: Array) -> Array:
        symbol = symbol_chunk(backend, taps, phases)
        K = xp.matmul(xp.matrix_transpose(symbol[..., :m, :]), symbol[..., m:, :])
        return xp.matmul(xp.matrix_transpose(symbol), symbol) + K - xp.matrix_transpose(K)

    return _Transform(grid, by_symbol, error)


def _correlations(taps: Array, grid: Grid) -> Array:
    """Return C_d, the sums of K_t^T K_(t + d) over t, of taps (taps, groups, m, n), as (differences, groups, n, n).

    The differences are those from zero on, in the order of the taps; C_(-d) is the transpose of C_d.
    """
    backend = get_backend(taps)
    xp = backend.xp
    number, groups, m, n = taps.shape
    columns = xp.reshape(xp.permute_dims(taps, (1, 2, 0, 3)), (groups, m, number * n))
    # In three parts or more, of which all but the first begin with columns of their own.
    step = max(1, min(-(-number // 3), ENTRIES_AT_A_TIME // (groups * number * n * n)))
    total: Any = 0.0
    for begin in range(0, number, step):
        count = min(step, number - begin)
        rows = xp.matrix_transpose(columns[:, :, begin * n : (begin + count) * n])
        products = xp.reshape(xp.matmul(rows, columns[:, :, begin * n :]), (groups, count, n, number - begin, n))
        products = xp.reshape(xp.permute_dims(products, (1, 3, 0, 2, 4)), (-1, groups * n * n))
        total = total + xp.matmul(grid.pairs(begin, begin + count, backend, taps), products)
    return xp.reshape(total, (-1, groups, n, n))


def _symbol_bound(layer: Convolution, dtype: Any, *, derivative: bool) -> tuple[Array, Array | None]:
    """Bound the norm of a float64 convolution with entries of order one, and its derivative by the kernel.

    Returns the bound () and, if asked for, the array of the kernel's shape whose inner product with the kernel is the
    norm on the torus. All frequencies are ranked by a few steps of Gram iteration in `dtype`; the first `CANDIDATES`
    get as many as a dense layer, and the bound is the larger one of theirs and of that of the next in rank.
    """
    backend, xp = layer.backend, layer.backend.xp
    taps = kernel_matrices(layer)
    fine = taps.shape[-1] <= FEW_CHANNELS and len(layer.window) <= FEW_AXES
    grid = grid_of(layer, RESOLUTION if fine else COARSE_RESOLUTION)
    transform = _transform(taps, grid)
    matrices = taps.shape[1] * taps.shape[3] ** 2

    ranking_norms = MANY_RANKING_NORMS if taps.shape[3] <= LITTLE_CHANNELS else RANKING_NORMS
    counts = (1, 1) if taps.shape[3] == 1 else (ranking_norms, CERTIFICATE_NORMS)
    pieces = round(grid.total / max(1, ENTRIES_IN_CACHE // matrices, -(-grid.total // PIECES)))
    step = -(-grid.total // max(1, pieces))
    step = min(step, transform.grid.at_a_time(max(matrices, 2 * math.prod(taps.shape[1:]))))
    ranks, leading = [], []
    for begin in range(0, grid.total, step):
        phases = transform.grid.phases(begin, min(begin + step, grid.total), backend, taps)
        gram = xp.astype(transform.at(phases), dtype, copy=False)
        bounds, norms, gram = _hartley_bound(xp, gram, [], counts[0], transform.error)
        ranks.append(xp.max(bounds, axis=-1))
        order = xp.argsort(ranks[-1], descending=True)[: min(CANDIDATES, ranks[-1].shape[0])]
        taken = (xp.take(a, order, axis=0) for a in (ranks[-1], xp.stack(norms, axis=-1), gram))
        leading.append((order + begin, *taken))
    numbers, ranking, norms, gram = leading[0]
    if len(ranks) > 1:  # the first ones of all are among the first ones of each part
        numbers, ranking, norms, gram = (xp.concat(parts) for parts in zip(*leading, strict=True))
        order = xp.argsort(ranking, descending=True)[: min(CANDIDATES, ranking.shape[0])]
        numbers, norms, gram = (xp.take(a, order, axis=0) for a in (numbers, norms, gram))
    # Their powers go on from where the ranking left them.
    refined, _, gram = _hartley_bound(xp, gram, list(xp.unstack(norms, axis=-1)), counts[1], transform.error)
    bound = xp.max(refined)
    if grid.total > CANDIDATES:
        ranking = ranks[0] if len(ranks) == 1 else xp.concat(ranks)
        order = xp.argsort(ranking, descending=True)
        bound = xp.maximum(bound, xp.max(xp.take(ranking, order[CANDIDATES : CANDIDATES + 1], axis=0)))
    bound = bound * (grid.slack * (1 + 8 * U))
    bound = xp.where(xp.any(taps != 0), bound, xp.zeros_like(bound))
    if not derivative:
        return bound, None
    place = xp.reshape(at_largest(xp, xp.reshape(refined, (-1,))), tuple(refined.shape))  # (count, groups)
    gram = xp.sum(place[:, :, None, None] * xp.astype(gram, taps.dtype, copy=False), axis=(0, 1))
    phases = _taken_phases(backend, grid, numbers, taps)
    wave = xp.sum(xp.sum(place, axis=1)[:, None, None] * phases, axis=0)  # (2, taps)
    return bound, _direction(layer, taps, wave, xp.sum(place, axis=0), gram)


def _taken_phases(backend: Backend, grid: Grid, places: Array, like: Array) -> Array:
    """Cosines and sines (count, 2, taps) at places that are known to the program only."""
    xp = backend.xp
    angles: Any = 0.0
    rest = places
    shifts = grid.shifts(backend, like)
    for axis in reversed(range(len(grid.sizes))):
        points = grid.sizes[axis] if axis < len(grid.sizes) - 1 else grid.sizes[-1] // 2 + 1
        frequency, rest = rest % points, rest // points
        turns = (frequency[:, None] * xp.astype(shifts[axis, :], frequency.dtype)[None, :]) % grid.sizes[axis]
        angles = angles + xp.astype(turns, like.dtype) * (2 * math.pi / grid.sizes[axis])
    return xp.stack([xp.cos(angles), xp.sin(angles)], axis=1)


def _hartley_bound(
    xp: Any, matrices: Array, norms: list[Array], count: int, first_error: Array
) -> tuple[Array, list[Array], Array]:
    """Bound the norms of A, float64, by `count` norms of Gram iteration from P + Q (..., n, n), P + iQ = A^H A.

    (P + iQ)^2 has P^2 - Q^2 and PQ + QP, which add up to M P + M^T Q for M = P + Q. The Gram matrices were wrong by
    `first_error`, in the norm, before they were rounded to their dtype. Returns also all norms and the last,
    normalised matrices, from which another call may go on, given those norms.
    """
    n, dtype = matrices.shape[-1], matrices.dtype
    u = float(xp.finfo(dtype).eps) / 2
    nothing = NOTHING if u < 1e-10 else 1e-36  # within the range of float32
    norms = list(norms)
    while len(norms) < count:
        if norms:
            turned = xp.matrix_transpose(matrices)
            # Twice the square, of which the norm is halved.
            matrices = xp.matmul(matrices, matrices + turned) + xp.matmul(turned, matrices - turned)
        norm = xp.sqrt(xp.sum(xp.sum(matrices * matrices, axis=-1), axis=-1) + nothing)
        matrices = matrices / norm[..., None, None]
        norms.append(xp.astype(norm / 2 if norms else norm, first_error.dtype, copy=False))
    g = gamma(4 * (n + 2), u) + 8 * u
    last = 1 + gamma(2 * n + 8, u)
    return carried_back(xp, norms, g, last, first_error + 4 * u * norms[0]), norms, matrices


def _direction(layer: Convolution, taps: Array, wave: Array, group: Array, gram: Array) -> Array:
    """Return the derivative of the norm on the torus, Re(conj(u) e^(i w t) v^T), of the kernel's shape.

    It is that at one frequency, `wave` the cosines and sines of w t (2, taps), and of one group, 1 in `group`
    (groups,). The top right vector v is the longest column of `gram`, P + Q of a power of the Gram matrix that has lost
    all others; u is A v / ||A v||.
    """
    xp = layer.backend.xp
    long, short = taps.shape[-2:]
    turned = xp.matrix_transpose(gram)
    diagonal = xp.sum(gram * xp.eye(short, dtype=gram.dtype, device=device_of(gram)), axis=-1)
    column = at_largest(xp, diagonal)[:, None]
    v = xp.stack([xp.matmul(gram + turned, column)[:, 0], xp.matmul(gram - turned, column)[:, 0]])  # (2, short)
    v = v / xp.sqrt(xp.sum(v * v) + NOTHING)
    matrices = xp.sum(group[None, :, None, None] * taps, axis=1)  # (taps, long, short)
    A = symbol_chunk(layer.backend, matrices[:, None, :, :], wave[None, :, :])[0, 0, :, :]
    products = xp.matmul(v, xp.matrix_transpose(A))  # (2, 2 long)
    u = xp.stack([products[0, :long] - products[1, long:], products[0, long:] + products[1, :long]])
    u = u / xp.sqrt(xp.sum(u * u) + NOTHING)
    cos, sin = wave[0, :, None], wave[1, :, None]
    waves = xp.stack([cos * v[0, :] - sin * v[1, :], cos * v[1, :] + sin * v[0, :]])  # (2, taps, short)
    direction = xp.matmul(xp.permute_dims(u, (1, 0))[None, :, :], xp.permute_dims(waves, (1, 0, 2)))
    return _as_kernel(layer, direction[:, None, :, :] * group[None, :, None, None])


def _as_kernel(layer: Convolution, taps: Array) -> Array:
    """Return what `kernel_matrices` made (taps, groups, long, short) as the kernel it was made of."""
    xp, shape = layer.backend.xp, tuple(layer.standard_kernel.shape)
    transposed = shape[1] > shape[0] // layer.groups
    kernel = xp.reshape(xp.permute_dims(taps, (1, 3, 2, 0) if transposed else (1, 2, 3, 0)), shape)
    if layer.data_format == "channels_first":
        return kernel
    return xp.permute_dims(kernel, (*range(2, len(shape)), 1, 0))


def _matrix_bound(layer: Convolution, *, derivative: bool) -> tuple[Array, Array | None]:
    """As `_symbol_bound`, for a window of one tap: the matrices of the groups are the convolution."""
    taps = kernel_matrices(layer)
    bounds, direction = _stack_bound(layer.backend, taps[0, :, :, :], derivative=derivative)
    return bounds, None if direction is None else _as_kernel(layer, direction[None, :, :, :])


def _stack_bound(backend: Backend, matrices: Array, *, derivative: bool) -> tuple[Array, Array | None]:
    """Bound the largest norm of real matrices (k, m, n) with m >= n, and its derivative (k, m, n)."""
    xp = backend.xp
    if not derivative:
        return xp.max(gram_bound(backend, matrices, rtol=0, max_steps=CERTIFICATE_NORMS)), None
    bounds, right = gram_bound_and_vectors(backend, matrices, CERTIFICATE_NORMS)
    left = xp.matmul(matrices, right[..., None])
    left = left / xp.sqrt(xp.sum(left * left, axis=-2, keepdims=True) + NOTHING)
    largest = at_largest(xp, bounds)
    return xp.max(bounds), largest[:, None, None] * left * right[:, None, :]
