"""The invertible residual block as a PyTorch module."""

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

import iresnet_core as core
from iresnet_core.adapters.shared.learned_steps import ConcatenationStep, caps_of, linear_layers
from iresnet_core.adapters.shared.residual import ResidualMethods
from iresnet_core.adapters.shared.steps import Step
from iresnet_core.adapters.shared.weight import CappedLayer
from iresnet_core.adapters.torch.branch import (
    convolution_options,
    described,
    function_of_one_sample,
    output_shape,
    steps_of,
)
from iresnet_core.adapters.torch.layer import FlowLayer
from iresnet_core.adapters.torch.weight import CappedWeight, cap_of, cap_weight, capped_layer, plain_layer
from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows import Shape
from iresnet_core.lipschitz import capped_constant
from iresnet_core.operators import LinearLayer

__all__ = ["InvertibleResidual"]


class InvertibleResidual(ResidualMethods, FlowLayer):
    """``z = x + g(x)`` with a certified Lip(g) <= coeff < 1.

    Notes
    -----
    The norms of convolutions are certified in every pass. Those of matrices are estimated in training mode by a step of
    a subspace iteration a pass; in evaluation mode all are certified, and kept until the weights change. Nothing needs
    to be called.

    Examples
    --------
    >>> import torch
    >>> block = InvertibleResidual(nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2)), coeff=0.9).eval()
    >>> x = torch.tensor([[1.0, -1.0]])
    >>> bool((block.inverse(block(x)) - x).abs().max() < 1e-4)
    True
    >>> block.lipschitz <= 0.9
    True
    """

    context: nn.Linear | None

    def _take_net(self, net: nn.Module) -> None:
        self.net = net
        self.context = None
        if self.declared is not None:
            return
        steps = steps_of(net)
        linear = linear_layers(steps)
        if not any(layer in steps for layer in linear):
            raise InvalidArgumentError(
                f"a residual branch needs at least one Linear or convolution layer, got {described(net)}."
            )
        for layer in linear:
            convolution_options(layer)  # refuses paddings that the core does not know

    def _cap_weights(self) -> None:
        steps = self._steps()
        for layer, cap in zip(linear_layers(steps), caps_of(steps, self.cap), strict=True):
            cap_weight(layer, cap, convolution_options(layer))
        first: Any = next(step for step in steps if isinstance(step, nn.Module))
        enters = linear_layers(steps)[0]
        if isinstance(enters, nn.Linear) and all(step.takes_any_shape for step in steps if isinstance(step, Step)):
            self.bind((enters.in_features,))
        if self.context_features is not None:
            width = first.out_features if isinstance(first, nn.Linear) else first.out_channels
            like = first.weight
            self.context = nn.Linear(self.context_features, width, bias=False, device=like.device, dtype=like.dtype)

    def _own_shape(self) -> Shape | None:
        return self._seen

    def _steps(self) -> list[Any]:
        return steps_of(self.net)

    def _declared_branch(self, training: bool) -> Any:
        return function_of_one_sample(self.net)

    def _linear_map(self, checked: bool) -> LinearLayer:
        assert self.context is not None
        return core.Dense(self.context.weight, checked=checked)

    def extra_repr(self) -> str:
        """Show the cap."""
        return f"coeff={self.coeff:g}" + ("" if self.declared is None else f", lipschitz={self.declared:g}")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept of the last weights, for copies and pickles."""
        return {**self.__dict__, "_kept": None}

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and forget what was computed from the last weights."""
        self._kept = None
        return super().train(mode)

    def bind(self, event_shape: Shape) -> Shape:
        """Take note of the size of the images, for which `lipschitz` and the weights of the layers are; return it.

        Calls with images of other sizes, also at the same time, each have the certificates for theirs.
        """
        shape = self._seen = tuple(event_shape)
        if self.declared is None:
            steps = self._steps()
            for layer, size in zip(linear_layers(steps), self._sizes(steps, shape), strict=True):
                state = cap_of(layer)
                if state is not None:
                    state.set_input_shape(size)
        return shape

    def _sizes(self, steps: list[Any], shape: Shape) -> list[Shape]:
        """Return the shapes of the samples that the linear layers get, where the block gets one of this shape."""
        sizes: list[Shape] = []
        behind = _take_sizes(steps, tuple(shape), sizes)
        if behind != tuple(shape):
            raise ShapeError(
                f"a residual branch keeps the shape, but {described(self.net)} makes {behind} of {tuple(shape)}. What "
                "a stride takes away a transposed convolution has to give back, with its output_padding where the "
                "extent is no multiple of the stride; or change the resolution with Squeeze() between the blocks."
            )
        return sizes

    def plain(self) -> nn.Module:
        """Return the branch g as a network of ordinary layers, whose weights are the certified ones in use.

        It has no parametrizations and shares nothing with the block, which stays as it is: x + plain()(x) is what the
        block computes in evaluation. Convolutions have the weights for the size of the samples that came last.

        Raises
        ------
        InvalidArgumentError
            For a branch of declared constant that the block scales down, for a conditional one, and if a weight has
            parametrizations of its own.
        """
        self._require_plain()
        if self.declared is not None:
            return copy.deepcopy(self.net)  # type: ignore[no-any-return]
        with torch.no_grad():
            pairs = zip(self._linear(), self.capped_layers(), strict=True)
            made = {id(module): plain_layer(module, layer.certified().weight.clone()) for module, layer in pairs}
        return copy.deepcopy(self.net, made)  # type: ignore[no-any-return]

    def capped_layers(self) -> list[CappedLayer]:
        """Return the capped linear layers with their free parameters; none for a branch of declared constant."""
        return [] if self.declared is not None else [capped_layer(layer) for layer in self._linear()]

    def _capped_at(self, event_shape: Shape) -> list[CappedLayer]:
        if self.declared is not None:
            return []
        linear = self._linear()
        if not any(map(convolution_options, linear)):
            return [capped_layer(layer) for layer in linear]
        sizes = self._sizes(self._steps(), event_shape)
        return [capped_layer(layer, size) for layer, size in zip(linear, sizes, strict=True)]

    def _linear(self) -> list[Any]:
        """Return the linear modules of the branch, which has to be the one that was wrapped."""
        steps = self._steps()
        if capped_constant(steps, self.cap) > self._constant * (1 + 1e-9):
            raise InvalidArgumentError(
                f"the branch {described(self.net)} is another than the one that was wrapped: with its present layers "
                f"and activations its constant may exceed {self._constant:.3g}. Make a new block of it."
            )
        return linear_layers(steps)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Self:
        """Begin the power iterations for samples like x (batch, ...), for a compiled program; returns the block."""
        if not get_backend(x).is_tracing(x):
            CappedWeight.begin(self._capped_at(tuple(x.shape[1:])))
        return self

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return x + g(x) for x (batch, ...)."""
        self._take_shape(x)
        return super().forward(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None, **options: Any) -> Any:
        """Return the samples that `forward` maps to z, as `FlowLayer.inverse`."""
        self._take_shape(z)
        return super().inverse(z, context, **options)

    def _take_shape(self, x: Tensor) -> None:
        """Take note of the size that was seen last; no call relies on it."""
        if self.declared is not None:
            return
        steps = self._steps()
        if any(isinstance(step, Step) or convolution_options(step) is not None for step in steps):
            self.bind(tuple(x.shape[1:]))


def _take_sizes(steps: list[Any], shape: Shape, sizes: list[Shape]) -> Shape:
    """Append the shapes of what the linear layers get, also inside of concatenations; return the shape at the end."""
    for step in steps:
        if isinstance(step, ConcatenationStep):
            _take_sizes(step.steps, shape, sizes)
        elif isinstance(step, nn.Module):
            sizes.append(shape)
        shape = output_shape(step, shape)
    return shape
