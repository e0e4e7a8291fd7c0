"""The layers of a flow as PyTorch modules: each holds parameters and hands them to the core's layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import iresnet_core as core
from iresnet_core.adapters.torch.processes import gathered
from iresnet_core.adapters.torch.weight import Capped
from iresnet_core.backends.torch.precision import own_dtype
from iresnet_core.errors import InvalidArgumentError, UnknownArrayError
from iresnet_core.flows import Layer, Shape
from iresnet_core.operators import LinearLayer

# Linear layers with the weights in use in training, by their modules.
Steered = Mapping[nn.Module, LinearLayer]

__all__ = ["ActNorm", "FactorOut", "FlowLayer", "InjectivePad", "Logit", "Squeeze", "Steered"]


class FlowLayer(nn.Module):
    """Base class of the layers: ``layer(x)`` maps samples, `inverse` maps them back, both through the core.

    A subclass says in `core_layer` which layer of the core its parameters make now.

    Attributes
    ----------
    takes_context : bool
        Whether a conditioning changes the layer.
    """

    takes_context: bool = True

    def core_layer(
        self, context: Tensor | None = None, *, exported: bool = False, scaled_by_estimate: Steered | None = None
    ) -> Layer:
        """Return the core's layer with the present parameters.

        Parameters
        ----------
        context : Tensor (batch, features), optional
            Conditioning, for layers that take it; of a single sample where `exported`.
        exported : bool
            With certified weights, whatever the mode, and as constants.
        scaled_by_estimate : mapping of modules to linear layers, optional
            Weights in use in training that have been computed already, for all blocks of a flow at once.
        """
        raise NotImplementedError

    def bind(self, event_shape: Shape) -> Shape:
        """Take note of the shape of the samples, and return that of the output."""
        return self._shape_layer().output_shape(event_shape)

    def _shape_layer(self) -> Layer:
        """Return a layer of the core that knows shapes; parameters on the device "meta" have no values to look at."""
        return self.core_layer(exported=True)

    def capped(self) -> list[Capped]:
        """Return the capped linear layers inside."""
        return []

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set data-dependent parameters that are not set yet, and return the output for `x`."""
        return self(x, context)  # type: ignore[no-any-return]

    @property
    def initialized(self) -> bool:
        """Whether there is nothing left for `initialize` to do."""
        return True

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map samples x (batch, ...), without the log-determinant."""
        layer = self.core_layer(context)
        x = as_parameters(x, layer)
        with no_autocast(x):
            return layer(x)  # type: ignore[no-any-return]

    def inverse(self, z: Tensor, context: Tensor | None = None, *, errors: bool = False, **options: Any) -> Any:
        """Return the preimages of z (batch, ...).

        Parameters
        ----------
        z : Tensor (batch, ...)
            As the layer returns them.
        context : Tensor (batch, features), optional
            The conditioning that belongs to z.
        errors : bool
            Return the core's `Inverse` with its certified `error_bound` instead of the samples alone.
        **options
            As in `iresnet_core.invert`.
        """
        layer = self.core_layer(context)
        z = as_parameters(z, layer)
        with no_autocast(z):
            result = layer.inverse(z, **options)
        return result if errors else result.value


def require_tensor(x: Any) -> None:
    """Refuse arrays of other frameworks, with the way to convert them."""
    if not isinstance(x, Tensor):
        raise UnknownArrayError(
            f"a PyTorch module takes torch tensors, got {type(x).__module__}.{type(x).__name__}; torch.as_tensor(x) "
            "makes one of an array."
        )


def no_autocast(x: Tensor) -> Any:
    """Context without autocast, in which the core's bounds would not hold; its derivatives go without it as well."""
    require_tensor(x)
    return own_dtype(x)


def as_parameters(x: Tensor, layer: Layer) -> Tensor:
    """Return x in the dtype of the parameters where autocast has lowered it; else as it is."""
    require_tensor(x)
    arrays = layer.arrays
    if arrays and torch.is_autocast_enabled(x.device.type):
        return x.to(arrays[0].dtype)
    return x


class ActNorm(FlowLayer):
    """``z = (x + bias) exp(log_scale)`` per channel, initialised from the first training batch.

    Parameters
    ----------
    channels : int
        Number of channels.
    axis : int
        Channel axis of a batch; 1 for vectors and images with the channels first.

    Notes
    -----
    Whether it is initialised is part of the state dict, so that a checkpoint is never initialised again. With several
    processes the statistics are those of the joined batch.
    """

    takes_context = False
    log_scale: Tensor
    bias: Tensor
    is_initialized: Tensor

    def __init__(self, channels: int, *, axis: int = 1) -> None:
        super().__init__()
        if channels < 1:
            raise InvalidArgumentError(f"channels must be a positive whole number, got {channels!r}.")
        core.ActNorm(axis=axis)  # checks the axis
        self.channels, self.axis = channels, axis
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("is_initialized", torch.tensor(0.0))  # of which PyTorch can take means, on CUDA too
        self._initialized = False  # the same for Python, which a compiler can follow

    def extra_repr(self) -> str:
        """Show the channels."""
        return f"{self.channels}, axis={self.axis}, initialized={self._initialized}"

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
        return self

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set the parameters from a batch, unless they are set already; return the output."""
        if not self.initialized:
            self._initialize_from(x)
        return super().forward(x)

    def _initialize_from(self, x: Tensor) -> None:
        with torch.no_grad(), no_autocast(x):
            found = core.ActNorm.initialize(gathered(x.detach().to(self.bias.dtype)), axis=self.axis)
            assert found.log_scale is not None
            assert found.bias is not None
            if found.log_scale.shape != self.log_scale.shape:
                core.ActNorm(self.log_scale, self.bias, axis=self.axis).output_shape(tuple(x.shape[1:]))
            self.log_scale.copy_(found.log_scale)
            self.bias.copy_(found.bias)
        self.mark_initialized()

    def mark_initialized(self) -> None:
        """Keep the parameters as they are from now on but for training."""
        self.is_initialized.fill_(1)
        self._initialized = True

    def core_layer(
        self, context: Tensor | None = None, *, exported: bool = False, scaled_by_estimate: Steered | None = None
    ) -> Layer:
        """Return the core's layer."""
        if exported:
            return core.ActNorm(self.log_scale.detach(), self.bias.detach(), axis=self.axis)
        if not self.initialized:
            raise InvalidArgumentError(
                "this ActNorm has not been initialised: call flow.initialize(x) with a batch of data, or run one batch "
                "in training mode."
            )
        return core.ActNorm(self.log_scale, self.bias, axis=self.axis)

    def _shape_layer(self) -> Layer:
        zeros = torch.zeros(self.channels, device="cpu")
        return core.ActNorm(zeros, zeros, axis=self.axis)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map samples x (batch, ...); the first batch in training mode sets the parameters."""
        if self.training and not self.initialized:
            self._initialize_from(x)
        return super().forward(x)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._initialized = not self.is_initialized.is_meta and bool(self.is_initialized >= 1)


class Squeeze(FlowLayer):
    """Blocks of pixels to channels, (C, H, W) to (C factor^2, H / factor, W / factor); also for 1 and 3 axes."""

    takes_context = False

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self._core = core.Squeeze(factor)

    def extra_repr(self) -> str:
        """Show the factor."""
        return str(self._core.factor)

    def core_layer(
        self, context: Tensor | None = None, *, exported: bool = False, scaled_by_estimate: Steered | None = None
    ) -> Layer:
        """Return the core's layer."""
        return self._core


class InjectivePad(FlowLayer):
    """Append zero channels: an injective map, for more features than data have."""

    takes_context = False

    def __init__(self, padding: int, *, axis: int = 1) -> None:
        super().__init__()
        self._core = core.InjectivePad(padding, axis=axis)

    def extra_repr(self) -> str:
        """Show the number of channels."""
        return str(self._core.padding)

    def core_layer(
        self, context: Tensor | None = None, *, exported: bool = False, scaled_by_estimate: Steered | None = None
    ) -> Layer:
        """Return the core's layer."""
        return self._core


class Logit(FlowLayer):
    """``logit(alpha + (1 - 2 alpha) x)`` for images in [0, 1]."""

    takes_context = False

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        self._core = core.Logit(alpha)

    def extra_repr(self) -> str:
        """Show alpha."""
        return str(self._core.alpha)

    def core_layer(
        self, context: Tensor | None = None, *, exported: bool = False, scaled_by_estimate: Steered | None = None
    ) -> Layer:
        """Return the core's layer."""
        return self._core


class FactorOut(FlowLayer):
    """Let the first `keep` channels pass through further layers, and leave the others as they are.

    Parameters
    ----------
    keep : int
        Channels that go on.
    layers : sequence of FlowLayer
        What they go through.
    """

    takes_context = False

    def __init__(self, keep: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.keep = keep
        self.layers = nn.ModuleList(require_layers(layers))

    def extra_repr(self) -> str:
        """Show how many channels go on."""
        return f"keep={self.keep}"

    @property
    def initialized(self) -> bool:
        """Whether all inner layers are."""
        return all(layer.initialized for layer in self.layers)

    def bind(self, event_shape: Shape) -> Shape:
        """Tell the inner layers their shapes."""
        shape: Shape = (self.keep, *event_shape[1:])
        for layer in self.layers:
            shape = layer.bind(shape)  # type: ignore[operator]
        self._event_shape = (self.keep, *event_shape[1:])
        return self._shape_layer().output_shape(event_shape)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Initialise the inner layers with what they will be given."""
        inner = x[:, : self.keep]
        for layer in self.layers:
            inner = layer.initialize(inner, context)  # type: ignore[operator]
        return self(x, context)  # type: ignore[no-any-return]

    def capped(self) -> list[Capped]:
        """Return those of the inner layers."""
        return [pair for layer in self.layers for pair in layer.capped()]  # type: ignore[operator]

    def core_layer(
        self, context: Tensor | None = None, *, exported: bool = False, scaled_by_estimate: Steered | None = None
    ) -> Layer:
        """Return the core's layer."""
        return self._factor_out(
            [
                layer.core_layer(context, exported=exported, scaled_by_estimate=scaled_by_estimate)  # type: ignore[operator]
                for layer in self.layers
            ]
        )

    def _shape_layer(self) -> Layer:
        return self._factor_out([layer._shape_layer() for layer in self.layers])  # type: ignore[operator]

    def _factor_out(self, layers: list[Layer]) -> Layer:
        shape = getattr(self, "_event_shape", None)
        if shape is None:
            raise InvalidArgumentError(
                "FactorOut learns the shape of its samples from the Flow that it is part of: put it into one."
            )
        return core.FactorOut(self.keep, core.Flow(layers, shape))


def require_layers(layers: Sequence[nn.Module]) -> list[FlowLayer]:
    """Refuse modules that are no layers of a flow."""
    out = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, FlowLayer):
            raise InvalidArgumentError(
                f"entry {index} is a {type(layer).__name__}, no layer of a flow. Wrap a network as "
                "InvertibleResidual(network), or use ActNorm, Squeeze, InjectivePad, Logit or FactorOut."
            )
        out.append(layer)
    if not out:
        raise InvalidArgumentError("there are no layers; a flow needs at least one.")
    return out
