"""Layers turned round, as a PyTorch module."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from iresnet_core.adapters.shared.inverted import InvertedMethods
from iresnet_core.adapters.shared.layer import require_layers
from iresnet_core.adapters.torch.layer import FlowLayer
from iresnet_core.flows import Shape

__all__ = ["Inverted"]


class Inverted(InvertedMethods, FlowLayer):
    """``z = f^-1(x)``: samples are made by evaluating the layers, and scored by a solution.

    Examples
    --------
    >>> import torch
    >>> from iresnet_core.adapters.torch import Flow, InvertibleResidual
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    >>> flow = Flow([Inverted(InvertibleResidual(net, coeff=0.9))], event_shape=(2,)).eval()
    >>> flow.sample(5).shape
    torch.Size([5, 2])
    """

    def _take_layers(self, layers: Sequence[nn.Module]) -> None:
        self.layers = nn.ModuleList(require_layers(layers, FlowLayer))

    def _inner(self) -> list[Any]:
        return list(self.layers)

    def bind(self, event_shape: Shape) -> Shape:
        """Tell the inner layers the shapes of their samples, and return the shape of the output."""
        return self._bind_inner(event_shape)
