"""How far rounding moves the value of a chain: a running error analysis, layer by layer.

Higham's gamma (2002, Lemma 3.1) bounds the error of an inner product for every order of summation. The activations are
taken to be accurate to four units in the last place.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.common import gamma, safe_sample_norms, unit_roundoff
from iresnet_core.operators import Convolution, ConvolutionTranspose, LinearLayer

__all__ = ["RoundingScale", "rounding_scales", "value_with_rounding"]


class RoundingScale(NamedTuple):
    """What the rounding error of a linear layer depends on, apart from its input.

    Attributes
    ----------
    terms : int
        Number of products in one inner product.
    absolute_norm : float or array ()
        Bound on the norm of the operator of absolute values; an array where a compiler is at work on the weights.
    bias_norm : float or array ()
        Norm of the bias of all positions.
    """

    terms: int
    absolute_norm: Any
    bias_norm: Any


def rounding_scales(layers: Sequence[Any]) -> tuple[RoundingScale | None, ...]:
    """Return the scale of every linear layer, and None for the others."""
    linear = (layer if isinstance(layer, LinearLayer) else getattr(layer, "linear", None) for layer in layers)
    return tuple(None if layer is None else _scale(layer) for layer in linear)


def value_with_rounding(layers: Sequence[Any], scales: Sequence[RoundingScale | None], x: Array) -> tuple[Array, Array]:
    """Return g(x) and a bound (batch,), without derivative, on the rounding error ||fl(g(x)) - g(x)||."""
    backend = get_backend(x)
    xp = backend.xp
    u = unit_roundoff(backend, x.dtype)
    error = xp.zeros((x.shape[0],), dtype=x.dtype, device=device_of(x))
    for layer, scale in zip(layers, scales, strict=True):
        if scale is None and isinstance(layer, BranchLayer):
            x, own = layer.with_rounding(x)
            error = error * layer.lipschitz + own
            continue
        size = safe_sample_norms(xp, backend.stop_gradient(x))
        x = layer(x)
        if scale is not None:
            absolute_norm, bias_norm = (
                value if isinstance(value, float) else xp.astype(value, x.dtype) for value in scale[1:]
            )
            # The norm may be unknown where a compiler is at work; the norm of the absolute values is a bound on it.
            norm = layer.lipschitz if layer.has_constant else absolute_norm
            error = error * norm + gamma(scale.terms + 2, u) * (absolute_norm * (size + error) + bias_norm)
        else:
            # Sigmoid and lipswish cancel where they are small, so that the input counts as well as the output.
            both = layer.lipschitz * size + safe_sample_norms(xp, backend.stop_gradient(x))
            error = error * layer.lipschitz + 8 * u * both
    return x, error


def _scale(layer: LinearLayer) -> RoundingScale:
    xp = layer.backend.xp
    if isinstance(layer, ConvolutionTranspose):  # the absolute values of the transpose
        convolution = _scale(layer.convolution)
        terms, repeats = layer.weight.shape[0 if layer.data_format == "channels_first" else -1], 1
        terms = terms // layer.groups * math.prod(layer.window)
        repeats = math.prod(layer.output_shape) // layer.output_shape[layer.channel_axis]
        bias = 0.0 if layer.bias is None else math.sqrt(repeats) * _frobenius(layer.backend, layer.bias)
        return RoundingScale(terms, convolution.absolute_norm, bias)
    if isinstance(layer, Convolution):
        kernel = xp.reshape(layer.standard_kernel, (*layer.standard_kernel.shape[:2], math.prod(layer.window)))
        # Young's inequality: the norm is at most the sum of the taps' Frobenius norms.
        absolute = sum(_frobenius(layer.backend, kernel[:, :, tap]) for tap in range(kernel.shape[2]))
        absolute = absolute * (1 + kernel.shape[2] * 2.0**-52)
        terms = kernel.shape[1] * kernel.shape[2]
        repeats = math.prod(layer.out_spatial)
    else:
        absolute = _frobenius(layer.backend, layer.weight)
        terms, repeats = layer.shape[1], 1
    bias = 0.0 if layer.bias is None else math.sqrt(repeats) * _frobenius(layer.backend, layer.bias)
    return RoundingScale(terms, absolute, bias)


def _frobenius(backend: Backend, a: Array) -> Any:
    """Root of the sum of squares, in float64 and in units of the largest entry, without derivative.

    It is a number, or an array () for weights that are computed in a program that is being compiled.
    """
    xp = backend.xp
    flat = xp.reshape(xp.astype(backend.stop_gradient(a), xp.float64), (1, math.prod(a.shape)))
    norm = safe_sample_norms(xp, flat)[0]
    return norm if backend.is_tracing(norm) else float(norm)
