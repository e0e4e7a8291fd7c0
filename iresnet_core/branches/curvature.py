"""How fast the Jacobian of a chain changes, and how far rounding moves it: what makes a certificate at a point hold."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.branches.rounding import RoundingScale
from iresnet_core.common import gamma

__all__ = ["Curvature", "curvature_of"]


class Curvature(NamedTuple):
    """Constants of the Jacobian J of a chain.

    Attributes
    ----------
    lipschitz : float
        K with ||J(a) - J(b)|| <= K ||a - b||; infinite where a slope jumps.
    sensitivity : float
        A rounding error e of the value comes with one of at most `sensitivity` e in J, from the slopes.
    terms, absolute_norm : int, float
        Longest path through the sums of J, and the product of the norms of absolute values, see `rounding`.
    """

    lipschitz: float
    sensitivity: float
    terms: int
    absolute_norm: float

    def rounding(self, u: float) -> float:
        """Bound the rounding error of an explicit J beyond that of the slopes, for a unit roundoff u."""
        return gamma(self.terms, u) * self.absolute_norm


def curvature_of(layers: Sequence[Any], scales: Sequence[RoundingScale | None]) -> Curvature | None:
    """Return the constants; None where the norm of a layer is unknown, since its program is being compiled.

    Behind each layer l bounds the norm of the Jacobian so far and k its Lipschitz constant. An activation of constants
    s and b (of its slope) takes them to s l and s k + b l^2; a linear layer is the case b = 0.
    """
    norm, second, sensitivity, absolute, terms = 1.0, 0.0, 0.0, 1.0, 0
    for layer, scale in zip(layers, scales, strict=True):
        bend = 0.0
        if scale is not None:
            if not (layer.has_constant and isinstance(scale.absolute_norm, float)):
                return None
            absolute, terms = absolute * scale.absolute_norm, terms + scale.terms + 4
        else:
            if isinstance(layer, BranchLayer) and not layer.has_constant:
                return None
            bend = layer.slope_lipschitz
            if isinstance(layer, BranchLayer):
                own = layer.absolute_norm()
                if not isinstance(own, float):
                    return None
                absolute, terms = absolute * own, terms + layer.terms()
            else:
                absolute, terms = absolute * layer.lipschitz, terms + 8
        if bend:
            sensitivity += bend * norm
        second = layer.lipschitz * second + (bend * norm**2 if bend else 0.0)
        norm = layer.lipschitz * norm
    if math.isnan(second):  # an infinite constant times a norm of zero
        second = math.inf
    raised = 1 + 8 * len(layers) * 2.0**-53
    return Curvature(second * raised, sensitivity * raised, terms, absolute * raised)
