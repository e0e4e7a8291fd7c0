"""A translation inside a branch: how a conditioning input enters, without touching the Lipschitz constant."""

from typing import Any

from iresnet_core.activations import Activation
from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import ShapeError

__all__ = ["Shift"]


class Shift(Activation):
    """``x + value``, with another value for every sample; its Jacobian is the identity.

    Parameters
    ----------
    value : array (batch, ...)
        What is added; axes of extent 1 are repeated, but not that of the samples.

    Examples
    --------
    >>> import numpy as np
    >>> Shift(np.array([[1.0], [2.0]]))(np.zeros((2, 3)))
    array([[1., 1., 1.],
           [2., 2., 2.]])
    """

    def __init__(self, value: Array) -> None:
        super().__init__("identity")
        get_backend(value)
        self.value = value

    def __repr__(self) -> str:
        return f"Shift({tuple(self.value.shape)})"

    def __call__(self, x: Array) -> Array:
        """Return x + value for x (batch, ...)."""
        if x.shape[0] != self.value.shape[0]:
            raise ShapeError(f"the conditioning has {self.value.shape[0]} samples, but the input has {x.shape[0]}.")
        return x + self.value

    def astype(self, dtype: Any) -> "Shift":
        """Return the translation in another dtype."""
        return Shift(get_backend(self.value).xp.astype(self.value, dtype))
