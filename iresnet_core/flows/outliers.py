"""Data of which a few entries are so large that a normalisation would make all others one point."""

import math

from iresnet_core.backends import Array, Backend
from iresnet_core.common import widest
from iresnet_core.errors import InvalidArgumentError

__all__ = ["require_visible_bulk"]

# Of its standard deviation; a density of which nine tenths are narrower than this is not learned from there.
_VISIBLE = 1e-6
_LARGEST_SHARE = 20  # one in so many entries may be far out, on either side


def require_visible_bulk(backend: Backend, x: Array, position: int) -> None:
    """Refuse data whose standard deviation is that of a few entries, beside which all others are alike.

    Nine tenths of a channel differ from each other, but by less than a millionth of its standard deviation: an entry of
    1e30, say, a number for a missing value. Data that are equal but for a few entries, such as counts, are taken.

    Parameters
    ----------
    x : array (batch, ...)
        Finite samples; nothing is looked at while a compiler traces.
    position : int
        The channel axis, 1 or later.

    Raises
    ------
    InvalidArgumentError
        With the channel, the sample and the entry.
    """
    if backend.is_tracing(x):
        return
    xp = backend.xp
    order = (position, 0, *(axis for axis in range(1, x.ndim) if axis != position))
    rows = xp.permute_dims(xp.astype(backend.stop_gradient(x), widest(backend)), order)
    rows = xp.reshape(rows, (x.shape[position], -1))
    largest = xp.max(xp.abs(rows), axis=1, keepdims=True)
    unit = rows / xp.where(largest > 0, largest, xp.ones_like(largest))
    n = unit.shape[1]
    cut = n // _LARGEST_SHARE
    if cut == 0:  # of so few entries none is a small share
        return
    ordered = xp.sort(unit, axis=1)
    bulk = ordered[:, n - 1 - cut] - ordered[:, cut]
    hidden = backend.to_numpy((bulk > 0) & (bulk < _VISIBLE * xp.std(unit, axis=1)))
    if not hidden.any():
        return
    channel = int(hidden.argmax())
    entry = int(xp.argmax(xp.abs(unit[channel, :])))
    pixels = math.prod(x.shape) // (x.shape[0] * x.shape[position])
    raise InvalidArgumentError(
        f"channel {channel} has an entry of {float(rows[channel, entry]):.3g} in sample {entry // pixels}, beside "
        "which nine tenths of the others are alike: normalised by their standard deviation they would be one point. "
        "Leave out or replace what is so far out, say numbers that stand for missing values, or take logarithms."
    )
