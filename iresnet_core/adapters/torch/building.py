"""The modules of a planned flow or classifier: one constructor for each class of plan."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from iresnet_core.adapters.torch.branch import Activation
from iresnet_core.adapters.torch.condition import Condition
from iresnet_core.adapters.torch.layer import ActNorm, FactorOut, InjectivePad, Logit, Squeeze
from iresnet_core.adapters.torch.residual import InvertibleResidual
from iresnet_core.training import (
    ActivationPlan,
    ActNormPlan,
    ConditionPlan,
    ConvolutionPlan,
    DensePlan,
    FactorOutPlan,
    InjectivePadPlan,
    LayerPlan,
    LogitPlan,
    ResidualPlan,
    SqueezePlan,
)

__all__ = ["build_branch", "build_condition", "build_layers"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def build_layers(plan: Sequence[LayerPlan], *, start: str | None = None) -> list[Any]:
    """Return the modules of a plan, with parameters from the global generator.

    Parameters
    ----------
    plan : sequence of LayerPlan
        As `planned_layers` or `planned_features` returns it.
    start : {"orthogonal", "uniform"}, optional
        Weights orthogonal, of convolutions nearly so (`ConvolutionPlan.noise_at_start`), so that their singular values
        are at the cap and none has to grow first; or uniform as PyTorch has them, which is the default.
    """
    return [_CONSTRUCTORS[type(layer)](layer, start) for layer in plan]


def build_condition(plan: ConditionPlan | None) -> Condition | None:
    """Return the map of a planned condition, or None."""
    if plan is None:
        return None
    widths = (plan.encoded, plan.hidden, plan.hidden, plan.width)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return Condition(nn.Sequential(*layers[:-1]), labels=plan.labels, mean=plan.mean, std=plan.std)


def build_branch(plan: ResidualPlan, start: str | None = None) -> nn.Sequential:
    """Return the branch of a planned block, whose weights have no caps yet."""
    return nn.Sequential(*[_CONSTRUCTORS[type(layer)](layer, start) for layer in plan.branch])


def _residual(plan: ResidualPlan, start: str | None) -> nn.Module:
    return InvertibleResidual(build_branch(plan, start), coeff=plan.coeff, context_features=plan.context)


def _dense(plan: DensePlan, start: str | None) -> nn.Module:
    module = nn.Linear(plan.inputs, plan.outputs)
    if start == "orthogonal":
        weight = module.weight.detach()
        weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=_wide(weight.dtype))))
    return module


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype in which matrices can be made orthogonal."""
    return torch.promote_types(dtype, torch.float32)


def _convolution(plan: ConvolutionPlan, start: str | None) -> nn.Module:
    module: nn.Module = _CONVOLUTIONS[plan.axes](plan.inputs, plan.outputs, plan.kernel, padding="same")
    if start == "orthogonal":
        middle: torch.Tensor = module.weight.detach()  # type: ignore[assignment, operator, union-attr]
        nn.init.normal_(middle, std=plan.noise_at_start)
        for _ in range(plan.axes):
            middle = middle.select(2, plan.middle)
        middle += nn.init.orthogonal_(torch.empty_like(middle, dtype=_wide(middle.dtype)))
    return module


_CONSTRUCTORS: dict[type, Callable[[Any, str | None], nn.Module]] = {
    LogitPlan: lambda plan, start: Logit(plan.alpha),
    ActNormPlan: lambda plan, start: ActNorm(plan.channels, context_features=plan.context, spread=plan.spread),
    InjectivePadPlan: lambda plan, start: InjectivePad(plan.padding),
    SqueezePlan: lambda plan, start: Squeeze(basis=plan.basis),
    FactorOutPlan: lambda plan, start: FactorOut(plan.keep, build_layers(plan.layers, start=start)),
    ResidualPlan: _residual,
    DensePlan: _dense,
    ConvolutionPlan: _convolution,
    ActivationPlan: lambda plan, start: Activation(plan.name),
}
