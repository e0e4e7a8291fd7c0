"""The invertible residual block as a PyTorch module."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

import iresnet_core as core
from iresnet_core.adapters.torch.branch import (
    activation_of,
    convolution_options,
    described,
    flattened,
    is_linear,
    output_shape,
)
from iresnet_core.adapters.torch.layer import FlowLayer, Steered, require_tensor
from iresnet_core.adapters.torch.weight import (
    Capped,
    CappedWeight,
    cap_of,
    cap_weight,
    steered_layers,
    weight_before_cap,
)
from iresnet_core.backends import get_backend
from iresnet_core.branches import conditioned, require_context
from iresnet_core.common import require_nonnegative
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows import Layer, Shape
from iresnet_core.lipschitz import layer_cap, training_constant

__all__ = ["InvertibleResidual"]


class InvertibleResidual(FlowLayer):
    """``z = x + g(x)`` with a certified Lip(g) <= coeff < 1.

    Parameters
    ----------
    net : nn.Module
        The branch g: a Linear, a Conv1d-3d (stride 1) or a (nested) Sequential of them and of activations, whose
        weights are capped from now on by a parametrisation (``layer.weight`` is the weight in use,
        ``layer.parametrizations.weight.original`` the free parameter); or, with `lipschitz`, any module.
    coeff : float
        Bound on the Lipschitz constant of the block, in (0, 1).
    per_layer : bool
        Cap every linear layer at `coeff` (Behrmann et al. 2019) instead of at its share coeff^(1/L).
    lipschitz : float, optional
        Constant of a module that the core cannot certify, as the caller's declaration, on which all bounds then rest;
        where it is above `coeff`, the output is scaled down.
    context_features : int, optional
        Size of a conditioning vector; an unconstrained linear map of it is added after the first linear layer, so that
        the Lipschitz constant in x stays.

    Raises
    ------
    UnknownLipschitzError
        If `net` holds a layer whose constant is not known, and `lipschitz` is not given.
    ShapeError
        If a convolution has a stride, or the layers do not fit.
    NotContractiveError
        If `coeff` is not in (0, 1).
    InvalidArgumentError
        If there is no linear layer, or one is part of another block.

    Notes
    -----
    In training mode the norms are estimated by two steps of a warm-started power iteration a pass, in evaluation mode
    they are certified and kept until the weights change. Nothing needs to be called.

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

    def __init__(
        self,
        net: nn.Module,
        coeff: float = 0.9,
        *,
        per_layer: bool = False,
        lipschitz: float | None = None,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.coeff = coeff
        self.declared = None if lipschitz is None else require_nonnegative(lipschitz, "lipschitz")
        self.context: nn.Linear | None = None
        self._constant: float = coeff  # what the caps make of the block's constant
        self._kept: tuple[core.Chain, list[Tensor]] | None = None
        if lipschitz is not None:
            layer_cap([], coeff)  # checks coeff
            self._constant = min(require_nonnegative(lipschitz, "lipschitz"), coeff)
            if context_features is not None:
                raise InvalidArgumentError("context_features needs a net of known layers, not one with lipschitz=.")
            return
        layers = list(flattened(net))
        linear = [layer for layer in layers if is_linear(layer)]
        if not linear:
            raise InvalidArgumentError(
                f"a residual branch needs at least one Linear or convolution layer, got {described(net)}."
            )
        options = [convolution_options(layer) for layer in linear]
        cap = layer_cap([activation_of(layer) or layer for layer in layers], coeff, per_layer=per_layer)
        for layer, option in zip(linear, options, strict=True):
            cap_weight(layer, cap, option)
        constants = [known.lipschitz for layer in layers if (known := activation_of(layer)) is not None]
        self._constant = cap ** len(linear) * math.prod(constants)
        if isinstance(linear[0], nn.Linear):
            self.bind((linear[0].in_features,))
        if context_features is not None:
            width: int = getattr(linear[0], "out_features", None) or linear[0].out_channels  # type: ignore[assignment]
            like = linear[0].weight
            self.context = nn.Linear(
                context_features,
                width,
                bias=False,
                device=like.device,  # type: ignore[arg-type]
                dtype=like.dtype,  # type: ignore[arg-type]
            )

    @property
    def takes_context(self) -> bool:  # type: ignore[override]
        """Whether the block is conditional."""
        return self.context is not None

    def extra_repr(self) -> str:
        """Show the cap."""
        return f"coeff={self.coeff:g}" + ("" if self.declared is None else f", lipschitz={self.declared:g}")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept of the last weights, for copies and pickles."""
        return {**self.__dict__, "_kept": None}

    def train(self, mode: bool = True) -> Self:
        """Set the mode; in training nothing of the weights is kept."""
        self._kept = None
        return super().train(mode)

    @property
    def lipschitz(self) -> float:
        """Certified Lipschitz constant of the branch with its present weights, in every mode."""
        if self.declared is not None:
            return float(self._constant)
        with torch.no_grad():
            return float(self._exported_chain().lipschitz)

    def bind(self, event_shape: Shape) -> Shape:
        """Tell the convolutions the size of the images, on which their norms depend."""
        shape = tuple(event_shape)
        if self.declared is not None:
            return shape
        for layer in flattened(self.net):
            before, shape = shape, output_shape(layer, shape)
            cap = cap_of(layer)
            if cap is not None:
                cap.set_input_shape(before)
        if shape != tuple(event_shape):
            raise ShapeError(
                f"a residual branch keeps the shape, but {described(self.net)} makes {shape} of {event_shape}."
            )
        return shape

    def _shape_layer(self) -> Layer:
        return core.ResidualBlock(lambda x: x, lipschitz=0.0)  # keeps the shape

    def fill_caps(self) -> "InvertibleResidual":
        """Scale the free weights so that every linear layer starts at its cap, from which training is quicker."""
        for layer in flattened(self.net):
            cap = cap_of(layer)
            if cap is not None:
                cap.fill(weight_before_cap(layer))
        return self

    def spectral_penalty(self, weight: float) -> Tensor:
        """Return `weight` times the sum of the squared norms of the free weights (report, Eq. 11)."""
        layers = []
        for layer in flattened(self.net):
            cap = cap_of(layer)
            if cap is not None:
                layers.append(cap.free_layer(weight_before_cap(layer), None))
        return core.spectral_penalty(layers, weight)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return x + g(x) for x (batch, ...)."""
        self._take_shape(x)
        return super().forward(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None, *, errors: bool = False, **options: Any) -> Any:
        """Return the samples of which `forward` makes z, as `FlowLayer.inverse`."""
        self._take_shape(z)
        return super().inverse(z, context, errors=errors, **options)

    def capped(self) -> list[Capped]:
        """Return the linear layers with their caps."""
        if self.declared is not None:
            return []
        found = ((module, cap_of(module)) for module in flattened(self.net))
        return [(module, cap) for module, cap in found if cap is not None]

    def _take_shape(self, x: Tensor) -> None:
        if self.declared is None and any(is_linear(m) and convolution_options(m) for m in flattened(self.net)):
            self.bind(tuple(x.shape[1:]))

    def core_layer(
        self, context: Tensor | None = None, *, exported: bool = False, scaled_by_estimate: Steered | None = None
    ) -> Layer:
        """Return the core's residual block with the weights in use."""
        if self.declared is not None:
            return core.ResidualBlock(self._opaque_branch(), lipschitz=self._constant)
        if exported:
            with torch.no_grad():
                return core.ResidualBlock(self._conditioned(self._exported_chain(), context, exported=True))
        if self.training:
            layers = steered_layers(self.capped()) if scaled_by_estimate is None else scaled_by_estimate
            chain = self._chain(lambda _, module: layers[module])
            constant = training_constant(self._constant)
            return core.ResidualBlock(self._conditioned(chain, context), lipschitz=constant)
        return core.ResidualBlock(self._conditioned(self._certified_chain(), context, single=_is_one(context)))

    def _opaque_branch(self) -> Any:
        assert self.declared is not None
        scale = min(1.0, self.coeff / self.declared) if self.declared > 0 else 1.0
        return self.net if scale == 1.0 else lambda x: scale * self.net(x)

    def _chain(self, linear: Any) -> core.Chain:
        """Return the core's chain, with what `linear` makes of each capped layer."""
        layers: list[Any] = []
        for module in flattened(self.net):
            cap = cap_of(module)
            layers.append(activation_of(module) if cap is None else linear(cap, module))
        return core.Chain(layers)

    def _exported_chain(self) -> core.Chain:
        """Return the chain of certified constant weights."""

        def layer(cap: CappedWeight, module: Any) -> Any:
            bias = None if module.bias is None else module.bias.detach()
            return cap.certified_layer(weight_before_cap(module).detach(), bias)

        return self._chain(layer)

    def _certified_chain(self) -> core.Chain:
        """Return the chain of certified weights; the last one again, if neither they nor the biases have changed."""

        def layer(cap: CappedWeight, module: Any) -> Any:
            return cap.certified_layer(weight_before_cap(module), module.bias)

        parameters = [p for module in flattened(self.net) for p in module.parameters()]
        backend = get_backend(*parameters)
        # A compiler or vmap hides the values; a transform of torch.func makes tensors that die with it.
        passing = backend.is_tracing(*parameters) or backend.may_differentiate(*parameters)
        if passing or torch.is_inference_mode_enabled():
            return self._chain(layer)
        if self._kept is not None:
            chain, copies = self._kept
            shape = _input_shape(self.net)
            if (shape is None or chain.input_shape == shape) and all(
                a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
                for a, b in zip(copies, parameters, strict=True)
            ):
                return chain
        chain = self._chain(layer)
        self._kept = chain, [p.detach().clone() for p in parameters]
        return chain

    def _conditioned(
        self, chain: core.Chain, context: Tensor | None, *, exported: bool = False, single: bool = False
    ) -> core.Chain:
        """Add the conditioning after the first linear layer; to its bias for export, or if one is for all samples."""
        if self.context is None:
            return chain
        require_context(context, self.context.in_features, single=exported)
        require_tensor(context)
        return core.Chain(conditioned(chain.layers, self.context(context), single=exported or single))


def _is_one(context: Tensor | None) -> bool:
    """Whether there is one condition, for all samples; no batch of a size that is yet unknown."""
    if not isinstance(context, Tensor) or context.ndim != 2:
        return False
    size = context.shape[0]
    return get_backend(context).knows_size(size) and size == 1


def _input_shape(net: nn.Module) -> Sequence[int] | None:
    """Size of the images to which the first layer is bound."""
    cap = next(cap for layer in flattened(net) if (cap := cap_of(layer)) is not None)
    return cap.input_shape
