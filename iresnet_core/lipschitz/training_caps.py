"""Weights kept below a cap while they are trained, and certified when they are used.

When weights are used, their norm is certified (`certificate`, `scaled_by_certificate`), and that of a convolution while
it is trained as well. While matrices change with every step, those of dense layers and of convolutions with one tap, a
warm-started block power iteration tells their norm at a fraction of the cost (`scaled_in_training`). It approaches the
norm from below, so that the cap may be exceeded by a little.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.common import require_nonnegative, round_up, widest, working_dtype
from iresnet_core.errors import NotContractiveError
from iresnet_core.lipschitz.bounds import lipschitz_bound
from iresnet_core.lipschitz.normalization import cap_share, normalize, scaled_within
from iresnet_core.lipschitz.power_iteration import first_basis, refine_basis
from iresnet_core.lipschitz.scaling import power_of_two_near
from iresnet_core.lipschitz.symbol import Certificate, certified_bounds
from iresnet_core.operators import Convolution, ConvolutionTranspose, Dense, LinearLayer
from iresnet_core.results import LipschitzBound

__all__ = [
    "Certificate",
    "any_size_bound",
    "basis_shape",
    "capped_constant",
    "certificate",
    "certificates",
    "layer_cap",
    "scaled_by_certificate",
    "scaled_by_declaration",
    "scaled_for_any_size",
    "scaled_in_training",
    "scaled_to_cap",
    "training_constant",
]


# Vectors of the block: the leading singular values of trained weights lie close together, pressed against the cap.
BASIS_SIZE = 16
# Steps from a start that knows nothing; later on one per pass is enough.
FIRST_STEPS = 8


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

    It lies half-way to 1, because `scaled_in_training` takes norms of matrices that are a little too small: a block may
    exceed its constant by that much without harm to the inverse and the log-determinant.
    """
    return 0.5 * (1 + constant)


def scaled_in_training(
    layers: Sequence[LinearLayer], caps: Sequence[float], bases: Sequence[Array | None]
) -> list[tuple[LinearLayer, Array | None]]:
    """Scale layers by their norms, for use while their weights are trained.

    Parameters
    ----------
    layers : sequence of Dense or Convolution
        With the free weights.
    caps : sequence of float
        What the norms of the scaled layers are at most.
    bases : sequence of array (k, m) or None
        What the last call returned; None begins from fixed pseudo-random vectors and takes more steps.

    Returns
    -------
    list of (LinearLayer, array (k, m) or None)
        Layers with the weights ``W min(1, cap / sigma)`` and the caps as their constants. A convolution with several
        taps is scaled by its certificate, just as in evaluation, and has no basis. The norm of a matrix is estimated,
        sigma = left^T W right, and may exceed the cap by what the estimate lacks; its basis, in at least float32 and of
        the shape `basis_shape`, is for the next call. The weights can be differentiated through sigma.

    Notes
    -----
    Matrices of one shape, transposed or not, and dtype are treated side by side: a stack of thirty small ones costs
    little more than a single one. So are convolutions with few channels (`certificates`).
    """
    out: list[Any] = [None] * len(layers)
    groups: dict[Any, list[int]] = {}
    certified = []
    for index, (layer, basis) in enumerate(zip(layers, bases, strict=True)):
        matrix = _matrix(layer)
        if matrix is None:
            certified.append(index)
        else:
            kind = index if basis is None else (tuple(sorted(matrix.shape)), layer.weight.dtype)
            groups.setdefault(kind, []).append(index)
    for index, known in zip(certified, certificates([layers[i] for i in certified]), strict=True):
        out[index] = (scaled_by_certificate(layers[index], caps[index], known).capped(caps[index]), None)
    for members in groups.values():
        own = [layers[i] for i in members], [caps[i] for i in members], [bases[i] for i in members]
        for index, found in zip(members, _scaled_stack(*own), strict=True):
            out[index] = found
    return out


def _scaled_stack(layers: list[LinearLayer], caps: list[float], bases: list[Any]) -> list[tuple[LinearLayer, Array]]:
    backend, xp = layers[0].backend, layers[0].backend.xp
    weights = xp.stack([_turned(layer, _matrix(layer)) for layer in layers])
    raised = xp.astype(weights, working_dtype(backend, weights.dtype), copy=False)
    with backend.no_grad(), backend.certified_precision():
        detached, steps = backend.stop_gradient(raised), 1
        # In units in which no square of an entry over- or underflows.
        detached = detached / power_of_two_near(backend, xp.max(xp.abs(detached), axis=(-2, -1), keepdims=True))
        if bases[0] is None:  # such a layer comes alone
            bases, steps = [first_basis(detached[0, :, :], BASIS_SIZE)], FIRST_STEPS
        basis = xp.stack(bases)
        for _ in range(steps):
            left, right, basis = (backend.stop_gradient(a) for a in refine_basis(detached, basis))
    sigma = backend.bilinear_form(left, raised, right)
    limits = xp.asarray(caps, dtype=sigma.dtype, device=device_of(sigma))
    scaled = xp.unstack(scaled_within(xp, weights, sigma, limits))
    return [
        (layer.with_parameters(_as_weight(layer, _turned(layer, matrix)), layer.bias).capped(cap), own)
        for layer, matrix, cap, own in zip(layers, scaled, caps, xp.unstack(basis), strict=True)
    ]


def _matrix(layer: LinearLayer) -> Any:
    """Return the matrix (m, n) that a layer applies to its features or, a convolution with one tap, to every pixel."""
    if isinstance(layer, Dense):
        return layer.weight
    if isinstance(layer, Convolution) and math.prod(layer.window) == layer.groups == 1:
        return layer.backend.xp.reshape(layer.standard_kernel, layer.standard_kernel.shape[:2])
    return None


def _as_weight(layer: LinearLayer, matrix: Array) -> Array:
    """Return a matrix in the shape of the layer's weight."""
    turned = isinstance(layer, Convolution) and layer.data_format == "channels_last"
    xp = layer.backend.xp
    return xp.reshape(xp.matrix_transpose(matrix) if turned else matrix, tuple(layer.weight.shape))


def _is_tall(matrix: Array) -> bool:
    """Whether the basis of a matrix is one of its right singular vectors, which are the shorter ones."""
    return matrix.shape[0] > matrix.shape[1]  # type: ignore[no-any-return]


def _turned(layer: LinearLayer, matrix: Array) -> Array:
    """Transpose the matrix of a layer, there and back, if that is tall."""
    return layer.backend.xp.matrix_transpose(matrix) if _is_tall(_matrix(layer)) else matrix


def basis_shape(layer: LinearLayer) -> tuple[int, ...]:
    """Return the shape (k, m) of the basis that `scaled_in_training` keeps; (0,) where it needs none."""
    matrix = _matrix(layer)
    return (0,) if matrix is None else (min(BASIS_SIZE, *matrix.shape), min(matrix.shape))


def certificate(layer: LinearLayer, *, derivative: bool | None = None) -> Certificate:
    """Certify the norm of a Dense or Convolution; the same number eagerly and in compiled programs, to rounding.

    It takes a fixed number of matrix products in float64 and looks at no value. Its direction is computed only with
    `derivative`, by default where the weight may be differentiated by.

    Notes
    -----
    Dense, and convolutions with one tap: Gram iteration (`gram_bound`) with 12 norms, 2 n^3 operations each for the
    smaller extent n; within log(n) / 2^13 of the norm. Other convolutions: the norm on the torus, by the symbol
    (Fourier transform of the kernel), whose frequencies are ranked first; for images with more than 31 (k - 1) points
    along an axis the symbol is taken on a grid of that size, which may lose 0.13 % per axis. Beyond 32 channels, or two
    axes, it is 12 (k - 1) and 0.9 %. Where n singular values are equal at most frequencies, as for an orthogonal
    kernel, the bound is n^(1/64) of the norm, up to 16 channels n^(1/512).
    """
    return certificates([layer], derivative=derivative)[0]


def certificates(layers: Sequence[LinearLayer], *, derivative: bool | None = None) -> list[Certificate]:
    """Certify the norms of layers; those of convolutions of one shape with few channels side by side.

    See `certificate`. The layers are arrays of one framework.
    """
    found: list[Any] = [None] * len(layers)
    groups: dict[Any, list[int]] = {}
    for index, layer in enumerate(layers):
        asked = layer.backend.may_differentiate(layer.weight) if derivative is None else derivative
        groups.setdefault((layer.weight.dtype, str(device_of(layer.weight)), asked), []).append(index)
    for (dtype, _, asked), members in groups.items():
        chosen = [layers[i] for i in members]
        # A transposed convolution has the norm of that which it transposes.
        chosen = [layer.convolution if isinstance(layer, ConvolutionTranspose) else layer for layer in chosen]
        backend = chosen[0].backend
        with backend.no_grad(), backend.certified_precision():
            detached = [layer.with_parameters(backend.stop_gradient(layer.weight), None) for layer in chosen]
            for index, (bound, direction) in zip(members, certified_bounds(detached, derivative=asked), strict=True):
                direction = None if direction is None else backend.xp.astype(direction, dtype)
                found[index] = Certificate(round_up(backend, bound, dtype), direction)
    return found


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
    with backend.no_grad(), backend.certified_precision():
        bounds = [lipschitz_bound(backend.stop_gradient(taps[:, :, i])).value for i in range(taps.shape[2])]
        total = xp.sum(xp.stack([xp.astype(b, widest(backend)) for b in bounds]))
        return round_up(backend, total * (1 + 2.0**-40), kernel.dtype)


def scaled_for_any_size(kernel: Array, cap: float) -> Array:
    """Scale the kernel of a convolution so that its norm is at most `cap` for images of every size."""
    backend, xp = get_backend(kernel), get_backend(kernel).xp
    with backend.certified_precision():
        bound = xp.astype(any_size_bound(backend, kernel), widest(backend))
        # The margin is for the rounding of the scaled kernel.
        return scaled_within(xp, kernel, bound, xp.full_like(bound, cap * (1 - 1e-6)))
