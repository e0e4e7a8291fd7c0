"""Certified norms of layers by matrix products alone, looking at no value: the same eagerly and in compiled programs.

The norm of a convolution is the largest one of its symbol, a small complex matrix per frequency,
A(w) = sum over t of K_t e^(i w t): `frequencies.py` says why, and at which frequencies it is taken.

The Gram matrices A(w)^H A(w) = P + iQ, P symmetric and Q antisymmetric, are held as the real matrices P + Q, their
Hartley transform: sum over d of C_d (cos w d + sin w d), where C_d is the sum of K_t^T K_(t + d) over t. It has the
same Frobenius norm, and its square takes two real products (Bracewell 1983 for the transform).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import gamma, widest, working_dtype
from iresnet_core.lipschitz.certificates import NOTHING, U, at_largest, carried_back, gram_bound, gram_bound_and_vectors
from iresnet_core.lipschitz.frequencies import ENTRIES_AT_A_TIME, RESOLUTION, Grid, grid_of
from iresnet_core.lipschitz.scaling import power_of_two_near
from iresnet_core.operators import Convolution, LinearLayer

__all__ = ["Certificate", "certified_bound", "certified_bounds"]

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


class Certificate(NamedTuple):
    """A certified bound on the norm of a layer, and its derivative where somebody may ask for that.

    Attributes
    ----------
    bound : array ()
        At least the norm.
    direction : array or None
        Of the weight's shape: its inner product with the weight is the norm, or for a convolution that on the torus.
    """

    bound: Array
    direction: Array | None


def certified_bound(layer: LinearLayer, *, derivative: bool) -> Certificate:
    """Bound the norm of a layer, whose weight is a constant for differentiation; see `certified_bounds`."""
    return certified_bounds([layer], derivative=derivative)[0]


def certified_bounds(layers: Sequence[LinearLayer], *, derivative: bool) -> list[Certificate]:
    """Bound the norms of layers of one dtype, whose weights are constants for differentiation, in float64.

    The directions are computed only with `derivative`. The Gram matrices of a convolution of single or half precision
    are squared in single precision; their rounding is part of the bound.

    Notes
    -----
    Convolutions of one shape, transposed or not, are bounded side by side while their matrices stay in a processor's
    cache: the sixteen of an image flow with eight small blocks take 16 ms instead of 54.
    """
    out: list[Any] = [None] * len(layers)
    stacks: dict[Any, list[int]] = {}
    for index, layer in enumerate(layers):
        if isinstance(layer, Convolution) and math.prod(layer.window) > 1:
            taps = tuple(kernel_matrices(layer).shape)
            stacks.setdefault((taps, _grid(layer, taps)), []).append(index)
        else:
            out[index] = _bound_of_matrices(layer, derivative=derivative)
    for ((_, groups, _, n), grid), members in stacks.items():
        most = max(1, ENTRIES_IN_CACHE // (grid.total * groups * n**2))
        for begin in range(0, len(members), most):
            part = members[begin : begin + most]
            found = _symbol_bounds([layers[i] for i in part], grid, derivative=derivative)  # type: ignore[misc]
            for index, one in zip(part, found, strict=True):
                out[index] = one
    return out


def _grid(layer: Convolution, taps: tuple[int, ...]) -> Grid:
    """Return the frequencies for a convolution whose taps have this shape."""
    fine = taps[-1] <= FEW_CHANNELS and len(layer.window) <= FEW_AXES
    return grid_of(layer, RESOLUTION if fine else COARSE_RESOLUTION)


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
    relative : float
        Its rounding in the Frobenius norm is at most this times the squared sum of the norms of a layer's taps; a phase
        is good to 64 u.
    """

    grid: Grid
    at: Callable[[Array], Array]
    relative: float


def _transform(taps: Array, grid: Grid) -> _Transform:
    """Return the cheaper transform of taps (taps, groups, m, n), m >= n.

    With few taps that is the one by correlations: 3 to 10 times, for 3 x 3 windows and 3 to 12 channels.
    """
    backend = get_backend(taps)
    xp = backend.xp
    number, groups, m, n = taps.shape
    differences = grid.differences
    size = math.prod(differences.window)
    relative = 2 * gamma(4 * (number + 64) + 4 * (m + n) + size, U)
    cheaper = number**2 * n * (m + size) + grid.total * size * n < grid.total * (2 * number * m + 3 * m * n)
    if cheaper and number**2 * size <= ENTRIES_AT_A_TIME:  # so large is the table of pairs of taps
        half = _correlations(taps, grid)
        others = xp.matrix_transpose(xp.flip(half[1:, ...], axis=0))
        rows = xp.reshape(xp.concat([others, half], axis=0), (size, -1))
        return _Transform(
            differences,
            lambda phases: xp.reshape(xp.matmul(xp.sum(phases, axis=1), rows), (-1, groups, n, n)),
            relative,
        )

    def by_symbol(phases: Array) -> Array:
        symbol = symbol_chunk(backend, taps, phases)
        K = xp.matmul(xp.matrix_transpose(symbol[..., :m, :]), symbol[..., m:, :])
        return xp.matmul(xp.matrix_transpose(symbol), symbol) + K - xp.matrix_transpose(K)

    return _Transform(grid, by_symbol, relative)


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


def _symbol_bounds(layers: Sequence[Convolution], grid: Grid, *, derivative: bool) -> list[Certificate]:
    """Bound the norms of convolutions whose taps have one shape, and their derivatives by the kernels.

    All frequencies are ranked by a few steps of Gram iteration in at least single precision; the first `CANDIDATES` of
    a layer get as many as a dense layer, and the bound is the larger one of theirs and of that of the next in rank.
    """
    backend, xp, count = layers[0].backend, layers[0].backend.xp, len(layers)
    dtype = working_dtype(backend, layers[0].weight.dtype)
    raw = xp.stack([kernel_matrices(layer) for layer in layers])  # (layers, taps, groups, long, short)
    taps = xp.astype(raw, widest(backend), copy=False)
    scale = power_of_two_near(backend, xp.max(xp.abs(taps), axis=(1, 2, 3, 4)))
    taps = taps / scale[:, None, None, None, None]
    _, number, groups, long, n = taps.shape
    # To all of these the layers are so many more groups.
    side_by_side = xp.reshape(xp.permute_dims(taps, (1, 0, 2, 3, 4)), (number, count * groups, long, n))
    transform = _transform(side_by_side, grid)
    norms = xp.sum(xp.sqrt(xp.sum(taps * taps, axis=(2, 3, 4))), axis=1)
    error = xp.reshape(xp.broadcast_to((transform.relative * norms * norms)[:, None], (count, groups)), (-1,))
    matrices = count * groups * n**2

    ranking_norms = MANY_RANKING_NORMS if n <= LITTLE_CHANNELS else RANKING_NORMS
    norm_counts = (1, 1) if n == 1 else (ranking_norms, CERTIFICATE_NORMS)
    pieces = round(grid.total / max(1, ENTRIES_IN_CACHE // matrices, -(-grid.total // PIECES)))
    step = -(-grid.total // max(1, pieces))
    step = min(step, transform.grid.at_a_time(max(matrices, 2 * count * groups * long * n)))
    ranks, leading = [], []
    for begin in range(0, grid.total, step):
        phases = transform.grid.phases(begin, min(begin + step, grid.total), backend, taps)
        gram = xp.astype(transform.at(phases), dtype, copy=False)
        bounds, found, gram = _hartley_bound(xp, gram, [], norm_counts[0], error)
        ranks.append(xp.max(xp.reshape(bounds, (-1, count, groups)), axis=-1))
        order = _order(xp, ranks[-1])[: min(CANDIDATES, ranks[-1].shape[0]), :]
        taken = (_taken(xp, a, order) for a in (ranks[-1], xp.stack(found, axis=-1), gram))
        leading.append((order + begin, *taken))
    numbers, ranking, found, gram = leading[0]
    if len(ranks) > 1:  # the first ones of all are among the first ones of each part
        numbers, ranking, found, gram = (xp.concat(parts) for parts in zip(*leading, strict=True))
        order = _order(xp, ranking)[: min(CANDIDATES, ranking.shape[0]), :]
        numbers, found, gram = (_taken(xp, a, order) for a in (numbers, found, gram))
    # Their powers go on from where the ranking left them.
    refined, _, gram = _hartley_bound(xp, gram, list(xp.unstack(found, axis=-1)), norm_counts[1], error)
    refined = xp.reshape(refined, (-1, count, groups))
    bound = xp.max(refined, axis=(0, 2))
    if grid.total > CANDIDATES:
        ranking = ranks[0] if len(ranks) == 1 else xp.concat(ranks)
        bound = xp.maximum(bound, _taken(xp, ranking, _order(xp, ranking)[CANDIDATES : CANDIDATES + 1, :])[0, :])
    bound = bound * (grid.slack * (1 + 8 * U))
    bound = xp.where(xp.any(taps != 0, axis=(1, 2, 3, 4)), bound, xp.zeros_like(bound)) * scale
    if not derivative:
        return [Certificate(one, None) for one in xp.unstack(bound)]
    place = xp.reshape(xp.permute_dims(refined, (1, 0, 2)), (count, -1))
    place = xp.reshape(at_largest(xp, place), (count, -1, groups))
    gram = xp.reshape(xp.astype(gram, taps.dtype, copy=False), (-1, count, groups, n, n))
    gram = xp.sum(place[..., None, None] * xp.permute_dims(gram, (1, 0, 2, 3, 4)), axis=(1, 2))  # (layers, n, n)
    phases = xp.reshape(_taken_phases(backend, grid, xp.reshape(numbers, (-1,)), taps), (-1, count, 2, number))
    # Cosines and sines (layers, 2, taps) of the frequency of the largest norm.
    wave = xp.sum(xp.sum(place, axis=2)[..., None, None] * xp.permute_dims(phases, (1, 0, 2, 3)), axis=1)
    directions = _directions(xp, taps, wave, xp.sum(place, axis=1), gram)
    stacks = zip(layers, xp.unstack(bound), xp.unstack(directions), strict=True)
    return [Certificate(one, _as_kernel(layer, direction)) for layer, one, direction in stacks]


def _order(xp: Any, ranking: Array) -> Array:
    """Return the numbers of the frequencies (count, layers) from the highest rank down, a column for each layer."""
    return xp.argsort(ranking, axis=0, descending=True)


def _taken(xp: Any, values: Array, order: Array) -> Array:
    """Take from values (frequencies, layers times any, ...) those in `order` (count, layers), a column for each."""
    count, layers = order.shape
    rows = xp.reshape(values, (values.shape[0] * layers, -1))
    own = xp.arange(layers, dtype=order.dtype, device=device_of(order))
    rows = xp.take(rows, xp.reshape(order * layers + own[None, :], (-1,)), axis=0)
    return xp.reshape(rows, (count, *values.shape[1:]))


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


def _directions(xp: Any, taps: Array, wave: Array, group: Array, gram: Array) -> Array:
    """Return the derivatives of norms on the torus, Re(conj(u) e^(i w t) v^T), of the shape of `taps`.

    They are those at one frequency of each layer, `wave` the cosines and sines of w t (layers, 2, taps), and of one
    group, 1 in `group` (layers, groups). The top right vector v is the longest column of `gram` (layers, n, n), P + Q
    of a power of the Gram matrix that has lost all others; u is A v / ||A v||.
    """
    count, number, _, long, short = taps.shape
    turned = xp.matrix_transpose(gram)
    diagonal = xp.sum(gram * xp.eye(short, dtype=gram.dtype, device=device_of(gram)), axis=-1)
    column = at_largest(xp, diagonal)[..., None]
    v = xp.stack([xp.matmul(gram + turned, column)[..., 0], xp.matmul(gram - turned, column)[..., 0]], axis=1)
    v = v / xp.sqrt(xp.sum(v * v, axis=(1, 2), keepdims=True) + NOTHING)  # (layers, 2, short)
    matrices = xp.sum(group[:, None, :, None, None] * taps, axis=2)  # (layers, taps, long, short)
    A = xp.matmul(wave, xp.reshape(matrices, (count, number, long * short)))
    A = xp.reshape(A, (count, 2 * long, short))  # real over imaginary parts
    products = xp.matmul(v, xp.matrix_transpose(A))  # (layers, 2, 2 long)
    real, imaginary = products[..., :long], products[..., long:]
    u = xp.stack([real[:, 0, :] - imaginary[:, 1, :], imaginary[:, 0, :] + real[:, 1, :]], axis=1)
    u = u / xp.sqrt(xp.sum(u * u, axis=(1, 2), keepdims=True) + NOTHING)
    cos, sin, first, second = wave[:, 0, :, None], wave[:, 1, :, None], v[:, 0, None, :], v[:, 1, None, :]
    waves = xp.stack([cos * first - sin * second, cos * second + sin * first], axis=2)  # (layers, taps, 2, short)
    directions = xp.matmul(xp.matrix_transpose(u)[:, None, :, :], waves)  # (layers, taps, long, short)
    return directions[:, :, None, :, :] * group[:, None, :, None, None]


def _as_kernel(layer: Convolution, taps: Array) -> Array:
    """Return what `kernel_matrices` made (taps, groups, long, short) as the kernel it was made of."""
    xp, shape = layer.backend.xp, tuple(layer.standard_kernel.shape)
    transposed = shape[1] > shape[0] // layer.groups
    kernel = xp.reshape(xp.permute_dims(taps, (1, 3, 2, 0) if transposed else (1, 2, 3, 0)), shape)
    if layer.data_format == "channels_first":
        return kernel
    return xp.permute_dims(kernel, (*range(2, len(shape)), 1, 0))


def _bound_of_matrices(layer: LinearLayer, *, derivative: bool) -> Certificate:
    """Bound the norm of a Dense or of a convolution with one tap, which the matrices of its groups are."""
    backend, xp = layer.backend, layer.backend.xp
    weight = xp.astype(layer.weight, widest(backend))
    scale = power_of_two_near(backend, xp.max(xp.abs(weight)))
    weight = weight / scale
    if isinstance(layer, Convolution):
        layer = layer.with_parameters(weight, None)
        bound, direction = _stack_bound(backend, kernel_matrices(layer)[0, ...], derivative=derivative)
        return Certificate(bound * scale, None if direction is None else _as_kernel(layer, direction[None, ...]))
    tall = weight.shape[0] >= weight.shape[1]
    matrices = (weight if tall else xp.matrix_transpose(weight))[None, :, :]
    bound, direction = _stack_bound(backend, matrices, derivative=derivative)
    if direction is not None:
        direction = direction[0, :, :] if tall else xp.matrix_transpose(direction[0, :, :])
    return Certificate(bound * scale, direction)


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
