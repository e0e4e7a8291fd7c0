"""The widths of networks, chosen for a given number of parameters."""

from collections.abc import Callable

from torch import nn

__all__ = ["parameter_count", "width_for"]

_WIDEST = 4096


def parameter_count(module: nn.Module) -> int:
    """Return how many numbers are trained; weights that a mask sets to zero do not count."""
    total = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    for part in module.modules():
        mask, weight = getattr(part, "mask", None), getattr(part, "weight", None)
        if mask is not None and weight is not None and mask.shape == weight.shape:
            total -= int((mask == 0).sum())
    return total


def width_for(build: Callable[[int], nn.Module], parameters: int | None, default: int) -> int:
    """Return the width whose module has the number of parameters that comes nearest; `default` where none is asked for.

    The count must grow with the width. The search doubles, then halves the interval, so that a few modules are built.
    """
    if parameters is None:
        return default
    low, high = 1, 2
    while high < _WIDEST and parameter_count(build(high)) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if parameter_count(build(middle)) < parameters:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda width: abs(parameter_count(build(width)) - parameters))
