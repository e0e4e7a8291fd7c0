"""Colours of the entries of a vector, so that entries of one colour are far apart in the pattern of a sparse matrix."""

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["color_count", "colorings", "masks"]


# Neighbours within k steps, of all entries together, beyond which no further order is made: some 600 MiB.
MOST_NEIGHBOURS = 5 * 10**7


def colorings(pattern: Any) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Yield for k = 1, 2, ... the order k, colours (d,), and whether they tell all connected entries apart.

    Entries of one colour are more than k steps apart; a step leads from i to j where the pattern has an entry (i, j) or
    (j, i). The colours are found greedily, entry by entry; no more of them are used than the largest number of entries
    within k steps of one. The orders end where all are told apart, or with `MOST_NEIGHBOURS`.
    """
    from scipy.sparse import eye_array  # takes as long to import as all of this package

    entries = abs(pattern.tocsr())
    step = ((entries + entries.T + eye_array(entries.shape[0])) != 0).astype(np.int32).tocsr()
    near, order = step, 1
    while True:
        colors = _greedy(near)
        # What the next product would have at most, as each neighbour brings its own.
        reach = int(np.diff(step.indptr)[near.indices].sum())
        grown = near if reach > MOST_NEIGHBOURS else ((near @ step) != 0).astype(np.int32).tocsr()
        complete = grown is not near and grown.nnz == near.nnz
        yield order, colors, complete
        if complete or grown is near:
            return
        near, order = grown, order + 1


def color_count(colors: np.ndarray) -> int:
    """How many colours there are."""
    return int(colors.max()) + 1


def masks(colors: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Ones where an entry has the colour, for the colours from `begin` to before `end`; (colours, d)."""
    return np.asarray(colors[None, :] == np.arange(begin, end)[:, None], dtype=np.float64)


def _greedy(near: Any) -> np.ndarray:
    """The first colour that no neighbour has."""
    d = near.shape[0]
    begins, others = near.indptr, near.indices
    colors = np.full(d, -1)
    for i in range(d):
        taken = set(colors[others[begins[i] : begins[i + 1]]].tolist())
        color = 0
        while color in taken:
            color += 1
        colors[i] = color
    return colors
