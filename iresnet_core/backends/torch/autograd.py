"""PyTorch operations with a backward pass of their own."""

from collections.abc import Callable
from typing import Any

import torch

from iresnet_core.backends.base import NO_FORWARD_MODE, Array
from iresnet_core.backends.torch.precision import (
    as_lowered,
    certified_precision,
    full_precision,
    has_lowered_products,
    own_dtype,
)
from iresnet_core.errors import DerivativeError

__all__ = ["BilinearForm", "ByHand", "Entrywise", "MapCotangent", "MapCotangentInReverse", "ScaledProduct"]


class _Refused(torch.autograd.Function):
    """The first argument, which depends on the others in a way that is not differentiable here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Array, *sources: Array) -> Array:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        raise DerivativeError(
            "a second derivative through the implicit gradient of an inverse was asked for; it would lack the "
            "derivative of the solution itself. Differentiate once, or differentiate the iteration yourself."
        )


class MapCotangent(torch.autograd.Function):
    """Identity whose backward pass applies a function to the cotangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Array, fn: Callable[[Array], Array]) -> Array:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.fn = inputs[1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        (x,) = ctx.saved_tensors
        (cotangent,) = cotangents
        with torch.no_grad(), certified_precision():
            mapped = ctx.fn(cotangent)
        return (_Refused.apply(mapped, x, cotangent) if torch.is_grad_enabled() else mapped), None  # type: ignore[no-untyped-call]


class MapCotangentInReverse(MapCotangent):
    """The same, refusing forward mode in words of ours; torch.compile takes no function that has a `jvp`."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise DerivativeError(NO_FORWARD_MODE)


class Entrywise(torch.autograd.Function):
    """A function that acts on every entry and its slope, with one hand-written pass back through both."""

    @staticmethod
    def forward(ctx: Any, x: Array, both: Callable[..., Any], bend: Callable[..., Array]) -> tuple[Array, Array]:
        value, slope, *more = both(x)
        ctx.save_for_backward(x, value, slope, *more)
        ctx.both, ctx.bend = both, bend
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        x, *known = ctx.saved_tensors
        of_value, of_slope = cotangents
        with own_dtype(x):
            if torch.is_grad_enabled():  # a second derivative will be asked for, and what was saved does not carry it
                known = list(ctx.both(x))
            total = None if of_value is None else of_value * known[1]
            if of_slope is not None:
                bend = ctx.bend(x, *known)
                total = of_slope * bend if total is None else torch.addcmul(total, of_slope, bend)
        return total, None, None


class ByHand(torch.autograd.Function):
    """A function whose first derivative was written by hand."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, plainly: Any, *arrays: Any) -> tuple[Array, ...]:
        outputs, kept = forward(*arrays)
        ctx.save_for_backward(*arrays, *kept)
        ctx.backward_by_hand, ctx.plainly, ctx.count = backward, plainly, len(arrays)
        ctx.kinds = [(tuple(a.shape), a.dtype, a.device) for a in outputs]
        ctx.set_materialize_grads(False)  # a second derivative of one output has nothing to do with the other
        ctx.lowered = has_lowered_products()  # then the products of the way back are those of the program around, too
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        saved = ctx.saved_tensors
        arrays, kept, needed = saved[: ctx.count], saved[ctx.count :], ctx.needs_input_grad[3:]
        with as_lowered(ctx.lowered), full_precision():
            if torch.is_grad_enabled():
                return None, None, None, *_differentiated(ctx.plainly, arrays, kept, cotangents, needed)
            full = [
                torch.zeros(shape, dtype=dtype, device=device) if cotangent is None else cotangent
                for cotangent, (shape, dtype, device) in zip(cotangents, ctx.kinds, strict=True)
            ]
            return None, None, None, *ctx.backward_by_hand(arrays, kept, full, needed)


def _differentiated(plainly: Any, arrays: Any, kept: Any, cotangents: Any, needed: Any) -> list[Any]:
    """Cotangents of the arrays with a graph of their own; None for those that are not needed.

    The arrays may hang together, as samples and a weight that the layers before share, or be the same tensor twice:
    the derivative is taken by an alias of each, beyond which it does not go.
    """
    aliases: list[Any] = [None if array is None else array.view_as(array) for array in arrays]
    pairs = zip(plainly(aliases, kept), cotangents, strict=True)
    reached = [(out, cotangent) for out, cotangent in pairs if cotangent is not None and out.requires_grad]
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    found: Any = [torch.zeros_like(alias) for alias in wanted]
    if reached:
        found = torch.autograd.grad(
            [out for out, _ in reached],
            wanted,
            [cotangent for _, cotangent in reached],
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    left = iter(found)
    return [next(left) if need else None for need in needed]


class ScaledProduct(torch.autograd.Function):
    """(scale * v) W^T, whose first factor is made again on the way back: memory costs more than a multiplication."""

    @staticmethod
    def forward(ctx: Any, v: Array, scale: Array, weight: Array) -> Array:
        ctx.save_for_backward(v, scale, weight)
        with own_dtype(v):
            return torch.nn.functional.linear(scale * v, weight)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        v, scale, weight = ctx.saved_tensors
        (of_product,) = cotangents
        of_v, of_scale, of_weight = ctx.needs_input_grad
        width_in, width_out = weight.shape[1], weight.shape[0]
        with own_dtype(v):
            inner = of_product @ weight
            return (
                (scale * inner).sum_to_size(v.shape) if of_v else None,
                (inner * v).sum_to_size(scale.shape) if of_scale else None,
                of_product.reshape(-1, width_out).T @ (scale * v).reshape(-1, width_in) if of_weight else None,
            )


class BilinearForm(torch.autograd.Function):
    """left^T A right, which keeps the vectors, not their product."""

    @staticmethod
    def forward(ctx: Any, left: Array, matrix: Array, right: Array) -> Array:
        ctx.save_for_backward(left, right)
        with own_dtype(left):
            return (left[..., None, :] @ (matrix @ right[..., :, None]))[..., 0, 0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        left, right = ctx.saved_tensors
        return None, (cotangents[0][..., None] * left)[..., :, None] * right[..., None, :], None
