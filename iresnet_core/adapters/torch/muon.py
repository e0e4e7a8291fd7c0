"""The optimiser Muon on parameters of PyTorch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter

from iresnet_core.training import muon_step

__all__ = ["Muon"]


class Muon(torch.optim.Optimizer):
    """Muon for weights of dense layers and of convolutions.

    A step goes along the orthogonal factor of the momentum of a weight, so that all singular values change alike, which
    suits weights that are divided by their norm; see `iresnet_core.training.muon_step`. All other parameters, such as
    biases, need an optimiser of their own. `torch.optim` has a Muon too, which refuses kernels of convolutions.

    Parameters
    ----------
    params : iterable of Parameter
        Weights with their outputs along the first axis, such as those of a flow that have a cap:
        ``[layer.weight for layer in flow.capped_layers()]``.
    lr : float
        Learning rate, as of Adam.
    weight_decay : float
        Each step shrinks the weights by `lr` times this.

    Examples
    --------
    >>> from iresnet_core.adapters.torch import Flow, InvertibleResidual
    >>> block = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> flow = Flow([InvertibleResidual(block)])
    >>> weights = [layer.weight for layer in flow.capped_layers()]
    >>> others = [p for p in flow.parameters() if all(p is not weight for weight in weights)]
    >>> optimizers = [Muon(weights, lr=0.02), torch.optim.Adam(others, lr=0.02)]
    >>> _ = flow.training_loss(torch.randn(64, 2)).backward()
    >>> for optimizer in optimizers:
    ...     optimizer.step()
    """

    def __init__(self, params: Iterable[Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` computes the loss anew, and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                step, momentum = muon_step(weight.grad, state["momentum"], outputs_axis=0)
                state["momentum"].copy_(momentum)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"])
        return loss
