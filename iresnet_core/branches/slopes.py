"""Jacobians of activations at one batch: slopes that multiply every entry, and pairs of channels that change places."""

from dataclasses import dataclass
from typing import Any

from iresnet_core.backends import Array

__all__ = ["Diagonal", "PairSwap", "partner_of"]


@dataclass(frozen=True)
class Diagonal:
    """Jacobian of an entrywise function at one batch: multiplication by its slopes (batch, ...)."""

    slope: Array

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch, *event)."""
        return self.slope * v

    adjoint = apply

    def of_samples(self, begin: int, end: int) -> "Diagonal":
        """Return the Jacobian of a part of the batch."""
        return Diagonal(self.slope[begin:end, ...])


@dataclass(frozen=True)
class PairSwap:
    """Jacobian of maxmin: pairs of channels stay, or change places where `swap` (batch, ...) says so."""

    xp: Any
    swap: Array
    axis_from_end: int

    def apply(self, v: Array) -> Array:
        """Multiply v (..., batch, *event); the matrix is its own transpose."""
        return self.xp.where(self.swap, partner_of(self.xp, v, self.axis_from_end), v)

    adjoint = apply

    def of_samples(self, begin: int, end: int) -> "PairSwap":
        """Return the Jacobian of a part of the batch."""
        return PairSwap(self.xp, self.swap[begin:end, ...], self.axis_from_end)


def partner_of(xp: Any, v: Array, axis: int) -> Array:
    """Exchange the members of neighbouring pairs along an axis counted from the end."""
    position = v.ndim + axis
    n = v.shape[position]
    pairs = xp.reshape(v, (*v.shape[:position], n // 2, 2, *v.shape[position + 1 :]))
    return xp.reshape(xp.flip(pairs, axis=position + 1), v.shape)
