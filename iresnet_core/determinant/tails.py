"""What the power series of the logarithm leaves out after some terms."""

import math
from functools import cache

import numpy as np

__all__ = ["series_tail"]

# Tails that are computed at a time.
TAILS_AT_A_TIME = 1024
# Terms of a tail that are summed.
MOST_SUMMED = 200_000


def series_tail(c: float, n: int) -> float:
    """Upper bound on T_n = sum over j >= 1 of c^j / (n + j): c^-n times what n terms of log(1 - c) leave.

    It is tight to 1e-12, for c up to 0.9998 or n up to 10,000; beyond that it may be larger.

    Neighbours follow from each other, T_n = c (1 / (n + 1) + T_(n+1)): downwards errors shrink.
    """
    block, place = divmod(n, TAILS_AT_A_TIME)
    return _tails(c, block)[place]


@cache
def _tails(c: float, block: int) -> tuple[float, ...]:
    """The tails of one block of n."""
    first = block * TAILS_AT_A_TIME
    last = first + TAILS_AT_A_TIME
    tail = _summed_tail(c, last)
    tails = []
    for n in reversed(range(first, last)):
        tail = c * (1 / (n + 1) + tail)
        tails.append(tail * (1 + 1e-12))
    return tuple(reversed(tails))


def _summed_tail(c: float, n: int) -> float:
    """The least of two bounds on T_n: its first terms with a geometric remainder, and the logarithm less n terms."""
    if c == 0:
        return 0.0
    places = np.arange(1, min(MOST_SUMMED, math.ceil(40 / -math.log(c))) + 1)
    powers = c**places
    summed = np.sum(powers / (n + places)) + c * powers[-1] / ((n + places.size + 1) * (1 - c))
    if places.size < MOST_SUMMED:
        return float(summed)
    before = np.arange(1, n + 1)
    whole = -math.log1p(-c)
    left = whole - np.sum(c**before / before) + 1e-13 * (1 + whole)
    return float(min(summed, left / c**n)) if c**n > 1e-300 else float(summed)
