"""Densities of several kinds in one: each part has its own entries of a latent."""

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import unit_roundoff, widest
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.latent_density import Base

__all__ = ["ProductBase"]


class ProductBase(Base):
    """``p(z) = prod_i p_i(z at entries_i)``: angles beside numbers, as on a cylinder.

    Parameters
    ----------
    parts : sequence of Base
        Densities of vectors, independent of each other: `DiagonalNormal`, `VonMises`, `Uniform` and so on.
    entries : sequence of sequences of int, optional
        The places of each part in a latent (d,), as many as the part has entries. Default: one part after the other.

    Raises
    ------
    InvalidArgumentError
        If a part is no density of this package, there is none, a place belongs to two parts or to none, or it is no
        whole number.
    ShapeError
        If a part is no density of vectors, or has another number of places than entries.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import DiagonalNormal, Uniform
    >>> angle = Uniform([0.0], [2 * np.pi], periodic=True)
    >>> cylinder = ProductBase([angle, DiagonalNormal(np.zeros(1), np.ones(1))])
    >>> cylinder.log_prob(np.zeros((1, 2))).round(6)  # -log(2 pi) - log(2 pi) / 2
    array([-2.756816])
    """

    parts: tuple[Base, ...]
    entries: tuple[tuple[int, ...], ...]

    def __init__(self, parts: Sequence[Base], entries: Sequence[Iterable[int]] | None = None) -> None:
        chosen = tuple(parts)
        for part in chosen:
            if not isinstance(part, Base):
                raise InvalidArgumentError(f"a part is a density such as DiagonalNormal, got {type(part).__name__}.")
            if len(part.shape) != 1:
                raise ShapeError(f"a part is a density of vectors, and {part!r} one of shape {part.shape}.")
        if not chosen:
            raise InvalidArgumentError("a product of densities needs a part at least.")
        size = sum(part.shape[0] for part in chosen)
        if entries is None:
            ends = [sum(part.shape[0] for part in chosen[:index]) for index in range(len(chosen) + 1)]
            places = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))
        else:
            try:
                places = tuple(tuple(operator.index(place) for place in own) for own in entries)
            except TypeError:
                raise InvalidArgumentError(
                    f"entries are lists of whole numbers, one list for each part, got {entries!r}."
                ) from None
        if [len(own) for own in places] != [part.shape[0] for part in chosen]:
            raise ShapeError(
                f"the parts have {[part.shape[0] for part in chosen]} entries, and their places are "
                f"{[list(own) for own in places]}."
            )
        if sorted(place for own in places for place in own) != list(range(size)):
            raise InvalidArgumentError(
                f"the places of the parts are 0 to {size - 1}, each once, got {[list(own) for own in places]}."
            )
        self._keep(parts=chosen, entries=places, shape=(size,), bounded=any(part.bounded for part in chosen))

    def __repr__(self) -> str:
        return f"ProductBase([{', '.join(map(repr, self.parts))}], {[list(own) for own in self.entries]})"

    @property
    def named_arrays(self) -> dict[str, Array]:
        """The parameters of the parts, by the number of the part and the name."""
        return {f"{i}_{name}": a for i, part in enumerate(self.parts) for name, a in part.named_arrays.items()}

    @property
    def free_names(self) -> tuple[str, ...]:
        """Names of the parameters in the form of `free`."""
        return tuple(f"{i}_{name}" for i, part in enumerate(self.parts) for name in part.free_names)

    @property
    def free(self) -> dict[str, Array]:
        """The parameters of the parts as arrays of any numbers."""
        return {f"{i}_{name}": a for i, part in enumerate(self.parts) for name, a in part.free.items()}

    def with_free(self, free: Mapping[str, Array]) -> Self:
        """Return the density with parameters in the form of `free`."""
        own = [{name: free[f"{i}_{name}"] for name in part.free_names} for i, part in enumerate(self.parts)]
        return type(self)([p.with_free(f) for p, f in zip(self.parts, own, strict=True)], self.entries)

    def with_arrays(self, arrays: Sequence[Array]) -> Self:
        """Return the density of the same parts with other parameters."""
        rest, parts = list(arrays), []
        for part in self.parts:
            count = len(part.arrays)
            parts.append(part.with_arrays(rest[:count]))
            rest = rest[count:]
        return type(self)(parts, self.entries)

    @property
    def periods(self) -> tuple[float | None, ...]:
        """The periods of the parts, at their places."""
        pairs = zip(self.entries, self.parts, strict=True)
        found = {place: own for places, part in pairs for place, own in zip(places, part.periods, strict=True)}
        return tuple(found[place] for place in range(self.shape[0]))

    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) and its rounding bound."""
        xp = backend.xp
        value: Any = 0.0
        rounding: Any = 0.0
        sizes: Any = 0.0
        for places, part in zip(self.entries, self.parts, strict=True):
            own, bound = part.density(backend, _at(backend, z, places))
            value, rounding = value + own, rounding + bound
            sizes = sizes + xp.where(own > -math.inf, xp.abs(own), xp.zeros_like(own))
        return value, rounding + len(self.parts) * unit_roundoff(backend, widest(backend)) * sizes

    def score_log_prob(self, z: Array) -> Array | None:
        """Return the sum of those of the parts that have one."""
        backend = get_backend(z, *self.arrays)
        pairs = zip(self.entries, self.parts, strict=True)
        found = [part.score_log_prob(_at(backend, z, places)) for places, part in pairs]
        scores = [own for own in found if own is not None]
        return functools.reduce(operator.add, scores) if scores else None

    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw from the parts, one after the other; those that draw by rejection are the last, see `rejects`."""
        backend = get_backend(like)
        rng = backend.generator(rng)
        pairs = sorted(zip(self.parts, self.entries, strict=True), key=lambda pair: pair[0].rejects)
        drawn = backend.xp.concat([part.sample(n, rng, like) for part, _ in pairs], axis=1)
        order = [place for _, places in pairs for place in places]
        return _at(backend, drawn, [order.index(place) for place in range(self.shape[0])])


def _at(backend: Backend, z: Array, places: Sequence[int]) -> Array:
    return backend.xp.take(z, backend.xp.asarray(list(places), device=device_of(z)), axis=1)
