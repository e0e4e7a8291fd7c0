"""The layers of a flow as PyTorch modules: each holds parameters and hands them to the core's layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import iresnet_core as core
from iresnet_core.adapters.shared import warn_deprecated
from iresnet_core.adapters.shared.actnorm import ActNormMethods
from iresnet_core.adapters.shared.layer import (
    FactorOutMethods,
    InjectivePadMethods,
    LayerMethods,
    LogitMethods,
    SqueezeMethods,
    WrapMethods,
    require_layers,
)
from iresnet_core.adapters.torch.condition import Condition
from iresnet_core.adapters.torch.processes import gathered
from iresnet_core.adapters.torch.weight import CappedWeight, cap_of
from iresnet_core.errors import InvalidArgumentError, UnknownArrayError
from iresnet_core.flows import Layer, Shape

__all__ = ["ActNorm", "FactorOut", "FlowLayer", "InjectivePad", "Logit", "Squeeze", "TorchHooks", "Wrap"]


class TorchHooks:
    """What the shared methods ask of a PyTorch module."""

    channel_axis = 1

    def _is_training(self: Any, training: bool | None) -> bool:
        """Return the mode of a pass: as asked, and by default the mode of the module."""
        return bool(self.training if training is None else training)

    def _received(self: Any, x: Tensor) -> Tensor:
        """Return a tensor in the dtype of the parameters where autocast has lowered it; else as it is.

        Arrays of other frameworks are refused, with the way to convert them.
        """
        if not isinstance(x, Tensor):
            raise UnknownArrayError(
                f"a PyTorch module takes torch tensors, got {type(x).__module__}.{type(x).__name__}; "
                "torch.as_tensor(x) makes one of an array."
            )
        if torch.is_autocast_enabled(x.device.type):
            return x.to(next(self.parameters(), x).dtype)
        return x

    def _received_context(self: Any, context: Tensor | None) -> Tensor | None:
        """Return conditions likewise; whole numbers, which may be labels, as they are."""
        if isinstance(context, Tensor) and not context.is_floating_point():
            return context
        return None if context is None else self._received(context)  # type: ignore[no-any-return]

    def _taken_condition(self, condition: Any) -> Condition:
        """Return a map of the caller's own as a Condition."""
        return condition if isinstance(condition, Condition) else Condition(condition)


class FlowLayer(TorchHooks, LayerMethods, nn.Module):
    """Base class of the layers: ``layer(x)`` maps samples, `inverse` maps them back, both through the core.

    A subclass says in `core_layer` which layer of the core its parameters make now.

    Attributes
    ----------
    takes_context : bool
        Whether a conditioning changes the layer.
    channel_axis : int
        1: the channels come first in a sample.

    Examples
    --------
    >>> import iresnet_core
    >>> class Doubled(FlowLayer):
    ...     takes_context = False
    ...
    ...     def core_layer(self, context=None, *, training=None, weights=None):
    ...         two = torch.full((2,), 2.0)
    ...         return iresnet_core.ActNorm(torch.log(two), torch.zeros(2))
    >>> Doubled()(torch.tensor([[1.0, 3.0]]))
    tensor([[2., 6.]])
    """

    def bind(self, event_shape: Shape) -> Shape:
        """Take note of the shape of one sample, and return the shape of its output."""
        return self._shape_layer().output_shape(event_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map samples x (batch, ...), without the log-determinant."""
        return self._mapped(x, context)  # type: ignore[no-any-return]

    def capped(self) -> list[tuple[nn.Module, CappedWeight]]:
        """Return the capped modules and their parametrisations; deprecated, use `capped_layers`."""
        warn_deprecated("capped()", "capped_layers()")
        return [(module, cap) for module in self.modules() if (cap := cap_of(module)) is not None]


class ActNorm(ActNormMethods, FlowLayer):
    """``z = (x + bias unit) exp(log_scale)`` per channel, initialised from the first training batch.

    Notes
    -----
    Whether it is initialised is part of the state dict, so that a checkpoint is never initialised again. With several
    processes the statistics are those of the joined batch.

    Examples
    --------
    >>> norm = ActNorm(2).initialize(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    >>> norm(torch.tensor([[1.0, 10.0]])).round().tolist()
    [[-1.0, -1.0]]
    """

    log_scale: Tensor
    bias: Tensor
    unit: Tensor
    is_initialized: Tensor
    # What the buffer says, for compilers, which cannot look into it.
    _initialized: bool = False

    def _make_parameters(self) -> None:
        if self.channels is None:
            raise InvalidArgumentError("channels must be a positive whole number, got None.")
        self.log_scale = nn.Parameter(torch.zeros(self.channels))
        self.bias = nn.Parameter(torch.zeros(self.channels))
        self.register_buffer("unit", torch.ones(self.channels))
        if self.context_features is not None:
            self.context = nn.Linear(self.context_features, 2 * self.channels, bias=False)
            nn.init.zeros_(self.context.weight)
        self.register_buffer("is_initialized", torch.tensor(0.0))  # a float: PyTorch can take means of it, on CUDA too

    def extra_repr(self) -> str:
        """Show the channels."""
        spread = "" if self.spread == 1 else f", spread={self.spread:g}"
        return f"{self.channels}, axis={self.axis}{spread}, initialized={self._initialized}"

    @property
    def initialized(self) -> bool:
        """Whether the parameters have been set from data or loaded."""
        if not self._initialized and not torch.compiler.is_compiling() and not self.is_initialized.is_meta:
            self._initialized = bool(self.is_initialized >= 1)  # copied, as by a module that averages another
        return self._initialized

    def _apply(self, fn: Any, recurse: bool = True) -> "ActNorm":
        """Move or cast; what comes from the device "meta" has no values, and is not initialised."""
        without_values = self.is_initialized.is_meta
        super()._apply(fn, recurse)
        if without_values and not self.is_initialized.is_meta:
            self.is_initialized.zero_()
            self.unit.fill_(1)
        return self

    def _parameter(self, parameter: Tensor) -> Tensor:
        return parameter

    def _context_weight(self) -> Tensor:
        return self.context.weight

    def _statistics(self, x: Tensor) -> Tensor:
        return gathered(x.detach().to(self.bias.dtype))

    def _assign(self, log_scale: Tensor, bias: Tensor, unit: Tensor) -> None:
        if log_scale.shape != self.log_scale.shape:  # broadcasting would hide it
            core.ActNorm(self.log_scale, self.bias).output_shape(tuple(log_scale.shape))
        self.log_scale.copy_(log_scale)
        self.bias.copy_(bias)
        self.unit.copy_(unit)

    def _mark(self) -> None:
        self.is_initialized.fill_(1)
        self._initialized = True

    def _shape_layer(self) -> Layer:
        zeros = torch.zeros(self.log_scale.shape[0], device="cpu")
        return core.ActNorm(zeros, zeros, axis=self.axis)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map samples x (batch, ...); the first batch in training mode sets the parameters."""
        if self.training and not self.initialized:
            self.initialize(x)
        return super().forward(x, context)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}bias" in state_dict and f"{prefix}unit" not in state_dict:  # from before there was a unit
            state_dict[f"{prefix}unit"] = torch.ones_like(state_dict[f"{prefix}bias"])
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._initialized = not self.is_initialized.is_meta and bool(self.is_initialized >= 1)


class Squeeze(SqueezeMethods, FlowLayer):
    """Blocks of pixels to channels, (C, H, W) to (C factor^2, H / factor, W / factor); also for 1 and 3 axes.

    Examples
    --------
    >>> Squeeze()(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 4, 4, 4])
    """

    def extra_repr(self) -> str:
        """Show the factor and the basis."""
        return str(self.factor) if self.basis == "pixels" else f"{self.factor}, basis={self.basis!r}"


class InjectivePad(InjectivePadMethods, FlowLayer):
    """Append zero channels, (C, ...) to (C + padding, ...): an injective map, for more features than data have.

    Examples
    --------
    >>> InjectivePad(1)(torch.ones(1, 2))
    tensor([[1., 1., 0.]])
    """

    def extra_repr(self) -> str:
        """Show the number of channels."""
        return str(self.padding)


class Logit(LogitMethods, FlowLayer):
    """``logit(alpha + (1 - 2 alpha) x)`` for images in [0, 1], entry by entry.

    Examples
    --------
    >>> Logit()(torch.tensor([[0.5]]))
    tensor([[0.]])
    """

    def extra_repr(self) -> str:
        """Show alpha."""
        return str(self.alpha)


class Wrap(WrapMethods, FlowLayer):
    """``x - p floor((x - low) / p)``: angles brought back to one turn, the first layer of a flow on a torus.

    Examples
    --------
    >>> Wrap(period=4.0)(torch.tensor([[5.0]]))
    tensor([[1.]])
    """

    def extra_repr(self) -> str:
        """Show the interval."""
        return f"low={self.low:g}, period={self.period:g}" + (f", entries={self.entries}" if self.entries else "")


class FactorOut(FactorOutMethods, FlowLayer):
    """Let the first `keep` channels pass through further layers, and leave the others as they are.

    Examples
    --------
    >>> from iresnet_core.adapters.torch import Flow
    >>> flow = Flow([FactorOut(1, [Logit()])], event_shape=(2,))
    >>> flow.encode(torch.tensor([[0.5, 0.5]]))
    tensor([[0.0000, 0.5000]])
    """

    def _take_layers(self, layers: Sequence[nn.Module]) -> None:
        self.layers = nn.ModuleList(require_layers(layers, FlowLayer))

    def _inner(self) -> list[Any]:
        return list(self.layers)

    def extra_repr(self) -> str:
        """Show how many channels go on."""
        return f"keep={self.keep}"

    def bind(self, event_shape: Shape) -> Shape:
        """Tell the inner layers the shapes of their samples, and return the shape of the output."""
        self._bind_inner(event_shape)
        return super().bind(event_shape)
