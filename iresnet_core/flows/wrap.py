"""Angles brought back to one turn, so that a flow on a circle or torus has its samples there."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.common import sample_norms, unit_roundoff, widest
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.latent_density import Base
from iresnet_core.flows.layer import (
    ForwardOptions,
    InverseOptions,
    Layer,
    Shape,
    Transformed,
    closed_form_inverse,
    closed_form_logdet,
    wide_norms,
)
from iresnet_core.flows.preimage import Preimage
from iresnet_core.results import Inverse

__all__ = ["Wrap"]


class Wrap(Layer):
    """``z = x - p floor((x - low) / p)`` for entries of period p: the same angle within [low, low + p).

    It is the first layer of a flow on a circle or torus, whose `base` has the same period: `Uniform` of a torus or
    `VonMises`. The residual blocks behind it see angles through a
    `FourierFeatures` only, hence x + g(x) moves by whole turns with x; what `sample` and `inverse` return ends here,
    and is brought back to one turn. Both directions do the same.

    Parameters
    ----------
    low : float
        Where the interval begins.
    period : float
        Its length; 2 pi by default.
    entries : sequence of int, optional
        The entries of a vector that are angles, negative ones counted from the end; default all entries of the samples,
        of whatever shape.

    Raises
    ------
    InvalidArgumentError
        If `period` is not positive and finite, or `low` not finite, or an entry is named twice.
    ShapeError
        If `entries` are given for samples that are no vectors, or that are too short.

    Notes
    -----
    The log-determinant is 0. Errors and bounds are distances along the circle: a bound of 1e-6 says nothing of the side
    from which a sample lies near `low`.

    Examples
    --------
    >>> import numpy as np
    >>> Wrap(-np.pi).forward(np.array([[3.0, 4.0]])).value.round(6)
    array([[ 3.      , -2.283185]])
    """

    low: float
    period: float
    entries: tuple[int, ...] | None

    def __init__(self, low: float = 0.0, period: float = 2 * math.pi, *, entries: Sequence[int] | None = None) -> None:
        start, length = float(low), float(period)
        if not (math.isfinite(length) and length > 0):
            raise InvalidArgumentError(f"period must be a positive number, got {period!r}.")
        if not math.isfinite(start):
            raise InvalidArgumentError(f"low must be a finite number, got {low!r}.")
        chosen = None if entries is None else tuple(int(entry) for entry in entries)
        if chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
            raise InvalidArgumentError(f"entries are different places in a vector, at least one, got {list(chosen)}.")
        self._keep(low=start, period=length, entries=chosen)

    def __repr__(self) -> str:
        chosen = "" if self.entries is None else f", entries={list(self.entries)}"
        return f"Wrap({self.low:g}, {self.period:g}{chosen})"

    @property
    def inverse_lipschitz(self) -> Any:
        """One: distances are those along the circle."""
        return 1.0

    @property
    def forward_lipschitz(self) -> Any:
        """One."""
        return 1.0

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the same shape, if it has the entries."""
        shape = tuple(input_shape)
        if self.entries is not None:
            if len(shape) != 1:
                raise ShapeError(f"{self!r} names entries of vectors, got samples of shape {shape}.")
            places = {entry % shape[0] for entry in self.entries if -shape[0] <= entry < shape[0]}
            if len(places) < len(self.entries):
                raise ShapeError(f"{self!r} names entries that vectors of {shape[0]} do not have, or one twice.")
        return shape

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the same shape, if it has the entries."""
        return self.output_shape(output_shape)

    def _map(self, backend: Backend, x: Array) -> Array:
        xp = backend.xp
        known = backend.stop_gradient(x)
        turns = self._of_angles(backend, xp.floor((known - self.low) / self.period))
        value = x - self.period * turns
        # Rounding may leave the interval, or end on its upper end, which is the lower one.
        outside = xp.astype((value < self.low) | (value >= self.low + self.period), x.dtype)
        return xp.where(self._of_angles(backend, outside) > 0, self.low + (x - known), value)

    def _of_angles(self, backend: Backend, values: Array) -> Array:
        """Return values (batch, ...) with zeros where an entry is no angle."""
        if self.entries is None:
            return values
        xp, size = backend.xp, int(values.shape[-1])
        places = xp.arange(size, device=device_of(values))
        chosen = functools.reduce(operator.or_, (places == entry % size for entry in self.entries))
        return values * xp.astype(chosen, values.dtype)

    def _rounding(self, backend: Backend, x: Array) -> Array:
        """Bound on the rounding of `_map` (batch,), in float64."""
        u = unit_roundoff(backend, x.dtype)
        turn = math.sqrt(math.prod(x.shape[1:])) * (abs(self.low) + self.period)
        return 8 * u * (wide_norms(backend, backend.stop_gradient(x)) + turn)

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        return self._map(backend, x), self._rounding(backend, x)

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        return error, backend.xp.zeros_like(error)

    def _forward(self, backend: Backend, x: Array, options: ForwardOptions) -> Transformed:
        zero = backend.xp.zeros((x.shape[0],), dtype=widest(backend), device=device_of(x))
        return Transformed(self._map(backend, x), closed_form_logdet(backend, zero, zero, x.dtype))

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        return closed_form_inverse(backend, self._map(backend, z), self._rounding(backend, z))

    def _refined(self, backend: Backend, state: Preimage, step: Inverse) -> Preimage:
        """Return the state before this layer, with points of the same turn as the samples, which are the nearest."""
        xp = backend.xp
        value = step.value
        before = backend.stop_gradient(state.refined)
        wide = xp.astype(backend.stop_gradient(value), before.dtype)
        # Seen from the sample, a refined point lies in the turn around it, also where the sample was rounded upwards.
        turns = self._of_angles(backend, xp.round((before - wide) / self.period))
        refined = before - self.period * turns
        rounding = 4 * unit_roundoff(backend, before.dtype) * (sample_norms(xp, before) + sample_norms(xp, refined))
        return state.after(
            step, value=value, refined=refined, error=state.error + rounding, estimate=state.estimate + rounding
        )


def require_periodic(layers: Sequence[Layer], base: Any) -> None:
    """Refuse the density of a flow on a torus whose latents have a base that is none of that torus.

    A base of the caller's own is taken at its word.
    """
    wraps = _wraps(layers)
    if not wraps or not isinstance(base, str | Base):
        return
    periods = (None,) if isinstance(base, str) else base.periods
    places = [range(len(periods)) if w.entries is None or isinstance(base, str) else w.entries for w in wraps]
    for wrap, entries in zip(wraps, places, strict=True):
        if not all((own := periods[entry]) is not None and abs(own / wrap.period - 1) < 1e-12 for entry in entries):
            raise InvalidArgumentError(
                f"{wrap!r} makes angles, whose density needs a base of the same period, and the flow has {base!r}. "
                "Give it Uniform(low, high, periodic=True), VonMises(mean, concentration), a ProductBase of one of "
                "them and a density of the other entries, or a base of your own."
            )
    angles = {entry % len(periods) for entries in places for entry in entries}
    if plain := [entry for entry, own in enumerate(periods) if own is not None and entry not in angles]:
        raise InvalidArgumentError(
            f"entries {plain} of the samples are no angles, since no Wrap names them, and {base!r} is periodic there, "
            "hence no density of numbers. Take a ProductBase of one part for the angles and one for the numbers."
        )


def _wraps(layers: Sequence[Layer]) -> list["Wrap"]:
    """Return the layers that wrap, also those inside of others."""
    found = [layer for layer in layers if isinstance(layer, Wrap)]
    for layer in layers:
        inside = getattr(layer, "layers", None) or [getattr(layer, "layer", None)]
        found += _wraps([inner for inner in inside if isinstance(inner, Layer)])
    return found
