"""Layers of points for whole sets of them, as a PyTorch module."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from iresnet_core.adapters.shared.layer import require_layers
from iresnet_core.adapters.shared.pointwise import PointwiseMethods
from iresnet_core.adapters.torch.layer import FlowLayer
from iresnet_core.flows import Shape

__all__ = ["Pointwise"]


class Pointwise(PointwiseMethods, FlowLayer):
    """``z_p = layers(x_p)`` for every point x_p of a set; the conditions of a set are those of all its points.

    Examples
    --------
    >>> import torch
    >>> from iresnet_core.adapters.torch import Flow, InvertibleResidual
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ELU(), nn.Linear(8, 3))
    >>> flow = Flow([Pointwise(InvertibleResidual(net, coeff=0.9))], event_shape=(100, 3)).eval()
    >>> flow.log_prob(torch.zeros(2, 100, 3)).shape
    torch.Size([2])
    """

    def _take_layers(self, layers: Sequence[nn.Module]) -> None:
        self.layers = nn.ModuleList(require_layers(layers, FlowLayer))

    def _inner(self) -> list[Any]:
        return list(self.layers)

    def bind(self, event_shape: Shape) -> Shape:
        """Tell the inner layers the size of a point, and return the shape of the output."""
        return self._bind_inner(event_shape)
