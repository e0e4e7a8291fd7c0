"""A door to the package sbi: flows as its density estimators, for `NPE`, `NLE` and the posteriors made of them."""

from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from iresnet_core.adapters.torch import Activation, ActNorm, Condition, Flow, InvertibleResidual

__all__ = ["FlowEstimator", "flow_builder"]


class FlowEstimator(ConditionalDensityEstimator):
    """A conditional `Flow` with the methods that sbi asks of an estimator; the flow is its attribute `net`.

    Conditions (batch, *condition_shape) enter it through `embedding_net`, any module, which is trained with the flow;
    by default they are flattened. It is no part of what ``net.save(path)`` writes.
    """

    def __init__(self, flow: Flow, condition_shape: Any, embedding_net: nn.Module | None = None) -> None:
        super().__init__(flow, torch.Size(flow.event_shape), torch.Size(condition_shape))
        self._embedding_net = nn.Flatten() if embedding_net is None else embedding_net

    @property
    def embedding_net(self) -> nn.Module:
        """The map from conditions to the context."""
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **options: Any) -> Tensor:
        """Return log-densities (samples, batch) of inputs (samples, batch, d), or (batch, d), under conditions."""
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        input, condition, _ = self._broadcast_and_align(input, condition)
        context = self._embedding_net(condition.reshape(-1, *self.condition_shape))
        nats = self.net.log_prob(input.reshape(-1, *self.input_shape), context, **options)
        return nats.reshape(input.shape[:2])  # type: ignore[no-any-return]

    def loss(self, input: Tensor, condition: Tensor, **options: Any) -> Tensor:
        """Return -log q (batch,); in training with log-determinants of a part of the batch that stand for all."""
        if not self.training:
            return -self.log_prob(input, condition, **options)[0]
        return -self.net._part_log_prob(input, self._embedding_net(condition), None, options)  # type: ignore[no-any-return]

    def sample(self, sample_shape: Any, condition: Tensor, **options: Any) -> Tensor:
        """Draw (*sample_shape, batch, d) under conditions (batch, *condition_shape)."""
        shape, context = self._repeated(sample_shape, condition)
        return self.net.sample(len(context), context, **options).reshape(*shape, *self.input_shape)  # type: ignore[no-any-return]

    def sample_and_log_prob(self, sample_shape: Any, condition: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Draw with the log-densities, from one pass."""
        shape, context = self._repeated(sample_shape, condition)
        drawn, nats = self.net.sample(len(context), context, log_prob=True, **options)
        return drawn.reshape(*shape, *self.input_shape), nats.reshape(shape)

    def _repeated(self, sample_shape: Any, condition: Tensor) -> tuple[tuple[int, ...], Tensor]:
        self._check_condition_shape(condition)
        context = self._embedding_net(condition.reshape(-1, *self.condition_shape))
        shape = (*torch.Size(sample_shape), len(context))
        return shape, context.expand(*shape, context.shape[-1]).reshape(-1, context.shape[-1])


def flow_builder(
    *,
    blocks: int = 8,
    width: int = 64,
    features: int = 32,
    coeff: float = 0.98,
    base: Any = "normal",
    embedding_net: nn.Module | None = None,
) -> Callable[[Tensor, Tensor], FlowEstimator]:
    """Return what ``NPE(prior, density_estimator=...)`` takes: it makes the estimator from simulations.

    Parameters
    ----------
    blocks, width, coeff, base
        Residual blocks, the width of their hidden layer, the cap of each, and the density of the latents (`Flow`).
    features : int
        Numbers that a condition becomes before it enters every block.
    embedding_net : nn.Module, optional
        As in `FlowEstimator`. Conditions, or what it makes of them, are scaled by the simulations.
    """

    def build(theta: Tensor, x: Tensor) -> FlowEstimator:
        """Return the estimator of theta (batch, d) under x (batch, *shape)."""
        with torch.no_grad():
            context = x.flatten(1) if embedding_net is None else embedding_net(x)
        std = context.std(0)
        sines = [nn.Linear(context.shape[1], width), Activation("sin"), nn.Linear(width, width), Activation("sin")]
        net = nn.Sequential(*sines, nn.Linear(width, features))
        condition = Condition(net, mean=context.mean(0).tolist(), std=torch.where(std > 0, std, 1).tolist())
        d, layers = theta.shape[1], list[nn.Module]()
        for _ in range(blocks):
            block = nn.Sequential(nn.Linear(d, width), Activation("sin"), nn.Linear(width, d))
            layers += [ActNorm(d), InvertibleResidual(block, coeff, context_features=features)]
        flow = Flow([*layers, ActNorm(d)], (d,), base=base, condition=condition).initialize(theta, context)
        return FlowEstimator(flow, x.shape[1:], embedding_net)

    return build
