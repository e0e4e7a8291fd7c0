"""The derivative of a trace of convolutions by slopes and weights, which makes the kernels of the trace again.

These kernels, functions of the weights, have a matrix of channels by channels for every box of positions. Kept for the
way back, they would be larger than all else that a block keeps where it has many channels on a small image: of sixteen
blocks with 256 channels on 48 x 8 x 8 images a step would take 1.7 times as much memory.
"""

from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.branches.chain_jacobian import ChainJacobian
from iresnet_core.branches.dense_traces import SlopeTrace
from iresnet_core.branches.slopes import Diagonal
from iresnet_core.operators import LinearLayer

__all__ = ["recorded_trace"]


def recorded_trace(
    backend: Backend, jacobian: ChainJacobian, known: Array, means: Sequence[Array] | None
) -> SlopeTrace:
    """Return a trace whose value is known, with its derivative by the slopes and weights of a Jacobian.

    Parameters
    ----------
    backend : Backend
        One that takes derivatives by hand, see `Backend.with_derivative_by_hand`.
    jacobian : ChainJacobian
        Of convolutions, or of dense layers with three groups of slopes or more.
    known : array (batch,)
        The value, without derivative.
    means : sequence of array (channels,), optional
        Means of the slopes, if `known` is the expanded trace about them; else it is the trace of the whole Jacobian.
    """
    chain = jacobian.chain
    slopes = [j.slope for j in jacobian.jacobians if isinstance(j, Diagonal)]
    weights = [j.weight for j in jacobian.jacobians if isinstance(j, LinearLayer)]
    count = len(slopes)
    forward = (backend.xp.asarray(known, copy=True),), ()  # the caller may add to `known` in place

    # This function is kept for the way back. It closes over no slopes, which a checkpoint is to give up.
    def value(arrays: Sequence[Array]) -> Array:
        given, own = iter(arrays[:count]), iter(arrays[count:])
        jacobians: Any = tuple(
            layer.with_parameters(next(own), None) if isinstance(layer, LinearLayer) else Diagonal(next(given))
            for layer in chain.layers
        )
        here = ChainJacobian(chain, jacobians, arrays[0])
        return here.trace(here.convolution_kernels()) if means is None else here.expanded_trace(means).value

    def backward(arrays: Any, kept: Any, cotangents: Any, needed: Any) -> list[Any]:
        def of_points(*points: Array) -> tuple[Array]:
            left = iter(points)
            return (value([next(left) if need else array for array, need in zip(arrays, needed, strict=True)]),)

        points = [array for array, need in zip(arrays, needed, strict=True) if need]
        found = iter(backend.pulled_back(of_points, points, (), cotangents)[1])
        return [next(found) if need else None for need in needed]

    (trace,) = backend.with_derivative_by_hand(
        lambda *_: forward, backward, lambda arrays, _: (value(arrays),), (*slopes, *weights)
    )
    return SlopeTrace(trace, None if means is None else jacobian.expanded_remainder(means))
