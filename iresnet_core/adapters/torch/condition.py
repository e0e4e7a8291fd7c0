"""The map of a condition as a PyTorch module."""

from typing import Any

from torch import Tensor, nn

import iresnet_core as core
from iresnet_core.adapters.shared.condition import ConditionMethods
from iresnet_core.adapters.shared.learned_steps import LearnedStep, with_core_layers
from iresnet_core.adapters.torch.branch import steps_of
from iresnet_core.branches import Activation
from iresnet_core.errors import InvalidArgumentError

__all__ = ["Condition"]


class Condition(ConditionMethods, nn.Module):
    """``h = net(e(c))``: numbers h that enter a layer under a condition c; e scales c, or makes labels one-hot.

    Notes
    -----
    The net is a Linear or a (nested) Sequential of them and of activations, with weights as they are: a condition does
    not enter the contraction. An embedding by another module is computed before, and its output given as the context.

    Examples
    --------
    >>> import torch
    >>> Condition(nn.Linear(3, 2), classes=3)(torch.tensor([2, 0])).shape
    torch.Size([2, 2])
    """

    def _take_net(self, net: Any, inputs: int | None) -> None:
        self.net = net
        for step in [] if net is None else steps_of(net):
            if not isinstance(step, nn.Linear | Activation | LearnedStep):
                raise InvalidArgumentError(f"the net of a condition maps vectors: Linear and activations, got {net}.")
        self.core_condition()  # checks that all fits

    def _net_steps(self, checked: bool) -> list[Any]:
        steps = [] if self.net is None else steps_of(self.net)
        return [
            core.Dense(step.weight, step.bias, checked=checked) if isinstance(step, nn.Linear) else step
            for step in with_core_layers(steps, next((s.weight for s in steps if isinstance(s, nn.Linear)), None))
        ]

    def forward(self, context: Tensor) -> Tensor:
        """Return what enters for conditions (batch, features)."""
        return self.core_condition()(context)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the encoding."""
        return "" if self.encoding is None else repr(self.encoding)
