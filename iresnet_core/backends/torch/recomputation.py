"""Functions that are evaluated once more on the way back, by PyTorch's checkpoints, and pullbacks inside of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from iresnet_core.backends.base import Array, Pullback
from iresnet_core.backends.torch.compilation import inside_functorch
from iresnet_core.backends.torch.precision import in_same_precision, saving_hooks

__all__ = ["pullback", "pulled_back", "recomputed"]


def recomputed(fn: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    """Return ``fn(*arrays)``, of which a backward pass keeps the arrays; as it is where no such pass is recorded.

    The transforms of torch.func do not take the hooks that checkpoints are made of.
    """
    transformed = not torch.compiler.is_compiling() and (inside_functorch() or forward_ad._current_level >= 0)
    if transformed or not torch.is_grad_enabled():
        return fn(*arrays)
    return checkpoint(in_same_precision(fn), *arrays, use_reentrant=False, preserve_rng_state=False)


def pullback(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Pullback]:
    """Return ``fn(x)`` and the map u -> J^T u; see `Backend.vjp`."""
    if torch.compiler.is_compiling() or inside_functorch() or torch.is_inference_mode_enabled():
        value, pullback, *_ = torch.func.vjp(fn, x)
        return value, lambda u: pullback(u)[0]
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if recorded and x.requires_grad else x.detach().requires_grad_()
        value = fn(point)
    constant = point, value
    if recorded and saving_hooks() is not None:
        constant = _kept_graph(fn, x)

    def product(u: Array) -> Array:
        if not value.requires_grad:
            return torch.zeros_like(x)
        source, image = (point, value) if torch.is_grad_enabled() else constant
        (out,) = torch.autograd.grad(
            image, source, u, retain_graph=True, create_graph=torch.is_grad_enabled(), materialize_grads=True
        )
        return out

    return value if recorded else value.detach(), product


def pulled_back(
    fn: Callable[..., tuple[Array, ...]],
    points: Sequence[Array],
    others: Sequence[Array],
    cotangents: Sequence[Array],
) -> tuple[tuple[Array, ...], list[Array]]:
    """Return ``fn(*points)`` and the cotangents of points and of others; see `DerivativesByHand.pulled_back`.

    The others may belong to a graph from which they come, of which nothing is freed.
    """
    with torch.enable_grad():
        own = [point.detach().requires_grad_() for point in points]
        outputs = fn(*own)
        reached = [(out, cotangent) for out, cotangent in zip(outputs, cotangents, strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in reached],
            [*own, *others],
            [cotangent for _, cotangent in reached],
            retain_graph=bool(others),
            allow_unused=True,
            materialize_grads=True,
        )
    return tuple(out.detach() for out in outputs), list(found)


def _kept_graph(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """Return a leaf with the values of x and `fn` of it, for derivatives inside of a checkpoint.

    That keeps nothing of what is recorded in it, and would evaluate all anew for each of them.
    """
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged):
        point = x.detach().requires_grad_()
        return point, fn(point)


def _unchanged(x: Array) -> Array:
    return x
