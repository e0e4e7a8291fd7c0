"""Weights scaled below a cap on their norm, ``W min(1, cap / norm)``, and the penalty that pulls them there."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from iresnet_core.backends import Array, device_of
from iresnet_core.common import require_finite, require_nonnegative, unit_roundoff, widest
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.lipschitz.bounds import lipschitz_bound
from iresnet_core.lipschitz.estimates import spectral_norm
from iresnet_core.operators import (
    Convolution,
    ConvolutionTranspose,
    LinearLayer,
    LinearOperator,
    Matrices,
    Shifted,
    SparseMatrix,
    as_operator,
)
from iresnet_core.results import LipschitzBound

__all__ = ["cap_share", "normalize", "scaled_within", "spectral_penalty"]


def normalize(A: Any, coeff: float, *, bound: Any = None) -> Any:
    """Scale an operator down, W min(1, coeff / bound), so that its certified norm is at most `coeff`.

    The factor is lowered by what rounding the scaled weights may add to their norm. Weights that are small enough are
    returned as they are.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, Chain, or anything `as_operator` takes
        Matrices (each of a stack on its own), a layer (its bias is kept), or a branch: there `coeff` bounds the whole
        chain, each of its L linear layers is capped at (coeff / product of the other layers' constants)^(1 / L), and
        the branch inside of a `DenseConcatenation` at 1. A sparse matrix is divided; of an operator that is known by
        its products the products are.
    coeff : float
        The cap, positive.
    bound : float, array (...,) or LipschitzBound, optional
        A bound that is known already, which is trusted; default ``lipschitz_bound(A)``. Not for a chain.

    Returns
    -------
    Of the kind of `A`, in its dtype. A layer carries its new bound, so that it is not computed again.

    Raises
    ------
    InvalidArgumentError
        If `coeff` is not positive, or the bound is negative.
    ShapeError, DtypeError, NonFiniteError, UnknownArrayError
        As for `lipschitz_bound`.

    Notes
    -----
    Cost: that of `lipschitz_bound`, unless the bound is given. Source: Behrmann et al. (2019), Sec. 2.1, who divide by
    an estimate from below; divided by an upper bound, the norm is below the cap for certain.

    Examples
    --------
    >>> import numpy as np
    >>> scaled = normalize(np.array([[3.0, 0.0], [0.0, 1.0]]), 0.9)
    >>> bool(abs(np.linalg.norm(scaled, 2) - 0.9) < 1e-12)
    True
    """
    cap = require_nonnegative(coeff, "coeff")
    if cap == 0:
        raise InvalidArgumentError(f"coeff must be a positive finite number, got {coeff!r}.")
    if _is_chain(A):
        if bound is not None:
            raise InvalidArgumentError("normalize takes no bound for a chain; normalise its layers one by one.")
        return _normalized_chain(A, cap)
    operator = as_operator(A)
    if not isinstance(operator, Matrices | LinearLayer):
        return _normalized_products(A, operator, cap, bound)
    unit = 1.0
    if bound is None:
        operand, unit = _without_overflow(operator)
        bound = lipschitz_bound(operand)
    known = bound
    value = known.value if isinstance(known, LipschitzBound) else known
    with operator.backend.certified_precision():
        return _normalized(operator, known, value, cap, unit)


def _normalized_products(A: Any, operator: LinearOperator, cap: float, bound: Any) -> Any:
    """Divide a sparse matrix, or the products of an operator, whose own rounding is not bounded."""
    known = lipschitz_bound(operator) if bound is None else bound
    value = known.value if isinstance(known, LipschitzBound) else known
    norm = require_nonnegative(value, "bound")
    if norm <= cap:
        return A
    backend = operator.backend
    # The quotient is rounded, and so is every entry or product with it.
    divisor = norm / cap * (1 + 8 * unit_roundoff(backend, operator.like.dtype))
    if isinstance(operator, SparseMatrix):
        return A.astype(operator.like.dtype) / divisor
    return Shifted(operator, 0.0, divisor)


def _entries(operator: Any) -> Array:
    return operator.array if isinstance(operator, Matrices) else operator.weight


def _without_overflow(operator: Any) -> tuple[Any, float]:
    """Return the operator divided by a power of two, and that: in float64 or in such units its norm is finite.

    No norm is above sqrt(m n) times the largest entry of the matrix. Nothing changes where that is within the dtype.
    """
    backend, weight = operator.backend, _entries(operator)
    if backend.is_tracing(weight):
        return operator, 1.0
    xp, wide = backend.xp, widest(backend)
    exponent = 4 + math.ceil(math.log2(math.prod(operator.shape)) / 2)
    largest = float(xp.max(xp.abs(backend.stop_gradient(weight))))
    if largest <= float(xp.finfo(weight.dtype).max) * 2.0**-exponent:
        return operator, 1.0
    if weight.dtype != wide:
        bias = None if isinstance(operator, Matrices) or operator.bias is None else xp.astype(operator.bias, wide)
        entries = xp.astype(weight, wide)
        return Matrices(entries) if isinstance(operator, Matrices) else operator.with_parameters(entries, bias), 1.0
    entries = weight * 2.0**-exponent
    divided = Matrices(entries) if isinstance(operator, Matrices) else operator.with_parameters(entries, operator.bias)
    return divided, 2.0**exponent


def _normalized(operator: Any, known: Any, value: Any, cap: float, unit: float) -> Any:
    """Scale the entries, and note the bound on what comes out. `value` bounds the operator in that `unit`."""
    weight = _entries(operator)
    scaled, new_bound = _certainly_within(operator, weight if unit == 1 else weight / unit, value, cap / unit)
    if unit != 1:
        scaled, new_bound = scaled * unit, new_bound * unit
    if isinstance(operator, Matrices):
        return scaled
    certificate = known.certificate if isinstance(known, LipschitzBound) else "stated"
    method = known.method if isinstance(known, LipschitzBound) else "given"
    layer = operator.with_parameters(scaled, operator.bias, LipschitzBound(new_bound, certificate, method))
    # While a program is compiled the bound has no value yet; that it is at most the cap is known all the same.
    return layer.capped(cap) if operator.backend.is_tracing(new_bound) else layer


def scaled_within(xp: Any, weight: Array, norm: Array, cap: Array) -> Array:
    """Return the weights (..., *shape) times min(1, cap / norm), for norms (...,) and caps of their shape.

    The form for weights in training: one product per entry, and the derivative of the norm goes through. How far the
    result may exceed the cap by rounding is not bounded, as it is in `normalize`.
    """
    factor = xp.astype(cap / xp.maximum(norm, cap), weight.dtype, copy=False)
    return weight * xp.reshape(factor, (*norm.shape, *(1,) * (weight.ndim - norm.ndim)))


def _certainly_within(operator: LinearOperator, weight: Array, bound: Any, cap: float) -> tuple[Array, Array]:
    """Weights times min(1, cap / bound), whose norms are at most the cap after rounding, and bounds (...,) on those."""
    backend, xp = operator.backend, operator.backend.xp
    wide = widest(backend)
    if isinstance(bound, str | list | tuple):
        raise InvalidArgumentError(f"bound must be a number, an array or a LipschitzBound, got {bound!r}.")
    if isinstance(bound, int | float):
        bound = xp.full(operator.batch_shape, float(bound), dtype=wide, device=device_of(weight))
    else:
        bound = xp.astype(bound, wide)
    require_finite(backend, bound, f"the bound on the norm of the {weight.dtype} weight of {operator!r}")
    if tuple(bound.shape) != operator.batch_shape:
        raise ShapeError(f"bound must have shape {operator.batch_shape}, got {tuple(bound.shape)}.")
    if not backend.is_tracing(bound) and bool(xp.any(bound < 0)):
        raise InvalidArgumentError(f"a bound must not be negative, got {float(xp.min(bound)):.4g}.")
    u = unit_roundoff(backend, weight.dtype)
    # Rounding changes W by at most u |W| entrywise, hence the norm by u ||W||_F <= u sqrt(rank) bound, and each tap of
    # a convolution, whose norm is at most the bound, likewise; an entry that becomes subnormal is changed by u times
    # the smallest normal number. In float64 there are three roundings, in other dtypes that of the result.
    lost = u * math.prod(operator.shape) ** 0.5 * float(xp.finfo(weight.dtype).smallest_normal)
    lost += 5e-324 if lost < 1e-307 else 0.0
    grown = min(operator.shape) ** 0.5
    operator = operator.convolution if isinstance(operator, ConvolutionTranspose) else operator
    if isinstance(operator, Convolution):
        channels = min(operator.channels, operator.out_channels) // operator.groups
        grown = min(grown, math.prod(operator.window) * channels**0.5)
    reach = max(0.0, cap - lost) / (1 + (4 if weight.dtype == wide else 1.01) * u * (grown + 2))
    excess = bound > cap
    one = xp.ones_like(bound)
    shape = (*bound.shape, *(1,) * (weight.ndim - bound.ndim))
    # In float64 and in two steps, since the quotient of cap and bound may itself be subnormal.
    divided = xp.astype(weight, wide) / xp.reshape(xp.where(excess, bound, one), shape)
    scaled = divided * xp.reshape(xp.where(excess, reach * one, one), shape)
    return xp.astype(scaled, weight.dtype), xp.where(excess, cap * one, bound)


def _is_chain(A: Any) -> bool:
    """Whether `A` is a branch of layers, of which some are linear."""
    return hasattr(A, "layers") and hasattr(A, "operators")


def _is_nested(layer: Any) -> bool:
    """Whether a layer has a branch of its own inside, whose linear layers are capped too."""
    return hasattr(layer, "with_branch")


def cap_share(layers: Sequence[Any], cap: float) -> float:
    """Return the cap on each linear layer of a branch whose Lipschitz constant is to be at most `cap`.

    It is (cap / product of the other layers' constants)^(1 / L) for L linear layers, lowered by the rounding of this
    formula and of the product of the constants. A layer without `lipschitz` counts as linear.
    """
    # A linear layer is not asked for `lipschitz`, which would certify its weights as they are.
    others = [layer for layer in layers if not isinstance(layer, LinearLayer) and hasattr(layer, "lipschitz")]
    product = 1.0
    for layer in others:  # not by math.prod, which the compiler of PyTorch cannot follow
        product *= layer.lipschitz
    count = max(len(layers) - len(others), 1)
    return float((cap / product) ** (1 / count) * (1 - 2.0**-48 * (len(layers) + 4)))


def _normalized_chain(chain: Any, cap: float) -> Any:
    """Cap every linear layer at the same share of the chain's constant."""
    # A dense concatenation has the constant 1 once its own branch has.
    layers = [layer.with_branch(normalize(layer.branch, 1.0)) if _is_nested(layer) else layer for layer in chain.layers]
    share = cap_share(layers, cap)
    capped = type(chain)([normalize(layer, share) if isinstance(layer, LinearLayer) else layer for layer in layers])
    capped.lipschitz  # noqa: B018  # The constants are at hand now, but not where a compiler traces a use of the chain.
    return capped


def spectral_penalty(operators: Any, weight: float) -> Array:
    """Return weight (sigma_1^2 + sigma_2^2 + ...), with sigma_i the spectral norms of the operators, a 0-d array.

    For training with a penalty on the norms, instead of the cap or besides it.

    Parameters
    ----------
    operators : array, layer or chain, or an iterable of them
        A chain stands for its linear layers.
    weight : float
        The factor, not negative.

    Raises
    ------
    InvalidArgumentError
        If there is no operator, or the weight is negative.
    ShapeError, DtypeError, NonFiniteError, UnknownArrayError
        As for `spectral_norm`.

    Notes
    -----
    The norms are estimates from below, by `spectral_norm`, whose cost it has; differentiating gives
    2 weight sigma_i u_i v_i^T for each operator. Source: Yoshida and Miyato (2017).

    Examples
    --------
    >>> import numpy as np
    >>> float(spectral_penalty([np.diag([3.0, 1.0]), np.diag([2.0, 2.0])], 0.5))
    6.5
    """
    weight = require_nonnegative(weight, "weight")
    total: Any = None
    single = not isinstance(operators, Iterable) or hasattr(operators, "shape")
    for operator in (operators,) if single else operators:
        for part in operator.operators if _is_chain(operator) else (operator,):
            sigma = spectral_norm(part).value
            square = as_operator(part).backend.xp.sum(sigma * sigma)
            total = square if total is None else total + square
    if total is None:
        raise InvalidArgumentError("spectral_penalty needs at least one operator.")
    return weight * total
