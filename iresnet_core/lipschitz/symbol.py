"""Certified norms of layers by matrix products alone, looking at no value: the same eagerly and in compiled programs.

The norm of a convolution is the largest one of its symbol, a small complex matrix a frequency: `frequencies.py` says
why, and at which frequencies it is taken.
"""

import math
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import gamma, widest
from iresnet_core.lipschitz.certificates import NOTHING, U, at_largest, carried_back, gram_bound, gram_bound_and_vectors
from iresnet_core.lipschitz.frequencies import Grid, grid_of
from iresnet_core.lipschitz.scaling import power_of_two_near
from iresnet_core.operators import Convolution, LinearLayer

__all__ = ["certified_bound"]

# Norms of Gram iteration that rank the frequencies: the bound is (rank)^(2^-6) too large at most.
RANKING_NORMS = 5
# Frequencies that are then bounded to the accuracy of `CERTIFICATE_NORMS`.
CANDIDATES = 8
# Norms of Gram iteration in a certificate: n equal singular values, the worst case, are bounded within log(n) / 2^13.
CERTIFICATE_NORMS = 12


def certified_bound(layer: LinearLayer, *, derivative: bool) -> tuple[Array, Array | None]:
    """Bound the norm of a layer, whose weight is a constant for differentiation, in float64.

    Returns the bound () and, if asked for, the array of the weight's shape, float64, whose inner product with the
    weight is the norm, or for a convolution that on the torus: the derivative.
    """
    backend, xp = layer.backend, layer.backend.xp
    wide = widest(backend)
    weight = xp.astype(layer.weight, wide)
    scale = power_of_two_near(backend, xp.max(xp.abs(weight)))
    weight = weight / scale
    if isinstance(layer, Convolution):
        scaled = layer.with_parameters(weight, None)
        bound, direction = (_matrix_bound if math.prod(layer.window) == 1 else _symbol_bound)(
            scaled, derivative=derivative
        )
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


def _symbol_bound(layer: Convolution, *, derivative: bool) -> tuple[Array, Array | None]:
    """Bound the norm of a float64 convolution with entries of order one, and its derivative by the kernel.

    Returns the bound () and, if asked for, the array of the kernel's shape whose inner product with the kernel is the
    norm on the torus. All frequencies are ranked by a few steps of Gram iteration; the first `CANDIDATES` get as many
    as a dense layer, and the bound is the larger one of theirs and of that of the next in rank.
    """
    backend, xp = layer.backend, layer.backend.xp
    taps, grid = kernel_matrices(layer), grid_of(layer)
    ranks = []
    step = grid.at_a_time(2 * math.prod(taps.shape[1:]))
    for begin in range(0, grid.total, step):
        symbol = symbol_chunk(backend, taps, grid.phases(begin, min(begin + step, grid.total), backend, taps))
        ranks.append(xp.max(_hermitian_bound(xp, symbol, RANKING_NORMS)[0], axis=-1))
    ranking = ranks[0] if len(ranks) == 1 else xp.concat(ranks)
    order = xp.argsort(ranking, descending=True)
    count = min(CANDIDATES, grid.total)
    phases = _taken_phases(backend, grid, order[:count], taps)
    symbol = symbol_chunk(backend, taps, phases)
    refined, gram = _hermitian_bound(xp, symbol, CERTIFICATE_NORMS)
    bound = xp.max(refined)
    if count < grid.total:
        bound = xp.maximum(bound, xp.max(xp.take(ranking, order[count : count + 1], axis=0)))
    # Error of the symbol in the Frobenius norm: each phase is good to 64 u, each sum to `taps` more.
    tap_norms = xp.sqrt(xp.sum(taps * taps, axis=(1, 2, 3)))
    error = 4 * (taps.shape[0] + 64) * U * xp.sum(tap_norms)
    bound = (bound + error) * (grid.slack * (1 + 8 * U))
    bound = xp.where(xp.any(taps != 0), bound, xp.zeros_like(bound))
    return bound, _direction(layer, taps, phases, symbol, refined, gram) if derivative else None


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


def _hermitian_bound(xp: Any, symbol: Array, count: int) -> tuple[Array, tuple[Array, Array]]:
    """Bound the norms of complex matrices (..., 2 m, n), real over imaginary parts, by `count` norms of Gram iteration.

    The Gram matrices are P + iQ with P symmetric and Q antisymmetric; (P + iQ)^H (P + iQ) takes three real products,
    which cost less than a complex one and which every compiler knows. Returns also the last, normalised one, (P, Q).
    """
    m, n = symbol.shape[-2] // 2, symbol.shape[-1]
    real, imaginary = symbol[..., :m, :], symbol[..., m:, :]
    P = xp.matmul(xp.matrix_transpose(symbol), symbol)
    K = xp.matmul(xp.matrix_transpose(real), imaginary)
    first_error = 2 * gamma(4 * (m + n + 4), U) * xp.sum(symbol * symbol, axis=(-2, -1))
    norms: list[Array] = []
    while True:
        Q = K - xp.matrix_transpose(K)
        norm = xp.sqrt(xp.sum(P * P, axis=(-2, -1)) + xp.sum(Q * Q, axis=(-2, -1)) + NOTHING)
        norms.append(norm)
        P, Q = P / norm[..., None, None], Q / norm[..., None, None]
        if len(norms) == count:
            break
        transposed = xp.matrix_transpose(P)
        K = xp.matmul(transposed, Q)
        P = xp.matmul(transposed, P) + xp.matmul(xp.matrix_transpose(Q), Q)
    return carried_back(xp, norms, gamma(4 * (n + 2), U) + 8 * U, n, first_error), (P, Q)


def _direction(
    layer: Convolution, taps: Array, phases: Array, symbol: Array, bounds: Array, gram: tuple[Array, Array]
) -> Array:
    """Return the derivative of the norm on the torus, Re(conj(u) e^(i w t) v^T), of the kernel's shape.

    The top right vector v is the longest column of the last Gram matrix, a power of the first that has lost all others;
    u is A v / ||A v||. Both are those of the frequency, and the group, with the largest bound.
    """
    xp = layer.backend.xp
    long, short = taps.shape[-2:]
    place = xp.reshape(at_largest(xp, xp.reshape(bounds, (-1,))), tuple(bounds.shape))  # (count, groups)
    group = xp.sum(place, axis=0)
    wave = xp.sum(xp.sum(place, axis=1)[:, None, None] * phases, axis=0)  # (2, taps)
    P, Q, A = (xp.sum(place[:, :, None, None] * matrices, axis=(0, 1)) for matrices in (*gram, symbol))
    diagonal = xp.sum(P * xp.eye(short, dtype=P.dtype, device=device_of(P)), axis=-1)
    column = at_largest(xp, diagonal)[:, None]
    v = xp.stack([xp.matmul(P, column)[:, 0], xp.matmul(Q, column)[:, 0]])  # (2, short)
    v = v / xp.sqrt(xp.sum(v * v) + NOTHING)
    products = xp.matmul(v, xp.matrix_transpose(A))  # (2, 2 long)
    u = xp.stack([products[0, :long] - products[1, long:], products[0, long:] + products[1, :long]])
    u = u / xp.sqrt(xp.sum(u * u) + NOTHING)
    cos, sin = wave[0, :, None], wave[1, :, None]
    turned = xp.stack([cos * v[0, :] - sin * v[1, :], cos * v[1, :] + sin * v[0, :]])  # (2, taps, short)
    direction = xp.matmul(
        xp.permute_dims(u, (1, 0))[None, :, :], xp.permute_dims(turned, (1, 0, 2))
    )  # (taps, long, short)
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
