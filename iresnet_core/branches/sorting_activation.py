"""The activation that sorts pairs of channels."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.branches.activation_base import ActivationFunction
from iresnet_core.branches.slopes import PairSwap, partner_of
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["Maxmin"]


class Maxmin(ActivationFunction):
    """Neighbouring channels 2k and 2k + 1 along `axis` become their maximum and their minimum (Anil et al. 2019)."""

    entrywise = False
    defaults: ClassVar[Mapping[str, float]] = {"axis": 1}

    def require_parameter(self, key: str, value: Any) -> int:
        """Refuse axes that are no whole number, or that of the samples."""
        if not isinstance(value, int):
            raise InvalidArgumentError(f"maxmin takes the whole number axis, got {value!r}.")
        if value == 0:
            raise InvalidArgumentError("maxmin along axis 0 would mix the samples of a batch.")
        return value

    @property
    def lipschitz(self) -> float:
        """The Jacobian is a permutation."""
        return 1.0

    @property
    def slope_lipschitz(self) -> float:
        """Infinity, since the permutation changes at once."""
        return math.inf

    def __call__(self, x: Array) -> Array:
        """Sort the pairs of channels of x (batch, ...)."""
        return self.linearize(x)[0]

    def linearize(self, x: Array) -> tuple[Array, PairSwap]:
        """Return the sorted pairs and the exchange of channels that sorts them."""
        xp, axis = get_backend(x).xp, self._axis_from_end(x)
        partner = partner_of(xp, x, axis)
        second = xp.reshape(
            xp.astype(xp.arange(x.shape[axis], device=device_of(x)) % 2, xp.bool), (-1,) + (1,) * (-axis - 1)
        )
        jacobian = PairSwap(xp, xp.where(second, x > partner, x < partner), axis)
        return jacobian.apply(x), jacobian

    def _axis_from_end(self, x: Array) -> int:
        """The axis counted from the end, where the leading axes of stacks do not move it."""
        axis = int(self.parameters["axis"])
        if not -x.ndim < axis < x.ndim or axis % x.ndim == 0:
            raise ShapeError(f"Activation('maxmin', axis={axis}) has no such axis in shape {tuple(x.shape)}.")
        from_end = axis - x.ndim if axis > 0 else axis
        if x.shape[from_end] % 2:
            raise ShapeError(f"Activation('maxmin', axis={axis}) sorts pairs, not the channels in {tuple(x.shape)}.")
        return from_end
