"""Closed walks over the positions of an image, one tap of each convolution of a cycle after the other.

A tap at the offset o carries position p + o to p. A trace is cyclic: its terms are the walks that start at a position q
behind one group of slopes, go through the convolutions up to another group, and from there through the others back to
q. Both parts are listed here as walks away from q, the second one against the order of the layers. With zero padding a
walk counts only where every position on its way is inside of the image. That is the same in the interior and along each
border, so that the image falls into boxes, in each of which the same walks count.
"""

import functools
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise, product
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Box", "Geometry", "Levels", "Offset", "Walks", "are_few", "counts", "walk_numbers"]

Offset = tuple[int, ...]
Box = tuple[tuple[int, int], ...]
# The offsets of the taps of every layer behind each group of slopes, the extent, and whether the padding is circular.
Geometry = tuple[tuple[tuple[tuple[Offset, ...], ...], ...], tuple[int, ...], bool]
# For every layer on the way the numbers of the walks up to it and of its taps: one pair for each walk through it.
Levels = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

# Walks of one part of the way up to which cycles of a few layers are taken, and of more layers. Four convolutions of
# 3 x 3 have 729, and the products of matrices along them would cost many times as much as all else of a training step.
FEW_LAYERS, MOST_OF_FEW, MOST = 3, 2**14, 2**7
# Entries of the matrices along all walks of one part, for more layers.
MOST_ENTRIES = 2**25


class Walks(NamedTuple):
    """The walks of two groups of slopes, or of one, `there` from a base and the way back walked from the base too.

    Attributes
    ----------
    turned : bool
        Whether the base is the second group.
    along : bool
        Whether `there` has the layers behind the base, in their order, and `back` those before it, against it; else it
        is the other way round.
    boxes : tuple
        Of positions of the base.
    low, high, step : tuple of int
        `there` ends at displacements from `low` to `high` in such steps.
    there, back : tuple
        How the products of matrices along the walks are made.
    """

    turned: bool
    along: bool
    boxes: tuple[Box, ...]
    low: Offset
    high: Offset
    step: Offset
    there: Levels
    back: Levels

    @property
    def window(self) -> tuple[int, ...]:
        """How many displacements there are along each axis."""
        return tuple((b - a) // s + 1 for a, b, s in zip(self.low, self.high, self.step, strict=True))


class _Walk(NamedTuple):
    taps: tuple[int, ...]
    between: tuple[Offset, ...]
    end: Offset


class _Listed(NamedTuple):
    """Walks with all that is needed to say which of them count."""

    walks: Walks
    there: tuple[_Walk, ...]
    back: tuple[_Walk, ...]
    closed: frozenset[Offset]


def walk_numbers(geometry: Geometry, first: int, second: int) -> tuple[Any, ...]:
    """Return the fields of `Walks` for two groups of slopes, `first` before `second`, or once around if they are one.

    It is a plain tuple, and not kept here, since compilers take neither that class nor functions that keep answers.
    """
    return tuple(_listed(geometry, first, second).walks)


def counts(geometry: Geometry, first: int, second: int, back: bool) -> np.ndarray:
    """Return which walks count: (boxes times displacements, walks); of `there` no boxes where they are all the same."""
    return _counts(geometry, first, second, back)


def are_few(geometry: Geometry, widths: Sequence[int]) -> bool:
    """Return whether all pairs of groups have few enough walks, for groups of `widths` channels; lists none of them."""
    groups, layers = len(geometry[0]), sum(map(len, geometry[0]))
    for first in range(groups):
        for second in range(groups):
            if first == second and groups > 1:
                continue
            number = math.prod(map(len, _steps(geometry, first, second)))
            if layers <= FEW_LAYERS:
                if number > MOST_OF_FEW:
                    return False
            elif number > MOST or number * widths[first] * widths[second] > MOST_ENTRIES:
                return False
    return True


def _steps(geometry: Geometry, begin: int, end: int) -> list[Sequence[Offset]]:
    """The offsets of the layers from behind one group to before another, or once around."""
    links = geometry[0]
    distance = (end - begin) % len(links) or len(links)
    return [offsets for k in range(distance) for offsets in links[(begin + k) % len(links)]]


@functools.lru_cache(maxsize=1024)
def _listed(geometry: Geometry, first: int, second: int) -> _Listed:
    if first == second:
        return _from_base(geometry, [], _against(_steps(geometry, first, first)), turned=False, along=True)
    forward, onward = _steps(geometry, first, second), _steps(geometry, second, first)

    # The window of the sums over positions is that of `there`; one layer alone takes no products.
    def cost(steps: Sequence[Sequence[Offset]]) -> tuple[int, int]:
        spans = (max(side) - min(side) for offsets in steps for side in zip(*offsets, strict=True))
        return sum(spans), len(steps)

    forward_there = cost(forward) <= cost(onward)
    found = []
    for turned, (behind, before) in enumerate(((forward, onward), (onward, forward))):
        along = forward_there != bool(turned)
        ways = (_along(behind), _against(before)) if along else (_against(before), _along(behind))
        found.append(_from_base(geometry, *ways, turned=bool(turned), along=along))
    return min(found, key=lambda listed: len(listed.walks.boxes))


def _along(steps: Sequence[Sequence[Offset]]) -> list[list[Offset]]:
    """The displacements of a walk with the layers: a tap at the offset o leads from p to p - o."""
    return [[tuple(-o for o in offset) for offset in offsets] for offsets in steps]


def _against(steps: Sequence[Sequence[Offset]]) -> list[list[Offset]]:
    return [list(offsets) for offsets in reversed(steps)]


def _from_base(
    geometry: Geometry, there: list[list[Offset]], back: list[list[Offset]], *, turned: bool, along: bool
) -> _Listed:
    _, spatial, circular = geometry
    ways = [
        [_walk(way, taps, spatial, circular) for taps in product(*(range(len(s)) for s in way))]
        for way in (there, back)
    ]
    ends = {walk.end for walk in ways[0]}
    closed = ends & {walk.end for walk in ways[1]}
    # Where no walk is closed, one that counts for nothing stands for that.
    ways = [[walk for walk in way if walk.end in closed] or way[:1] for way in ways]
    origin = (0,) * len(spatial)
    low, high = (tuple(map(extreme, *ends, origin)) for extreme in (min, max))
    step = tuple(math.gcd(*(end[axis] - low[axis] for end in ends)) or 1 for axis in range(len(spatial)))
    between = {offset for way in ways for walk in way for offset in walk.between}
    boxes = [tuple((0, n) for n in spatial)] if circular else _boxes(between, spatial)
    levels = tuple(_levels([walk.taps for walk in way]) for way in ways)
    found = Walks(turned, along, tuple(boxes), low, high, step, *levels)
    return _Listed(found, tuple(ways[0]), tuple(ways[1]), frozenset(closed))


def _walk(way: list[list[Offset]], taps: tuple[int, ...], spatial: tuple[int, ...], circular: bool) -> _Walk:
    """The walk by these taps; on a torus it ends at the displacement nearest to zero."""
    origin = (0,) * len(spatial)
    moves = (offsets[tap] for offsets, tap in zip(way, taps, strict=True))
    places = list(accumulate(moves, lambda a, b: tuple(map(sum, zip(a, b, strict=True))), initial=origin))
    end = places[-1]
    if circular:
        end = tuple((at + (n - 1) // 2) % n - (n - 1) // 2 for at, n in zip(end, spatial, strict=True))
    return _Walk(taps, tuple(places[1:-1]), end)


def _levels(paths: Sequence[tuple[int, ...]]) -> Levels:
    """Number the beginnings of all walks, layer after layer; walks that begin alike share their products."""
    known: dict[tuple[int, ...], int] = {(): 0}
    levels = []
    for length in range(1, len(paths[0]) + 1):
        numbers: dict[tuple[int, ...], int] = {}
        for path in paths:
            numbers.setdefault(path[:length], len(numbers))
        levels.append((tuple(known[path[:-1]] for path in numbers), tuple(path[-1] for path in numbers)))
        known = numbers
    return tuple(levels)


@functools.lru_cache(maxsize=256)
def _counts(geometry: Geometry, first: int, second: int, back: bool) -> np.ndarray:
    _, spatial, circular = geometry
    found, *ways, closed = _listed(geometry, first, second)
    way = ways[back]
    alike = circular or not (back or any(walk.between for walk in way))
    boxes = found.boxes[:1] if alike else found.boxes
    array = np.zeros((len(boxes), *found.window, len(way)))
    for number, walk in enumerate(way):
        if walk.end not in closed:
            continue
        at = tuple((e - a) // s for e, a, s in zip(walk.end, found.low, found.step, strict=True))
        for b, box in enumerate(boxes):
            array[(b, *at, number)] = circular or all(_inside(box, offset, spatial) for offset in walk.between)
    return array.reshape(-1, len(way))


def _boxes(offsets: set[Offset], spatial: tuple[int, ...]) -> list[Box]:
    """Split the image into boxes; for each offset o, q + o is inside the image for all q of a box or for none."""
    sides: list[list[tuple[int, int]]] = []
    for axis, n in enumerate(spatial):
        shifts = {offset[axis] for offset in offsets}
        edges = {0, n, *(-o for o in shifts), *(n - o for o in shifts)}
        cuts = sorted(edge for edge in edges if 0 <= edge <= n)
        sides.append(list(pairwise(cuts)))
    return list(product(*sides))


def _inside(box: Box, offset: Offset, spatial: tuple[int, ...]) -> bool:
    return all(0 <= begin + o < n for (begin, _), o, n in zip(box, offset, spatial, strict=True))
