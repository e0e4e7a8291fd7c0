"""Modules for a branch that PyTorch lacks: an activation of trained width, and the concatenation of dense blocks."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from iresnet_core.adapters.shared.learned_steps import LearnedStep
from iresnet_core.branches import Activation as CoreActivation
from iresnet_core.branches import ScaledActivation as CoreScaledActivation
from iresnet_core.common import require_positive_int
from iresnet_core.errors import InvalidArgumentError

__all__ = ["DenseConcatenation", "ScaledActivation"]


class ScaledActivation(nn.Module):
    """``f(s x) / s`` with trained scales s = exp(log_scale), see `iresnet_core.ScaledActivation`.

    Parameters
    ----------
    name : str
        An entrywise activation f, see `iresnet_core.Activation`: with "lipswish" it is that of Residual Flows, whose
        beta is trained.
    channels : int
        Number of scales: 1 for all channels, or as many as there are channels.
    **parameters
        Those of the activation.

    Examples
    --------
    >>> import torch
    >>> ScaledActivation("hardtanh")(torch.tensor([[0.5, 3.0]])).tolist()
    [[0.5, 1.0]]
    """

    def __init__(self, name: str, *, channels: int = 1, **parameters: Any) -> None:
        super().__init__()
        self.activation = CoreActivation(name, **parameters)
        self.log_scale = nn.Parameter(torch.zeros(require_positive_int(channels, "channels")))
        self._core()  # refuses activations that are not entrywise

    def extra_repr(self) -> str:
        """Show the activation and the number of scales."""
        return f"{repr(self.activation).removeprefix('Activation(').removesuffix(')')}, channels={len(self.log_scale)}"

    def _core(self, log_scale: Any = None) -> CoreScaledActivation:
        return CoreScaledActivation(self.activation, self.log_scale if log_scale is None else log_scale)

    def step(self) -> LearnedStep:
        """Return the step of a branch."""
        return LearnedStep(self._core, lambda: self.log_scale, self.activation.lipschitz)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to x (batch, channels, ...)."""
        return self._core()(x)  # type: ignore[no-any-return]


class DenseConcatenation(nn.Module):
    """``x -> (cos(a) x, sin(a) net(x))`` along the channels with a trained angle a: the layer of a dense block.

    Inside of a block the linear layers of `net` are capped such that its constant is 1, and with it that of the
    concatenation; a linear layer behind some of these brings the channels back.

    Parameters
    ----------
    net : Module
        A linear layer and activations, as in `InvertibleResidual`, which keeps all axes but that of the channels.

    Examples
    --------
    >>> import torch
    >>> from iresnet_core.adapters.torch import Activation, InvertibleResidual
    >>> dense = [DenseConcatenation(nn.Sequential(nn.Linear(n, 8), Activation("lipswish"))) for n in (2, 10)]
    >>> block = InvertibleResidual(nn.Sequential(*dense, nn.Linear(18, 2)), coeff=0.9).eval()
    >>> block.lipschitz <= 0.9
    True
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise InvalidArgumentError(f"DenseConcatenation takes a module, such as nn.Sequential, got {net!r}.")
        self.net = net
        self.angle = nn.Parameter(torch.full((1,), math.pi / 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return both for x (batch, channels, ...)."""
        return torch.cat([torch.cos(self.angle) * x, torch.sin(self.angle) * self.net(x)], dim=1)
