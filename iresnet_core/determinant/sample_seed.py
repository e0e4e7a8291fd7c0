"""Random numbers that belong to a sample: a hash of its bits, of a place in a flow, and of a counter.

Equal samples get equal numbers, in any batch and order, on every backend and in compiled programs; those of different
samples, blocks and probes are as good as independent. A word is 32 bits, kept as int32, whose products wrap around.
What mixes the bits is the finalizer of MurmurHash3 (Appleby, public domain): every bit of the argument changes every
bit of the result with a chance of one half.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import flatten

__all__ = ["SampleSeed"]

# The golden ratio in 32 bits, and the factors of the finalizer as numbers of int32.
STEP, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B9, -2048144789, -1028477387
# Places for what numbers are drawn for.
SIGNS, ORDER, RADII, ANGLES = 1, 2, 3, 4


class SampleSeed(NamedTuple):
    """Seeds of the samples `x` (batch, ...), at a place in a flow that `path` stands for.

    Samples count as rounded to float32, so that those of float64 and float32 have equal seeds, and -0.0 counts as 0.0.
    """

    x: Array
    path: int = 0

    def child(self, index: int) -> "SampleSeed":
        """Return the seeds for part `index` of what these are the seeds of."""
        return SampleSeed(self.x, _mixed_int(self.path * 31 + index + 1))

    def signs(self, backend: Backend, count: int, like: Array) -> Array:
        """Return +1 and -1 with equal chance for `count` columns: (batch, count), with the dtype of `like`."""
        one = backend.xp.ones((1, 1), dtype=like.dtype, device=device_of(like))
        return backend.xp.where(self._words(backend, SIGNS, count) < 0, -one, one)

    def order(self, backend: Backend, count: int) -> Array:
        """Return the numbers from 0 to count - 1 in random order for every sample: (batch, count)."""
        return backend.xp.argsort(self._words(backend, ORDER, count), axis=-1, stable=True)

    def normal(self, backend: Backend, place: int, count: int, like: Array) -> Array:
        """Return standard normal numbers (batch, count) by Box and Muller; `place` tells one call from another."""
        xp = backend.xp
        radius, angle = (
            (xp.astype(self.child(place)._words(backend, what, count), xp.float64) + 0.5) * 2.0**-32 + 0.5
            for what in (RADII, ANGLES)
        )
        return xp.astype(xp.sqrt(-2 * xp.log(radius)) * xp.cos(2 * math.pi * angle), like.dtype)

    def _words(self, backend: Backend, what: int, count: int) -> Array:
        """Return one word for each sample and counter: (batch, count)."""
        xp = backend.xp
        single = xp.astype(flatten(xp, backend.stop_gradient(self.x)), xp.float32)
        bits = backend.bits(xp.where(single == 0, xp.zeros_like(single), single))
        counters = backend.constant_array(_counters, bits.shape[1], like=bits)
        sample = xp.sum(_mixed(xp, xp.bitwise_xor(bits, counters)), axis=1, dtype=xp.int32)
        sample = _mixed(xp, xp.bitwise_xor(sample, _signed(_mixed_int(self.path ^ what))))
        return _mixed(xp, xp.bitwise_xor(sample[:, None], backend.constant_array(_counters, count, like=bits)))


def _counters(count: int) -> np.ndarray:
    """Return mixed words of the numbers from 1 to `count`: (1, count).

    They come from the host, since compilers take it that products of known numbers stay in their range.
    """
    h = np.arange(1, count + 1, dtype=np.uint32) * np.uint32(STEP)
    for shift, factor in ((16, FIRST_FACTOR), (13, SECOND_FACTOR)):
        h = (h ^ h >> np.uint32(shift)) * np.uint32(factor % 2**32)
    words: np.ndarray = (h ^ h >> np.uint32(16)).view(np.int32)[None, :]
    return words


def _mixed(xp: Any, h: Array) -> Array:
    """The finalizer of MurmurHash3 on int32; what the shifts of negative numbers fill in is cut off."""
    h = xp.bitwise_xor(h, xp.bitwise_and(xp.bitwise_right_shift(h, 16), 0xFFFF)) * FIRST_FACTOR
    h = xp.bitwise_xor(h, xp.bitwise_and(xp.bitwise_right_shift(h, 13), 0x7FFFF)) * SECOND_FACTOR
    return xp.bitwise_xor(h, xp.bitwise_and(xp.bitwise_right_shift(h, 16), 0xFFFF))


def _mixed_int(h: int) -> int:
    """The same of one number."""
    h &= 0xFFFFFFFF
    h = ((h ^ h >> 16) * FIRST_FACTOR) & 0xFFFFFFFF
    h = ((h ^ h >> 13) * SECOND_FACTOR) & 0xFFFFFFFF
    return h ^ h >> 16


def _signed(h: int) -> int:
    """The int32 of the same bits."""
    return h - 2**32 if h >= 2**31 else h
