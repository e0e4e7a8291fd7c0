"""The public class of activations: a function of the table by its name, with its Jacobian and Lipschitz constant."""

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches.activation_functions import ACTIVATIONS, ActivationFunction, Entrywise
from iresnet_core.branches.slopes import Diagonal, PairSwap
from iresnet_core.common import Copyable
from iresnet_core.errors import InvalidArgumentError

__all__ = ["Activation"]


class Activation(Copyable):
    """One activation with its slope and its Lipschitz constant.

    Parameters
    ----------
    name : str
        "lipswish" (``beta=1``; swish divided by the supremum of its slope), "silu" (``beta=1``; swish itself), "gelu"
        (with the error function), "mish", "elu" (``alpha=1``), "celu" (``alpha=1``), "selu", "relu", "leakyrelu"
        (``slope=0.01``), "softplus" (``beta=1``), "softsign", "tanh", "hardtanh" (``limit=1``), "softshrink"
        (``threshold=0.5``), "sigmoid", "sin", "identity" or "maxmin" (``axis=1``: the channel axis of (batch, ...),
        whose neighbours 2k and 2k + 1 become their maximum and minimum).
    **parameters : float
        The parameters in brackets above; the slope lies between -1 and 1, the others are positive.

    Attributes
    ----------
    name, parameters
        As given, with the defaults.
    lipschitz : float
        Supremum of the slope (for maxmin: norm of the Jacobian).
    slope_lipschitz : float
        Supremum of the second derivative: the Lipschitz constant of the Jacobian. Infinite where the slope jumps, as
        that of relu and all that is piecewise linear, maxmin, selu, and elu with another alpha than 1.
    entrywise, has_unit_slope : bool
        Whether the Jacobian is diagonal, as it is for all but maxmin; whether it is the identity.

    Raises
    ------
    InvalidArgumentError
        For an unknown name or parameter, or a parameter out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> Activation("elu")(np.array([[0.0, 2.0]]))
    array([[0., 2.]])
    >>> Activation("sigmoid").lipschitz
    0.25
    """

    def __init__(self, name: str, **parameters: float) -> None:
        if name not in ACTIVATIONS:
            raise InvalidArgumentError(f"there is no activation {name!r}; there are {', '.join(ACTIVATIONS)}.")
        self._function = ACTIVATIONS[name](**parameters)
        self.name = name
        self.parameters = self._function.parameters
        self._texts = tuple((key, repr(value)) for key, value in self.parameters.items() if isinstance(value, float))
        self.lipschitz = self._function.lipschitz
        self.slope_lipschitz = self._function.slope_lipschitz
        self.entrywise = self._function.entrywise
        self.has_unit_slope = self._function.has_unit_slope

    def __repr__(self) -> str:
        arguments = "".join(f", {key}={value:g}" for key, value in self.parameters.items())
        return f"Activation({self.name!r}{arguments})"

    def function_for(self, x: Array) -> ActivationFunction:
        """Return the function that acts on x, whose parameters are constants where a program is being compiled.

        A compiler may take numbers that it finds in an object for variables, which its loops do not capture; text is
        always a constant.
        """
        if not self._texts or not get_backend(x).is_tracing():
            return self._function
        return ACTIVATIONS[self.name](**{key: float(text) for key, text in self._texts})

    def __call__(self, x: Array) -> Array:
        """Return the activation of x (batch, ...), of the same shape."""
        return self.function_for(x)(x)

    def slope(self, x: Array) -> Array:
        """Return the derivative at every entry of x; at a kink the derivative from the left.

        Raises
        ------
        InvalidArgumentError
            For maxmin, whose Jacobian is not diagonal; use `linearize`.
        """
        function = self.function_for(x)
        if not isinstance(function, Entrywise):
            raise InvalidArgumentError(
                f"{self.name} has no slope, since its Jacobian is not diagonal; use linearize(x)."
            )
        return function.value_and_slope(x)[1]

    def linearize(self, x: Array) -> tuple[Array, Diagonal | PairSwap]:
        """Return the value at x (batch, ...) and the Jacobian there."""
        return self.function_for(x).linearize(x)
