"""Norm of a convolution through the circular convolution that contains it.

A convolution with zero padding is the circular convolution on a torus of size n + k - 1, restricted to inputs that
vanish outside the image and to the outputs that are kept; a strided one keeps fewer. On a torus the Fourier transform
splits the operator into one small matrix a frequency. On a torus of size n this would be no bound.
"""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import fixed_start
from iresnet_core.lipschitz.certificates import (
    U,
    cholesky_certificate,
    largest_singular_value,
    raise_until_certified,
    singular_value_bound,
    smaller_gram,
)
from iresnet_core.operators import Convolution

__all__ = ["fourier_bound"]

# Entries of the frequency matrices, or of the phases, that are held at a time (64 MiB of complex128).
ENTRIES_AT_A_TIME = 2**22
# Up to this many channels a group the singular values of every frequency cost less than their certificate.
FEW_CHANNELS = 8
# Power steps that rank the frequencies, and how many of the first are decomposed.
POWER_STEPS = 12
CANDIDATES = 8


def fourier_bound(layer: Convolution) -> Array:
    """Bound the norm of a float64 convolution; a 0-d array.

    The frequency matrices are taken a chunk at a time. In each, the most promising ones give a lower bound s by SVD,
    and one batched Cholesky factorisation certifies (1.004 s)^2 - A^H A for all of them.
    """
    backend, xp = layer.backend, layer.backend.xp
    estimate, bound, rounding = 0.0, 0.0, 0.0
    for matrices, error in _frequency_matrices(layer):
        rounding = max(rounding, error)
        if min(matrices.shape[-2:]) <= FEW_CHANNELS:
            bound = max(bound, float(xp.max(singular_value_bound(backend, matrices))))
            continue
        gram, gram_error = smaller_gram(xp, matrices)
        if not bool(xp.any(gram != 0)):
            continue
        quotients = _rayleigh_quotients(backend, gram)
        order = xp.argsort(quotients, descending=True)
        best = xp.take(matrices, order[: min(CANDIDATES, order.shape[0])], axis=0)
        estimate = max(estimate, float(xp.max(largest_singular_value(backend, best))))
        certified = cholesky_certificate(backend, gram, gram_error, bound) if bound else None
        if certified is not None:
            bound = certified
            continue
        bound = max(bound, raise_until_certified(backend, gram, gram_error, iter((estimate,))))
    return xp.asarray((bound + rounding) * (1 + 4 * U), dtype=xp.float64, device=device_of(layer.weight))


def _rayleigh_quotients(backend: Backend, gram: Array) -> Array:
    """Lower bounds on the largest eigenvalues of positive semidefinite matrices (count, n, n), by power steps."""
    xp = backend.xp
    v = fixed_start(backend, (1, gram.shape[-1], 1), gram) + xp.zeros_like(gram[:, :, :1])
    for _ in range(POWER_STEPS):
        w = xp.matmul(gram, v)
        length = xp.sqrt(xp.sum(xp.abs(w) ** 2, axis=(-2, -1)))
        length = xp.where(length > 0, length, xp.ones_like(length))
        v = w / xp.astype(length, w.dtype)[:, None, None]
    return xp.sqrt(xp.sum(xp.abs(xp.matmul(gram, v)) ** 2, axis=(-2, -1)))


def _frequency_matrices(layer: Convolution) -> Iterator[tuple[Array, float]]:
    """Yield the matrices (count, out / groups, in / groups) of all frequencies and groups, and their rounding error.

    The kernel is real, so that half of the frequencies along the last axis is enough. With few taps the transform is
    one matrix product; its phases are exact to a few roundings, since multiples of the period are removed in integers.
    """
    backend, xp = layer.backend, layer.backend.xp
    circular = layer.padding_mode == "circular"
    sizes = [n if circular else n + r for n, r in zip(layer.spatial, layer.reach, strict=True)]
    taps = np.array(list(product(*map(range, layer.window)))) * np.array(layer.dilation)  # (taps, axes)
    out, inner = layer.out_channels // layer.groups, layer.channels // layer.groups
    kernel = xp.reshape(layer.standard_kernel, (layer.groups * out * inner, taps.shape[0]))
    # Error of one frequency matrix in the Frobenius norm: each tap's phase is good to 16 u, each sum to `taps` more.
    tap_norms = xp.sqrt(xp.sum(kernel**2, axis=0))
    error = 4 * (taps.shape[0] + 16) * U * float(xp.sum(tap_norms))
    ranges = [*map(range, sizes[:-1]), range(sizes[-1] // 2 + 1)]
    frequencies = np.array(list(product(*ranges)))  # (count, axes)
    step = max(1, ENTRIES_AT_A_TIME // max(layer.groups * out * inner, taps.shape[0]))
    for begin in range(0, math.prod(map(len, ranges)), step):
        chunk = frequencies[begin : begin + step]
        turns = sum((np.outer(chunk[:, axis], taps[:, axis]) % size) / size for axis, size in enumerate(sizes))
        phases = np.exp(-2j * np.pi * (turns % 1.0))
        table = backend.from_numpy(phases.T, kernel)
        matrices = xp.matmul(xp.astype(kernel, xp.complex128), table)  # (groups out in, count)
        yield (
            xp.reshape(xp.matrix_transpose(matrices), (chunk.shape[0] * layer.groups, out, inner)),
            error,
        )
