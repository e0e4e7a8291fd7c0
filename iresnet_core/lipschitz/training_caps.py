"""Weights kept below a cap while they are trained, and certified when they are used.

While weights change with every step, a warm-started block power iteration tells their norm (`scaled_by_estimate`). It
approaches the norm from below, so that the cap may be exceeded by a little. When the weights are used, their norm is
certified (`certificate`, `scaled_by_certificate`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.common import require_nonnegative, round_up, widest, working_dtype
from iresnet_core.errors import NotContractiveError
from iresnet_core.lipschitz.bounds import lipschitz_bound
from iresnet_core.lipschitz.normalization import cap_share, normalize, scaled_within
from iresnet_core.lipschitz.power_iteration import first_basis, refine_basis
from iresnet_core.lipschitz.symbol import certified_bound
from iresnet_core.operators import Dense, LinearLayer, Matrices, Transposed, detached_operator
from iresnet_core.results import LipschitzBound

__all__ = [
    "Certificate",
    "any_size_bound",
    "basis_shape",
    "capped_constant",
    "certificate",
    "layer_cap",
    "scaled_by_certificate",
    "scaled_by_declaration",
    "scaled_by_estimate",
    "scaled_by_estimate_stack",
    "scaled_for_any_size",
    "scaled_to_cap",
    "training_constant",
]


# Vectors of the block: the leading singular values of trained weights lie close together, pressed against the cap.
BASIS_SIZE = 8
# Steps (powers in the Krylov space) from a start that knows nothing.
FIRST_STEPS = 16


class Certificate(NamedTuple):
    """A certified bound on the norm of a layer, and its derivative where somebody may ask for that.

    Attributes
    ----------
    bound : array ()
        At least the norm, in the dtype of the weight.
    direction : array or None
        Of the weight's shape and dtype: its inner product with the weight is the norm that was bounded.
    """

    bound: Array
    direction: Array | None


def layer_cap(layers: Sequence[Any], coeff: float, *, per_layer: bool = False) -> float:
    """Cap on each linear layer of a branch whose Lipschitz constant is to be at most `coeff`.

    Parameters
    ----------
    layers : sequence
        The layers; those that have a constant `lipschitz`, the activations, count with it, the others are linear.
    coeff : float
        In (0, 1).
    per_layer : bool
        Cap every layer at `coeff` instead of its share ``(coeff / product of the activations' constants)^(1 / L)``: the
        reading of Behrmann et al. (2019), with L layers a block then has coeff^L.

    Raises
    ------
    NotContractiveError
        If `coeff` is not below 1.
    """
    coeff = require_nonnegative(coeff, "coeff")
    if not 0 < coeff < 1:
        raise NotContractiveError(f"coeff must lie between 0 and 1 for the block to be invertible, got {coeff:g}.")
    if per_layer:
        return coeff
    return cap_share(layers, coeff)


def capped_constant(layers: Sequence[Any], cap: float) -> float:
    """Lipschitz constant of a branch with L capped linear layers: cap^L times those of its activations."""
    known = [layer.lipschitz for layer in layers if hasattr(layer, "lipschitz")]
    return float(cap ** (len(layers) - len(known)) * math.prod(known))


def scaled_by_declaration(
    branch: Callable[[Array], Array], declared: float, coeff: float
) -> tuple[Callable[[Array], Array], float]:
    """Return a branch whose constant is declared, scaled by min(1, coeff / declared), and the constant it then has."""
    constant = min(declared, coeff)
    if declared <= coeff:
        return branch, constant
    scale = coeff / declared
    return lambda x: scale * branch(x), constant


def training_constant(constant: float) -> float:
    """Lipschitz constant on which a block with `constant` relies while its weights are trained.

    It lies half-way to 1, because `scaled_by_estimate` takes norms that are a little too small: a block may exceed its
    constant by that much without harm to the inverse and the log-determinant.
    """
    return 0.5 * (1 + constant)


def scaled_by_estimate(
    layer: LinearLayer, cap: float, basis: Array | None, *, steps: int = 2
) -> tuple[LinearLayer, Array]:
    """Scale a layer by its estimated norm, for use while its weights are trained.

    Parameters
    ----------
    layer : Dense or Convolution
        With the free weights.
    cap : float
        What the estimate of the scaled layer's norm is at most.
    basis : array (k, m), optional
        What the last call returned; None begins from fixed pseudo-random vectors and takes more steps.
    steps : int
        Steps of a block power iteration with `BASIS_SIZE` vectors; two products of the block each.

    Returns
    -------
    layer : LinearLayer
        With weights ``W min(1, cap / sigma)``, differentiable through sigma = left^T W right, and the cap as its
        constant, which its norm may exceed by what the estimate lacks.
    basis : array (k, m)
        For the next call, in at least float32; its shape is `basis_shape`.
    """
    backend, xp = layer.backend, layer.backend.xp
    raised = layer.astype(working_dtype(backend, layer.weight.dtype))
    with backend.no_grad(), backend.full_precision():
        detached = detached_operator(raised)
        if _is_tall(layer):
            detached = Transposed(detached)
        if basis is None:
            basis, steps = first_basis(detached, BASIS_SIZE), FIRST_STEPS
        left, right, basis = (backend.stop_gradient(a) for a in refine_basis(detached, basis, steps))
        if _is_tall(layer):
            left, right = right, left
    sigma = xp.sum(left * raised.matvec(right), axis=-1)
    weight = scaled_within(xp, layer.weight, sigma, xp.full_like(sigma, cap))
    return layer.with_parameters(weight, layer.bias).capped(cap), basis


def scaled_by_estimate_stack(
    layers: Sequence[LinearLayer], caps: Sequence[float], bases: Sequence[Array | None], *, steps: int = 2
) -> list[tuple[LinearLayer, Array]]:
    """Scale many layers as `scaled_by_estimate` does, those of one shape, transposed or not, and dtype side by side.

    One stack of thirty small matrices costs little more than a single one; convolutions, and layers without a basis,
    are treated one by one.
    """
    out: list[Any] = [None] * len(layers)
    groups: dict[Any, list[int]] = {}
    for index, (layer, basis) in enumerate(zip(layers, bases, strict=True)):
        plain = isinstance(layer, Dense) and basis is not None
        kind = (tuple(sorted(layer.shape)), layer.weight.dtype) if plain else index
        groups.setdefault(kind, []).append(index)
    for members in groups.values():
        if len(members) == 1:
            (index,) = members
            out[index] = scaled_by_estimate(layers[index], caps[index], bases[index], steps=steps)
        else:
            found = _scaled_stack(
                [layers[i] for i in members], [caps[i] for i in members], [bases[i] for i in members], steps
            )
            for index, result in zip(members, found, strict=True):
                out[index] = result
    return out


def _scaled_stack(
    layers: list[LinearLayer], caps: list[float], bases: list[Any], steps: int
) -> list[tuple[LinearLayer, Array]]:
    backend, xp = layers[0].backend, layers[0].backend.xp
    dtype = layers[0].weight.dtype
    tall = [_is_tall(layer) for layer in layers]

    def turned(matrices: Sequence[Array]) -> list[Array]:
        return [xp.matrix_transpose(m) if turn else m for m, turn in zip(matrices, tall, strict=True)]

    weights = xp.stack(turned([layer.weight for layer in layers]))
    raised = Matrices(xp.astype(weights, working_dtype(backend, dtype), copy=False), checked=True)
    with backend.no_grad(), backend.full_precision():
        detached = Matrices(backend.stop_gradient(raised.array), checked=True)
        left, right, basis = (backend.stop_gradient(a) for a in refine_basis(detached, xp.stack(bases), steps))
    sigma = backend.bilinear_form(left, raised.array, right)
    limits = xp.asarray(caps, dtype=sigma.dtype, device=device_of(sigma))
    scaled = turned(xp.unstack(scaled_within(xp, weights, sigma, limits)))
    return [
        (layer.with_parameters(weight, layer.bias).capped(cap), own)
        for layer, weight, cap, own in zip(layers, scaled, caps, xp.unstack(basis), strict=True)
    ]


def _is_tall(layer: LinearLayer) -> bool:
    """Whether the basis of a layer is one of its right singular vectors, which are the shorter ones."""
    return isinstance(layer, Dense) and layer.shape[0] > layer.shape[1]


def basis_shape(layer: LinearLayer) -> tuple[int, int]:
    """Return the shape (k, m) of the basis that `scaled_by_estimate` keeps."""
    return min(BASIS_SIZE, *layer.shape), layer.shape[1 if _is_tall(layer) else 0]


def certificate(layer: LinearLayer, *, derivative: bool | None = None) -> Certificate:
    """Certify the norm of a Dense or Convolution; the same number eagerly and in compiled programs, to rounding.

    It takes a fixed number of matrix products in float64 and looks at no value. Its direction is computed only with
    `derivative`, by default where the weight may be differentiated by.

    Notes
    -----
    Dense, and convolutions with one tap: Gram iteration (`gram_bound`) with 12 norms, 2 n^3 operations each for the
    smaller extent n; within log(n) / 2^13 of the norm. Other convolutions: the norm on the torus, by the symbol
    (Fourier transform of the kernel), whose frequencies are ranked first; for images with more than 31 (k - 1) points
    along an axis the symbol is taken on a grid of that size, which may lose 0.13 % an axis.
    """
    backend = layer.backend
    derivative = backend.may_differentiate(layer.weight) if derivative is None else derivative
    with backend.no_grad(), backend.full_precision():
        detached = layer.with_parameters(backend.stop_gradient(layer.weight), None)
        bound, direction = certified_bound(detached, derivative=derivative)
        bound = round_up(backend, bound, layer.weight.dtype)
        if direction is not None:
            direction = backend.xp.astype(direction, layer.weight.dtype)
    return Certificate(bound, direction)


def scaled_by_certificate(layer: LinearLayer, cap: float, known: Certificate) -> LinearLayer:
    """Scale a layer by a certificate of its weights, so that its norm is at most `cap`, rounding included.

    The derivative of the bound is that of the norm, scaled to the bound; without a direction it is a constant.
    """
    backend, xp = layer.backend, layer.backend.xp
    bound = known.bound
    if known.direction is not None and backend.may_differentiate(layer.weight):
        sigma = xp.sum(known.direction * layer.weight)
        value = backend.stop_gradient(sigma)
        positive = value > 0
        bound = xp.where(positive, bound * (sigma / xp.where(positive, value, xp.ones_like(value))), bound)
    return normalize(layer, cap, bound=LipschitzBound(bound, "certified", "cached"))  # type: ignore[no-any-return]


def scaled_to_cap(weight: Array, cap: float, bound: Array) -> Array:
    """Scale a weight with values, up or down, so that its certified bound becomes the cap; zeros stay."""
    value = float(bound)
    return weight * (cap / value) if value > 0 else weight


def any_size_bound(backend: Any, kernel: Array) -> Array:
    """Bound the norm of a convolution for images of every size by the sum of the norms of its taps' matrices.

    This is Young's inequality, for a kernel (out, in / groups, *window) before the size of the images is known.
    """
    xp = backend.xp
    taps = xp.reshape(kernel, (*kernel.shape[:2], math.prod(kernel.shape[2:])))
    with backend.no_grad(), backend.full_precision():
        bounds = [lipschitz_bound(backend.stop_gradient(taps[:, :, i])).value for i in range(taps.shape[2])]
        total = xp.sum(xp.stack([xp.astype(b, widest(backend)) for b in bounds]))
        return round_up(backend, total * (1 + 2.0**-40), kernel.dtype)


def scaled_for_any_size(kernel: Array, cap: float) -> Array:
    """Scale the kernel of a convolution so that its norm is at most `cap` for images of every size."""
    backend, xp = get_backend(kernel), get_backend(kernel).xp
    with backend.full_precision():
        bound = xp.astype(any_size_bound(backend, kernel), widest(backend))
        # The margin is for the rounding of the scaled kernel.
        return scaled_within(xp, kernel, bound, xp.full_like(bound, cap * (1 - 1e-6)))
