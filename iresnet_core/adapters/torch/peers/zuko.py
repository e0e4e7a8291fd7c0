"""NICE, Real NVP, MAF, NSF and FFJORD (a continuous flow) of zuko."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import zuko
from torch import Tensor, nn

from iresnet_core.adapters.torch.peers.flow_in_training import FlowInTraining
from iresnet_core.reproduction import Task

__all__ = ["ffjord", "maf", "nice", "nsf", "real_nvp"]

# The rates of NICE, Real NVP and NSF were the best of 1e-3, 3e-3 and 1e-2 after 8 to 12 s on the checkerboard, with
# 36 000 parameters; 3e-3 and 1e-2 were alike for MAF, which takes one between. That of FFJORD was not searched.
_TRAINED, _SCORED = (1e-4, 1e-4), (1e-6, 1e-5)  # absolute and relative tolerances of FFJORD's solver
_FEW = 16  # up to this dimension the trace of FFJORD's Jacobian is taken exactly in training; above, it is estimated


class ZukoFlow(FlowInTraining):
    """A flow of zuko on vectors."""

    def density(self, module: Any, z: Tensor) -> Tensor:
        """Log-densities."""
        value: Tensor = module().log_prob(z)
        return value

    def draw(self, module: Any, n: int) -> Tensor:
        """Draw samples."""
        value: Tensor = module().sample((n,))
        return value


class ContinuousFlow(ZukoFlow):
    """A flow of zuko that solves an ordinary differential equation; its scores take the exact trace.

    Their error is that of the solver, which says nothing more of it than its tolerance.
    """

    method = "exact trace, solver with atol 1e-6"

    def exact_density(self, module: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities with the exact trace."""
        for part in module.modules():
            if isinstance(part, zuko.flows.continuous.FFJTransform):
                part.exact, part.atol, part.rtol = True, *_SCORED
        return super().exact_density(module, z)


def _features(task: Task) -> int:
    return int(torch.tensor(task.event_shape).prod())


def _flow(
    kind: type[FlowInTraining], task: Task, name: str, lr: float, make: Callable[..., nn.Module], **options: Any
) -> FlowInTraining:
    def build(width: int) -> nn.Module:
        return make(_features(task), hidden_features=(width, width), **options)

    return kind(task, build, 64, name, lr)


def nice(task: Task) -> FlowInTraining:
    """NICE: eight additive coupling layers."""
    return _flow(ZukoFlow, task, "NICE (zuko)", 3e-3, zuko.flows.NICE, transforms=8)


def real_nvp(task: Task) -> FlowInTraining:
    """Real NVP: eight affine coupling layers."""
    return _flow(ZukoFlow, task, "Real NVP (zuko)", 3e-3, zuko.flows.RealNVP, transforms=8)


def maf(task: Task) -> FlowInTraining:
    """MAF: five masked autoregressive layers."""
    return _flow(ZukoFlow, task, "MAF (zuko)", 5e-3, zuko.flows.MAF, transforms=5)


def nsf(task: Task) -> FlowInTraining:
    """Neural spline flow: three autoregressive layers of rational quadratic splines."""
    return _flow(ZukoFlow, task, "NSF (zuko)", 1e-2, zuko.flows.NSF, transforms=3)


def ffjord(task: Task) -> FlowInTraining:
    """FFJORD: one continuous flow."""
    make = partial(zuko.flows.CNF, exact=_features(task) <= _FEW, atol=_TRAINED[0], rtol=_TRAINED[1])
    return _flow(ContinuousFlow, task, "FFJORD (zuko)", 5e-3, make)
