"""Frequencies at which the symbol of a convolution is taken.

A convolution with zero padding is the circular convolution on a torus of size n + r, r the reach of its window,
restricted to inputs that vanish outside the image and to the outputs that are kept; a strided one keeps fewer. The
Fourier transform splits the circular one into its symbol: one small complex matrix A(w) a frequency,
A(w) = sum over t of K_t e^(i w t). Its norm is the largest ||A(w)||. On a torus of size n this would be no bound.

Along an axis with k taps, u^H A(w) v is a trigonometric polynomial of degree n = (k - 1) / 2 but for a phase, so that
its maximum over all w is at most 1 / cos(pi n / M) times that over M equidistant ones (M. Riesz 1914). On images so
large that the torus has more, the grid has `resolution` (k - 1), however large they are.
"""

import math
from typing import NamedTuple

import numpy as np

from iresnet_core.backends import Array, Backend
from iresnet_core.lipschitz.certificates import U
from iresnet_core.operators import Convolution

__all__ = ["ENTRIES_AT_A_TIME", "RESOLUTION", "Grid", "grid_of"]

# Points of the finest grid for each tap but the first, where the torus has more; 0.13 % per axis may be lost.
RESOLUTION = 31
# Entries of the symbol, or of the phases, that are held at a time (32 MiB of float64).
ENTRIES_AT_A_TIME = 2**22


class Grid(NamedTuple):
    """Frequencies at which the symbol of a convolution is taken, by their numbers 0 .. total - 1.

    Attributes
    ----------
    sizes : tuple of int
        Points per axis; the kernel is real, so that half of them are enough along the last axis.
    steps : tuple of int
        Distance of the taps per axis, in units of the grid.
    window : tuple of int
        Taps per axis.
    slack : float
        The largest norm anywhere is at most this times the largest one on the grid.
    first : tuple of int
        Place of the first tap per axis.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    window: tuple[int, ...]
    slack: float
    first: tuple[int, ...]

    @property
    def differences(self) -> "Grid":
        """The same frequencies for the differences of two taps in the place of the taps."""
        window = tuple(2 * k - 1 for k in self.window)
        return self._replace(window=window, first=tuple(1 - k for k in self.window))

    @property
    def total(self) -> int:
        """Number of frequencies."""
        return math.prod(self.sizes[:-1]) * (self.sizes[-1] // 2 + 1)

    def at_a_time(self, entries: int) -> int:
        """Return how many frequencies to take at a time, if their phases and `entries` numbers each are held."""
        return max(1, ENTRIES_AT_A_TIME // max(entries, 2 * math.prod(self.window)))

    def phases(self, begin: int, stop: int, backend: Backend, like: Array) -> Array:
        """Cosines and sines (stop - begin, 2, taps) of some of the frequencies, float64."""
        numbers = (begin, stop, *self.sizes, *self.steps, *self.window, *self.first)
        return backend.constant_array(_phases, *numbers, like=like)

    def shifts(self, backend: Backend, like: Array) -> Array:
        """Places of the taps (axes, taps) in units of the grid, integers."""
        return backend.constant_array(_shifts, *self.steps, *self.window, *self.first, like=like)

    def pairs(self, begin: int, stop: int, backend: Backend, like: Array) -> Array:
        """1 where a pair of some taps with one from `begin` on has a difference, else 0; a row for every difference.

        The rows are those of the taps of `differences` from the middle one, zero, on.
        """
        return backend.constant_array(_pairs, begin, stop, *self.window, like=like)


def grid_of(layer: Convolution, resolution: int = RESOLUTION) -> Grid:
    """Return the frequencies for a convolution at its size of images: the torus, or a grid where that has more."""
    circular = layer.padding_mode == "circular"
    sizes, steps, slack = [], [], 1.0
    for n, reach, k, dilation in zip(layer.spatial, layer.reach, layer.window, layer.dilation, strict=True):
        torus = n if circular else n + reach
        limit = resolution * (k - 1) if k > 1 else 1
        sizes.append(min(torus, limit))
        steps.append(dilation if torus <= limit else 1)  # any frequency times the dilation is a frequency
        if torus > limit and k > 1:
            slack /= math.cos(math.pi * (k - 1) / (2 * limit)) * (1 - 4 * U)
    return Grid(tuple(sizes), tuple(steps), tuple(layer.window), slack, (0,) * len(sizes))


def _shifts(*numbers: int) -> np.ndarray:
    axes = len(numbers) // 3
    steps, window, first = numbers[:axes], numbers[axes : 2 * axes], numbers[2 * axes :]
    places = np.stack(np.unravel_index(np.arange(math.prod(window)), window)) + np.asarray(first)[:, None]
    return places * np.asarray(steps)[:, None]  # type: ignore[no-any-return]


def _phases(begin: int, stop: int, *numbers: int) -> np.ndarray:
    """Cosines and sines by index arithmetic, so that nothing grows with the number of all frequencies.

    They are products of those along the axes: six times faster, for a window of 32 x 32, than a cosine and sine each.
    """
    axes = len(numbers) // 4
    sizes, steps, window, first = (numbers[i * axes : (i + 1) * axes] for i in range(4))
    waves = np.ones((stop - begin, 1), dtype=np.complex128)
    for axis, frequencies in enumerate(np.unravel_index(np.arange(begin, stop), (*sizes[:-1], sizes[-1] // 2 + 1))):
        present, places = np.unique(frequencies, return_inverse=True)
        # Exact to a few roundings, since multiples of the period are removed in integers.
        turns = np.outer(present, (np.arange(window[axis]) + first[axis]) * steps[axis]) % sizes[axis]
        angles = 2 * np.pi * ((turns - sizes[axis] * (2 * turns > sizes[axis])) / sizes[axis])
        table = np.cos(angles) + 1j * np.sin(angles)
        waves = np.reshape(waves[:, :, None] * table[places][:, None, :], (stop - begin, -1))
    return np.stack([waves.real, waves.imag], axis=1)


def _pairs(begin: int, stop: int, *window: int) -> np.ndarray:
    taps = np.stack(np.unravel_index(np.arange(math.prod(window)), window), axis=-1)
    extents = [2 * k - 1 for k in window]
    differences = taps[None, begin:, :] - taps[begin:stop, None, :] + (np.array(window) - 1)
    places = np.ravel_multi_index(tuple(np.moveaxis(differences, -1, 0)), extents).reshape(1, -1)
    total = math.prod(extents)
    equal: np.ndarray = np.arange(total // 2, total)[:, None] == places
    return equal.astype(np.float64)
