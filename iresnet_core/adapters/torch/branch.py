"""What a residual branch may be made of in PyTorch, and the core's layers for it."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from iresnet_core.backends import backend
from iresnet_core.branches import Activation as CoreActivation
from iresnet_core.errors import InvalidArgumentError, ShapeError, UnknownLipschitzError

__all__ = ["Activation", "convolution_options", "described", "linear_layers", "output_shape", "steps_of"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Activation(nn.Module):
    """An activation of the core, by name: those that PyTorch lacks are "lipswish", "sin" and "maxmin".

    Parameters
    ----------
    name : str
        See `iresnet_core.Activation`.
    **parameters
        As there.

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
    if isinstance(module, Activation):
        return module.core
    if type(module) in _ACTIVATIONS:
        name, parameters = _ACTIVATIONS[type(module)]
        values = backend("torch").as_program_constants(*(getattr(module, key) for key in parameters))
        return CoreActivation(name, **dict(zip(parameters, values, strict=True)))
    if type(module) is nn.Softplus:
        if module.beta != 1:
            raise UnknownLipschitzError(
                f"{described(module)}: softplus is known with beta = 1 only, got {module.beta:g}."
            )
        return CoreActivation("softplus", beta=1.0)
    return None


_ACTIVATIONS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.ELU: ("elu", ("alpha",)),
    nn.CELU: ("celu", ("alpha",)),
    nn.ReLU: ("relu", ()),
    nn.Tanh: ("tanh", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Identity: ("identity", ()),
}


def described(module: nn.Module) -> str:
    """Return a module in one line, without what parametrisations add."""
    if isinstance(module, nn.Sequential):
        return f"Sequential({', '.join(map(described, module))})"
    return f"{type(module).__name__.removeprefix('Parametrized')}({module.extra_repr()})"


def _is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer that the core certifies."""
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _layers(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of nested Sequentials, in the order of application."""
    if isinstance(net, nn.Sequential):
        for child in net:
            yield from _layers(child)
    else:
        yield net


def steps_of(net: nn.Module) -> list[Any]:
    """Return the steps of a branch, in the order of application: linear modules, and activations of the core.

    Raises
    ------
    UnknownLipschitzError
        At a layer whose Lipschitz constant is not known.
    """
    steps: list[Any] = []
    for layer in _layers(net):
        step = layer if _is_linear(layer) else _activation_of(layer)
        if step is None:
            known = ", ".join(kind.__name__ for kind in (nn.Linear, *_CONVOLUTIONS, *_ACTIVATIONS, nn.Softplus))
            raise UnknownLipschitzError(
                f"the Lipschitz constant of {type(layer).__name__} is not known, so that no block with it can be "
                f"certified. Known are {known}, Activation(name) and Sequential of them. For a module whose constant "
                "you know pass InvertibleResidual(module, lipschitz=...)."
            )
        steps.append(step)
    return steps


def linear_layers(steps: list[Any]) -> list[Any]:
    """Return the linear modules among the steps."""
    return [step for step in steps if not isinstance(step, CoreActivation)]


def convolution_options(module: nn.Module) -> dict[str, Any] | None:
    """Return the keywords of the core's Convolution for a convolution module; None for a dense layer.

    Raises
    ------
    ShapeError
        For a stride, which changes the shape inside a block.
    InvalidArgumentError
        For a padding that is neither of zeros nor circular.
    """
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    if any(s != 1 for s in module.stride):
        raise ShapeError(
            f"{described(module)}: a convolution in a residual block has stride 1, since the block keeps the shape. "
            "Change the resolution with Squeeze() between the blocks."
        )
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
        "padding": padding,
        "dilation": tuple(module.dilation),
        "groups": module.groups,
        "padding_mode": module.padding_mode,
    }


def _windows(module: Any) -> Iterator[tuple[int, int]]:
    return zip(module.kernel_size, module.dilation, strict=True)


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one sample after a layer.

    Raises
    ------
    ShapeError
        If the layer does not take samples of this shape.
    """
    options = convolution_options(module)
    if options is None and not _is_linear(module):
        return shape
    channels: int = module.in_features if isinstance(module, nn.Linear) else module.in_channels  # type: ignore[assignment]
    axes = 0 if options is None else len(module.kernel_size)  # type: ignore[arg-type]
    if len(shape) != axes + 1 or shape[0] != channels:
        taken = f"({channels}, {', '.join(['n'] * axes)})" if axes else f"({channels},)"
        raise ShapeError(f"{described(module)} does not take samples of shape {shape}, but of shape {taken}.")
    if options is None:
        return (module.out_features,)  # type: ignore[return-value]
    extents = (
        n + sum(pair) - d * (k - 1)
        for n, pair, (k, d) in zip(shape[1:], options["padding"], _windows(module), strict=True)
    )
    out = (module.out_channels, *extents)
    if min(out[1:]) < 1:  # type: ignore[type-var,operator]
        raise ShapeError(f"the window of {described(module)} is larger than its padded input of shape {shape}.")
    return out  # type: ignore[return-value]
