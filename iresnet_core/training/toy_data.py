"""Distributions in the plane on which density models are tried out, each with its usual definition.

The coordinates are those in which the sets are known from the literature on normalising flows (Grathwohl et al. 2019,
FFJORD; Chen et al. 2019, Residual Flows): all of them lie within about [-4, 4]^2, so that log-densities can be compared
with published ones. "moons" and "circles" are scikit-learn's, scaled by 2 and 3.
"""

import math
from collections.abc import Callable

import numpy as np

from iresnet_core.errors import InvalidArgumentError

__all__ = ["draw_toy", "toy_names"]

Points = np.ndarray
Sampler = Callable[[int, np.random.Generator], Points]


def _polar(radius: Points, angle: Points) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _moons(n: int, rng: np.random.Generator) -> Points:
    """Two interleaved half circles of radius 2, noise 0.2, centred."""
    angle = rng.uniform(0, math.pi, n)
    lower = rng.integers(0, 2, n)
    sign = 1 - 2 * lower
    arc: Points = np.stack([sign * np.cos(angle) + lower, sign * np.sin(angle) + 0.5 * lower], axis=1)
    arc = 2 * (arc - np.array([0.5, 0.25]))
    return arc + rng.normal(0, 0.2, (n, 2))


def _circles(n: int, rng: np.random.Generator) -> Points:
    """Two circles about the origin of radius 3 and 1.5, noise 0.24."""
    radius = np.where(rng.integers(0, 2, n) == 0, 3.0, 1.5)
    return _polar(radius, rng.uniform(0, 2 * math.pi, n)) + rng.normal(0, 0.24, (n, 2))


def _rings(n: int, rng: np.random.Generator) -> Points:
    """Four circles about the origin of radius 0.75, 1.5, 2.25 and 3, noise 0.08."""
    radius = 0.75 * rng.integers(1, 5, n)
    return _polar(radius, rng.uniform(0, 2 * math.pi, n)) + rng.normal(0, 0.08, (n, 2))


def _checkerboard(n: int, rng: np.random.Generator) -> Points:
    """Eight of the sixteen squares of side 2 that tile [-4, 4]^2; the density there is 1/32."""
    column = rng.integers(0, 4, n)
    row = 2 * rng.integers(0, 2, n) + column % 2
    corner = np.stack([column, row], axis=1)
    return -4 + 2 * (corner + rng.random((n, 2)))


def _pinwheel(n: int, rng: np.random.Generator) -> Points:
    """Five arms, Gaussian along (0.3) and across (0.1), bent by rate 0.25 and scaled by 2 (Johnson et al. 2016)."""
    along, across = 1 + rng.normal(0, 0.3, n), rng.normal(0, 0.1, n)
    turn = 2 * math.pi / 5 * rng.integers(0, 5, n) + 0.25 * np.exp(along)
    return 2 * np.stack(
        [along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)], axis=1
    )


def _two_spirals(n: int, rng: np.random.Generator) -> Points:
    """Two arms of one and a half turns, scaled by 1/3, noise 0.1."""
    angle = 3 * math.pi * np.sqrt(rng.random(n))
    arm = np.stack([-np.cos(angle) * angle, np.sin(angle) * angle], axis=1) + 0.5 * rng.random((n, 2))
    side = np.where(rng.integers(0, 2, n) == 0, 1.0, -1.0)
    return side[:, None] * arm / 3 + rng.normal(0, 0.1, (n, 2))


def _eight_gaussians(n: int, rng: np.random.Generator) -> Points:
    """Eight Gaussians of standard deviation 0.5 around a circle of radius 4, scaled by 1 / sqrt(2)."""
    centre = _polar(np.full(n, 4.0), math.pi / 4 * rng.integers(0, 8, n))
    return (centre + rng.normal(0, 0.5, (n, 2))) / math.sqrt(2)


_SETS: dict[str, Sampler] = {
    "moons": _moons,
    "circles": _circles,
    "rings": _rings,
    "checkerboard": _checkerboard,
    "pinwheel": _pinwheel,
    "2spirals": _two_spirals,
    "8gaussians": _eight_gaussians,
}


def toy_names() -> tuple[str, ...]:
    """Return the names that `draw_toy` knows.

    Examples
    --------
    >>> toy_names()
    ('moons', 'circles', 'rings', 'checkerboard', 'pinwheel', '2spirals', '8gaussians')
    """
    return tuple(_SETS)


def draw_toy(name: str, n: int, rng: np.random.Generator) -> Points:
    """Draw independent points of a distribution in the plane.

    Parameters
    ----------
    name : str
        One of `toy_names()`.
    n : int
        The number of samples.
    rng : numpy.random.Generator
        Where the randomness comes from.

    Returns
    -------
    float64 array (n, 2)
        The points.

    Raises
    ------
    InvalidArgumentError
        If there is no such distribution, or n is negative.

    Examples
    --------
    >>> import numpy as np
    >>> draw_toy("checkerboard", 3, np.random.default_rng(0)).shape
    (3, 2)
    """
    if name not in _SETS:
        raise InvalidArgumentError(f"there is no distribution {name!r}; there are {', '.join(_SETS)}.")
    if n < 0:
        raise InvalidArgumentError(f"n must be a whole number >= 0, got {n!r}.")
    return _SETS[name](n, rng)
