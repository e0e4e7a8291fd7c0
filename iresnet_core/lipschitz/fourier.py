"""Norm of a convolution through the circular convolution that contains it.

It is the largest norm of the symbol, one small matrix per frequency. `frequencies.py` says why, and at which
frequencies.
"""

import math
from collections.abc import Iterator
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import fixed_start
from iresnet_core.lipschitz.certificates import (
    U,
    cholesky_certificate,
    frobenius_bound,
    largest_singular_value,
    raise_until_certified,
    singular_value_bound,
    smaller_gram,
)
from iresnet_core.lipschitz.frequencies import grid_of
from iresnet_core.lipschitz.symbol import kernel_matrices, symbol_chunk
from iresnet_core.operators import Convolution

__all__ = ["fourier_bound"]

# Up to this many channels per group the singular values of every frequency cost less than their certificate.
FEW_CHANNELS = 8
# Power steps that rank the frequencies, then more where that was not enough; how many of the first are decomposed.
POWER_STEPS = (12, 60)
CANDIDATES = 8


def fourier_bound(layer: Convolution) -> Array:
    """Bound the norm of a float64 convolution with entries of order one; a 0-d array.

    The matrices of the symbol are taken a chunk at a time, and each chunk is bounded from the bound of those before.
    """
    backend, xp = layer.backend, layer.backend.xp
    taps, grid = kernel_matrices(layer), grid_of(layer)
    step = grid.at_a_time(2 * math.prod(taps.shape[1:]))
    bound = 0.0
    for begin in range(0, grid.total, step):
        phases = grid.phases(begin, min(begin + step, grid.total), backend, taps)
        bound = _chunk_bound(backend, _complex(xp, symbol_chunk(backend, taps, phases)), bound)
    # Error of the symbol in the Frobenius norm: each phase is good to 64 u, each sum to `taps` more.
    error = 4 * (taps.shape[0] + 64) * U * float(xp.sum(xp.sqrt(xp.sum(taps * taps, axis=(1, 2, 3)))))
    bound = (bound + error) * (grid.slack * (1 + 8 * U))
    return xp.asarray(bound, dtype=xp.float64, device=device_of(layer.weight))


def _complex(xp: Any, symbol: Array) -> Array:
    """Return real over imaginary parts (count, groups, 2 m, n) as complex matrices (count * groups, m, n)."""
    m, n = symbol.shape[-2] // 2, symbol.shape[-1]
    symbol = xp.astype(xp.reshape(symbol, (-1, 2 * m, n)), xp.complex128)
    return symbol[:, :m, :] + 1j * symbol[:, m:, :]


def _chunk_bound(backend: Backend, matrices: Array, known: float) -> float:
    """Bound the norms of complex matrices (count, m, n) all at once, by at least the number that is `known` already.

    If they are not below that, the most promising ones give a lower bound s by SVD, and one batched Cholesky
    factorisation certifies (1.004 s)^2 - A^H A for all of them.
    """
    xp = backend.xp
    channels = min(matrices.shape[-2:])
    if channels <= FEW_CHANNELS:
        bounds = frobenius_bound(backend, matrices) if channels == 1 else singular_value_bound(backend, matrices)
        return max(known, float(xp.max(bounds)))
    gram, gram_error = smaller_gram(xp, matrices)
    if not bool(xp.any(gram != 0)):
        return known
    certified = cholesky_certificate(backend, gram, gram_error, known) if known else None
    if certified is None:
        certified = raise_until_certified(backend, gram, gram_error, _estimates(backend, matrices, gram))
    return max(known, certified)


def _estimates(backend: Backend, matrices: Array, gram: Array) -> Iterator[float]:
    """Yield lower bounds on the largest norm of matrices, given the smaller Gram matrices; each costs more.

    Power steps rank them; the singular values of the first in rank are computed.
    """
    xp = backend.xp
    v = fixed_start(backend, (1, gram.shape[-1], 1), gram) + xp.zeros_like(gram[:, :, :1])
    for steps in POWER_STEPS:
        for _ in range(steps):
            w = xp.matmul(gram, v)
            length = xp.sqrt(xp.sum(xp.abs(w) ** 2, axis=(-2, -1)))
            v = w / xp.astype(xp.where(length > 0, length, xp.ones_like(length)), w.dtype)[:, None, None]
        order = xp.argsort(length, descending=True)
        best = xp.take(matrices, order[: min(CANDIDATES, order.shape[0])], axis=0)
        yield float(xp.max(largest_singular_value(backend, best)))
