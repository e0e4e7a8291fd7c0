"""NICE, Real NVP, MAF, NSF and FFJORD (a continuous flow) of zuko."""

import math
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
# Up to this dimension the scores take the exact trace, which costs d products with the Jacobian at every evaluation. At
# the sizes of table 2 an image of 8 x 8 pixels takes 0.15 s, and one of 28 x 28 takes 3 s, where a draw takes 0.02 s.
_EXACT = 100
_DRAWS = 4  # whose mean is the score above; with them the mean of 1000 images of MNIST has an error of 0.0006 bits


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
    """A flow of zuko that solves an ordinary differential equation.

    Scores take the exact trace of the Jacobian where there are few entries, and else the mean of some of Hutchinson's
    estimates of its integral, with their standard error. The solver says no more of its own error than its tolerance.
    """

    def __init__(self, task: Task, build: Callable[[int], nn.Module], width: int, name: str, lr: float) -> None:
        super().__init__(task, build, width, name, lr)
        self.exact_trace = _features(task) <= _EXACT
        trace = "exact trace" if self.exact_trace else f"mean of {_DRAWS} draws of Hutchinson's trace"
        self.method = f"{trace}, solver with atol {_SCORED[0]:.0e}"

    def exact_density(self, module: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities with the tolerances of scores."""
        for part in module.modules():
            if isinstance(part, zuko.flows.continuous.FFJTransform):
                part.exact, part.atol, part.rtol = self.exact_trace, *_SCORED
        if self.exact_trace:
            return super().exact_density(module, z)
        draws = torch.stack([self.density(module, z) for _ in range(_DRAWS)])
        return draws.mean(0), draws.std(0) / math.sqrt(_DRAWS)


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
