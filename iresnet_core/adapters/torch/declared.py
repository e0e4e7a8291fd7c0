"""Modules for a branch that PyTorch lacks: one of declared constant, and waves of the input."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iresnet_core.adapters.shared.steps import DeclaredStep
from iresnet_core.branches import FourierFeatures as CoreFourierFeatures
from iresnet_core.common import require_nonnegative
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["DeclaredLayer", "FourierFeatures"]


class DeclaredLayer(nn.Module):
    """A module whose Lipschitz constant you declare, as one layer of a branch: all other layers stay certified.

    Parameters
    ----------
    layer : Module
        A function that treats the samples of a batch apart.
    lipschitz : float
        Its constant, positive. The block's constant and all error bounds rest on it; a Jacobian product that
        contradicts it raises `NotContractiveError`.
    input_shape, output_shape : tuple of int, optional
        Shape of one sample before and after, where the module changes it.

    Examples
    --------
    >>> import torch
    >>> from iresnet_core.adapters.torch import InvertibleResidual
    >>> net = nn.Sequential(nn.Linear(2, 8), DeclaredLayer(nn.LogSigmoid(), lipschitz=1.0), nn.Linear(8, 2))
    >>> block = InvertibleResidual(net, coeff=0.9).eval()
    >>> block.core_layer().branch.certificate
    'stated'
    """

    def __init__(
        self,
        layer: nn.Module,
        lipschitz: float,
        *,
        input_shape: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.lipschitz = require_nonnegative(lipschitz, "lipschitz")
        if self.lipschitz == 0:
            raise InvalidArgumentError("lipschitz must be positive, since the linear layers share what is left.")
        if (input_shape is None) != (output_shape is None):
            raise ShapeError("a layer that changes the shape needs input_shape and output_shape, both or neither.")
        self.shapes = None if input_shape is None or output_shape is None else (tuple(input_shape), tuple(output_shape))

    def extra_repr(self) -> str:
        """Show the constant."""
        return f"lipschitz={self.lipschitz:g}"

    def forward(self, x: Tensor) -> Tensor:
        """Call the module."""
        return self.layer(x)  # type: ignore[no-any-return]

    def step(self, dtype: Any = None) -> DeclaredStep:
        """Return the step of a branch, with the parameters in another dtype where one is given."""
        module = self.layer

        def apply(x: Tensor) -> Tensor:
            if dtype is None:
                return module(x)  # type: ignore[no-any-return]
            named = (*module.named_parameters(), *module.named_buffers())
            cast = {name: a.to(dtype) if a.is_floating_point() else a for name, a in named}
            return torch.func.functional_call(module, cast, (x,))  # type: ignore[no-any-return]

        return DeclaredStep(apply, self.lipschitz, self.shapes, self.step, type(module).__name__)


class FourierFeatures(nn.Module):
    """``x -> (cos(W x), sin(W x), some entries of x)`` with fixed frequencies W, see `iresnet_core.FourierFeatures`.

    Parameters
    ----------
    frequencies : Tensor (waves, d)
        The matrix W; of whole numbers for x that are angles.
    passed : sequence of int
        The entries of x that are passed on as they are.

    Examples
    --------
    >>> import torch
    >>> FourierFeatures(torch.eye(1))(torch.zeros(1, 1))
    tensor([[1., 0.]])
    """

    def __init__(self, frequencies: Tensor, passed: Sequence[int] = ()) -> None:
        super().__init__()
        self.passed = tuple(passed)
        self.register_buffer("frequencies", frequencies.detach().clone())
        self._core: Any = None

    @property
    def _layer(self) -> CoreFourierFeatures:
        """The core's layer with the present frequencies."""
        frequencies: Any = self.frequencies
        kept = self._core
        if kept is None or kept[0] is not frequencies or kept[1] != frequencies._version:
            with torch.no_grad():
                kept = (frequencies, frequencies._version, CoreFourierFeatures(frequencies, self.passed))
            self._core = kept
        return kept[2]  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept, for copies and pickles."""
        return {**self.__dict__, "_core": None}

    def forward(self, x: Tensor) -> Tensor:
        """Embed x (batch, d)."""
        return self._layer(x)  # type: ignore[no-any-return]
