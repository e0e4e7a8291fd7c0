"""What a residual branch may be made of in PyTorch, and the core's layers for it."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from iresnet_core.adapters.shared.learned_steps import ConcatenationStep, LearnedStep
from iresnet_core.adapters.shared.steps import FixedStep, FlattenStep, PoolingStep, ReshapeStep, Step
from iresnet_core.adapters.torch.declared import DeclaredLayer, FourierFeatures
from iresnet_core.adapters.torch.learned import DenseConcatenation, ScaledActivation
from iresnet_core.backends import backend
from iresnet_core.branches import Activation as CoreActivation
from iresnet_core.branches import PReLU as CorePReLU
from iresnet_core.errors import InvalidArgumentError, ShapeError, UnknownLipschitzError

__all__ = [
    "Activation",
    "convolution_options",
    "described",
    "function_of_one_sample",
    "output_shape",
    "steps_of",
]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_LINEAR = (nn.Linear, *_CONVOLUTIONS)
_POOLING = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}


class Activation(nn.Module):
    """An activation of the core, by name: those that PyTorch lacks are "lipswish", "sin" and "maxmin".

    Parameters
    ----------
    name : str
        See `iresnet_core.Activation`.
    **parameters
        Its parameters, see `iresnet_core.Activation`.

    Examples
    --------
    >>> import torch
    >>> Activation("lipswish")(torch.zeros(1, 2))
    tensor([[0., 0.]])
    """

    def __init__(self, name: str, **parameters: Any) -> None:
        super().__init__()
        self.core = CoreActivation(name, **parameters)

    def extra_repr(self) -> str:
        """Show name and parameters."""
        return repr(self.core).removeprefix("Activation(").removesuffix(")")

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to x (batch, ...)."""
        return self.core(x)  # type: ignore[no-any-return]


def _activation_of(module: nn.Module) -> CoreActivation | None:
    """Return the core's activation that a module computes, or None if it is no activation that the core knows."""
    if isinstance(module, Activation) and _computes_as(module, Activation):
        return module.core
    if type(module) not in _ACTIVATIONS:
        return None
    refused = _OTHER_FUNCTIONS.get(type(module))
    if refused is not None and refused[0](module):
        raise UnknownLipschitzError(f"{described(module)}: {refused[1]}.")
    name, parameters = _ACTIVATIONS[type(module)]
    values = backend("torch").as_program_constants(*(getattr(module, key) for key in parameters.values()))
    return CoreActivation(name, **dict(zip(parameters, values, strict=True)))


# The name in the core, and its parameters with the attributes that hold them.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, dict[str, str]]] = {
    nn.ELU: ("elu", {"alpha": "alpha"}),
    nn.CELU: ("celu", {"alpha": "alpha"}),
    nn.SELU: ("selu", {}),
    nn.ReLU: ("relu", {}),
    nn.LeakyReLU: ("leakyrelu", {"slope": "negative_slope"}),
    nn.SiLU: ("silu", {}),
    nn.GELU: ("gelu", {}),
    nn.Mish: ("mish", {}),
    nn.Softplus: ("softplus", {"beta": "beta"}),
    nn.Softsign: ("softsign", {}),
    nn.Tanh: ("tanh", {}),
    nn.Hardtanh: ("hardtanh", {"limit": "max_val"}),
    nn.Softshrink: ("softshrink", {"threshold": "lambd"}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.Identity: ("identity", {}),
}
# When a module of these classes computes another function than the core's, and what to say then.
_OTHER_FUNCTIONS: dict[type[nn.Module], tuple[Callable[[Any], bool], str]] = {
    nn.GELU: (
        lambda module: module.approximate != "none",
        "the constant of gelu is known in its exact form, not in the approximation by tanh; use nn.GELU()",
    ),
    nn.Hardtanh: (
        lambda module: module.min_val != -module.max_val,
        "the constant of hardtanh is known between opposite limits; use nn.Hardtanh(-limit, limit)",
    ),
    nn.Softplus: (
        lambda module: module.threshold < 15,
        "below a threshold of 15 softplus jumps where it becomes the identity; leave the threshold as it is",
    ),
}


def _other_step(module: nn.Module) -> Step | None:
    """Return the step of a module that has neither weights to cap nor an activation, or None if it is not known."""
    kind = type(module)
    if isinstance(module, DeclaredLayer) and _computes_as(module, DeclaredLayer):
        function_of_one_sample(module.layer)
        return module.step()
    if kind is nn.PReLU:
        return LearnedStep(CorePReLU, lambda: module.weight)
    if isinstance(module, ScaledActivation) and _computes_as(module, ScaledActivation):
        return module.step()
    if isinstance(module, DenseConcatenation) and _computes_as(module, DenseConcatenation):
        return ConcatenationStep(steps_of(module.net), lambda: module.angle, 1, output_shape)
    if isinstance(module, FourierFeatures) and _computes_as(module, FourierFeatures):
        return FixedStep(module._layer)
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return FlattenStep()
    if isinstance(module, nn.Unflatten) and module.dim == 1 and isinstance(module.unflattened_size[0], int):
        return ReshapeStep(module.unflattened_size)
    if kind in _POOLING:
        axes, pool = _POOLING[kind], module
        window, stride, padding = (
            (value,) * axes if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]
            for value in (pool.kernel_size, pool.stride, pool.padding)
        )
        if window != stride or any(padding) or pool.ceil_mode or getattr(pool, "divisor_override", None):
            raise UnknownLipschitzError(
                f"{described(module)}: the constant of average pooling is known for windows side by side; leave "
                "stride, padding, ceil_mode and divisor_override as they are."
            )
        return PoolingStep(window, "channels_first")
    return None


def described(module: nn.Module) -> str:
    """Return a module in one line, without what parametrisations add."""
    if isinstance(module, nn.Sequential):
        return f"Sequential({', '.join(map(described, module))})"
    return f"{type(module).__name__.removeprefix('Parametrized')}({module.extra_repr()})"


def _computes_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Say whether a module computes what one of these classes does: a subclass may have a `forward` of its own."""
    own = type(module)
    return "forward" not in vars(module) and any(
        own.forward is kind.forward
        and getattr(own, "_conv_forward", None) is getattr(kind, "_conv_forward", None)
        and own.__call__ is nn.Module.__call__
        for kind in kinds
        if isinstance(module, kind)
    )


def _require_no_hooks(module: nn.Module) -> None:
    """Refuse hooks: the branch is evaluated by the core, which calls no module, so that they would do nothing."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise InvalidArgumentError(
            f"{described(module)} has a hook, which would never be called: the core computes the branch from the "
            "weights, together with its derivative. Register it on the block, or take it away. The old spectral_norm "
            "and weight_norm and pruning are hooks: use those of torch.nn.utils.parametrizations, or make the weight a "
            "parameter again (remove_spectral_norm, remove_weight_norm, prune.remove); a lazy layer has hooks until it "
            "was called once."
        )


def _layers(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of nested Sequentials, in the order of application."""
    _require_no_hooks(net)
    if isinstance(net, nn.Sequential) and _computes_as(net, nn.Sequential):
        for child in net:
            yield from _layers(child)
    else:
        yield net


def steps_of(net: nn.Module) -> list[Any]:
    """Return the steps of a branch, in the order of application: linear modules, and activations of the core.

    Raises
    ------
    UnknownLipschitzError
        At a layer whose Lipschitz constant is not known, such as a subclass with a `forward` of its own.
    InvalidArgumentError
        At a layer with hooks, which would not be called.
    """
    steps: list[Any] = []
    for layer in _layers(net):
        step: Any = layer if _computes_as(layer, *_LINEAR) else _activation_of(layer)
        step = _other_step(layer) if step is None else step
        if step is None:
            known = ", ".join(
                kind.__name__ for kind in (*_LINEAR, *_ACTIVATIONS, nn.PReLU, *_POOLING, nn.Flatten, nn.Unflatten)
            )
            name = type(layer).__name__.removeprefix("Parametrized")
            derived = isinstance(layer, (*_LINEAR, nn.Sequential, Activation))
            raise UnknownLipschitzError(
                f"the Lipschitz constant of {name} is not known"
                + (", since its forward is not that of the class that it is made from" if derived else "")
                + f", so that no block with it can be certified. Known are {known}, Activation(name), "
                "ScaledActivation(name), DenseConcatenation(net), FourierFeatures and Sequential of them. For a module "
                "whose constant you know put DeclaredLayer(module, lipschitz) in its place, or pass "
                "InvertibleResidual(module, lipschitz=...)."
            )
        steps.append(step)
    return steps


def function_of_one_sample(net: nn.Module) -> nn.Module:
    """Return a branch of declared constant, which has to be one function that treats the samples of a batch apart.

    Raises
    ------
    InvalidArgumentError
        If a layer takes statistics of the batch or draws at random, in the mode that it is in.
    """
    for module in net.modules():
        why = None
        if isinstance(module, nn.modules.batchnorm._NormBase) and (
            module.training and (module.track_running_stats or isinstance(module, nn.modules.batchnorm._BatchNorm))
        ):
            why = "normalises by the batch and writes into its statistics"
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            why = "normalises by the batch in every mode"
        elif module.training and (
            (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
            or isinstance(module, nn.RReLU)
            or (isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0)
        ):
            why = "draws at random"
        if why is not None:
            raise InvalidArgumentError(
                f"{described(module)} inside of a residual branch {why}, so that the branch is no function of one "
                "sample, with one inverse and one log-determinant. Put it into evaluation mode (its eval(), after "
                "every train() of the model), or use LayerNorm, GroupNorm or an ActNorm between the blocks."
            )
    return net


def convolution_options(module: nn.Module) -> dict[str, Any] | None:
    """Return the keywords of the core's Convolution for a convolution module; None for a dense layer.

    Those of a transposed convolution have its output padding, and are for `ConvolutionTranspose.for_input`.

    Raises
    ------
    InvalidArgumentError
        For a padding that is neither of zeros nor circular.
    """
    if not isinstance(module, _CONVOLUTIONS):
        return None
    if module.padding_mode not in ("zeros", "circular"):
        raise InvalidArgumentError(
            f"{described(module)}: padding_mode must be 'zeros' or 'circular', got {module.padding_mode!r}."
        )
    padding = module.padding if isinstance(module.padding, str) else [(p, p) for p in module.padding]
    if padding == "same":  # PyTorch puts the odd row after, and so does the core
        padding = [((d * (k - 1)) // 2, d * (k - 1) - (d * (k - 1)) // 2) for k, d in _windows(module)]
    elif padding == "valid":
        padding = [(0, 0)] * len(module.kernel_size)
    return {
        **({"output_padding": tuple(module.output_padding)} if isinstance(module, _TRANSPOSED) else {}),
        "stride": tuple(module.stride),
        "padding": padding,
        "dilation": tuple(module.dilation),
        "groups": module.groups,
        "padding_mode": module.padding_mode,
    }


def _windows(module: Any) -> Iterator[tuple[int, int]]:
    return zip(module.kernel_size, module.dilation, strict=True)


def output_shape(module: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one sample after a layer.

    Raises
    ------
    ShapeError
        If the layer does not take samples of this shape.
    """
    if isinstance(module, Step):
        return module.output_shape(shape)
    options = convolution_options(module)
    if options is None and not isinstance(module, nn.Linear):
        return shape
    channels: int = module.in_features if isinstance(module, nn.Linear) else module.in_channels  # type: ignore[assignment]
    axes = 0 if options is None else len(module.kernel_size)  # type: ignore[arg-type]
    if len(shape) != axes + 1 or shape[0] != channels:
        taken = f"({channels}, {', '.join(['n'] * axes)})" if axes else f"({channels},)"
        raise ShapeError(f"{described(module)} does not take samples of shape {shape}, but of shape {taken}.")
    if options is None:
        return (module.out_features,)  # type: ignore[return-value]
    more = options.get("output_padding", (0,) * axes)
    extents = (
        (n - 1) * s - sum(pair) + d * (k - 1) + 1 + extra
        if isinstance(module, _TRANSPOSED)
        else (n + sum(pair) - d * (k - 1) - 1) // s + 1
        for n, s, pair, extra, (k, d) in zip(
            shape[1:], options["stride"], options["padding"], more, _windows(module), strict=True
        )
    )
    out = (module.out_channels, *extents)
    if min(out[1:]) < 1:  # type: ignore[type-var,operator]
        raise ShapeError(f"the window of {described(module)} is larger than its padded input of shape {shape}.")
    return out  # type: ignore[return-value]
