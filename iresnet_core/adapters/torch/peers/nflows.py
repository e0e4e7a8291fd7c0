"""MADE of nflows: one masked network with normal conditional densities."""

import math
from typing import Any

import nflows.transforms
from torch import Tensor, nn

from iresnet_core.adapters.torch.peers.flow_in_training import FlowInTraining, normal_density
from iresnet_core.reproduction import Task

__all__ = ["made"]


class Made(FlowInTraining):
    """One masked autoregressive layer on a standard normal density."""

    def density(self, module: Any, z: Tensor) -> Tensor:
        """Log-densities."""
        noise, logdet = module(z)
        value: Tensor = normal_density(noise) + logdet
        return value

    def draw(self, module: Any, n: int) -> Tensor:
        """Draw samples."""
        like = next(module.parameters())
        value: Tensor = module.inverse(like.new_empty(n, math.prod(self.event_shape)).normal_())[0]
        return value


def made(task: Task) -> FlowInTraining:
    """MADE with two residual blocks, the default of the package."""

    def build(width: int) -> nn.Module:
        made_layer: nn.Module = nflows.transforms.MaskedAffineAutoregressiveTransform(
            math.prod(task.event_shape), width
        )
        return made_layer

    return Made(task, build, 64, "MADE (nflows)", 5e-3)
