"""From the plan of a flow to the layers of a framework: one walk, to which an adapter gives the pieces."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from iresnet_core.training.plans import (
    ActNormPlan,
    ConvolutionBlockPlan,
    DenseBlockPlan,
    FactorOutPlan,
    InjectivePadPlan,
    LayerPlan,
    LogitPlan,
    SqueezePlan,
)

__all__ = ["LayerBuilder", "build_layers"]


class LayerBuilder(Protocol):
    """What an adapter knows how to make; each method returns a layer of its framework."""

    def logit(self, alpha: float) -> Any:
        """Logit of numbers in [0, 1]."""

    def act_norm(self, channels: int) -> Any:
        """Affine map of each channel."""

    def injective_pad(self, padding: int) -> Any:
        """Zero channels that are appended."""

    def squeeze(self) -> Any:
        """Pixels to channels."""

    def factor_out(self, keep: int, layers: list[Any]) -> Any:
        """Further layers for the first channels alone."""

    def dense(self, inputs: int, outputs: int) -> Any:
        """Dense layer, for a branch."""

    def convolution(self, inputs: int, outputs: int, kernel: int, axes: int) -> Any:
        """Convolution that keeps the pixels, for a branch."""

    def activation(self, name: str) -> Any:
        """Activation of the core, for a branch."""

    def residual(self, net: list[Any], coeff: float) -> Any:
        """Residual block whose branch is these layers, in the order of application."""


def build_layers(plan: Sequence[LayerPlan], builder: LayerBuilder) -> list[Any]:
    """Return the layers that are planned, made in the order of the plan.

    Parameters
    ----------
    plan : sequence of LayerPlan
        See `flow_plan`.
    builder : LayerBuilder
        Makes each of them.
    """
    return [_built(layer, builder) for layer in plan]


def _built(plan: LayerPlan, builder: LayerBuilder) -> Any:
    match plan:
        case LogitPlan(alpha):
            return builder.logit(alpha)
        case ActNormPlan(channels):
            return builder.act_norm(channels)
        case InjectivePadPlan(padding):
            return builder.injective_pad(padding)
        case SqueezePlan():
            return builder.squeeze()
        case FactorOutPlan(keep, layers):
            return builder.factor_out(keep, build_layers(layers, builder))
        case DenseBlockPlan(widths, name, coeff):
            dense = [builder.dense(a, b) for a, b in pairwise(widths)]
            return builder.residual(_alternating(dense, name, builder), coeff)
        case ConvolutionBlockPlan(channels, kernels, name, coeff, axes, activation_first):
            shapes = zip(pairwise(channels), kernels, strict=True)
            convolutions = [builder.convolution(a, b, kernel, axes) for (a, b), kernel in shapes]
            net = _alternating(convolutions, name, builder)
            return builder.residual([builder.activation(name), *net] if activation_first else net, coeff)


def _alternating(linear: list[Any], name: str, builder: LayerBuilder) -> list[Any]:
    """Put an activation between any two linear layers."""
    net = linear[:1]
    for layer in linear[1:]:
        net += [builder.activation(name), layer]
    return net
