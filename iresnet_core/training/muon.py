"""Muon: steps along the orthogonal factor of a matrix's momentum, where those of Adam go entry by entry."""

import math

from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import InvalidArgumentError

__all__ = ["muon_step", "orthogonal_factor"]

_MOMENTUM = 0.95
_ITERATIONS = 5
# Coefficients of the odd polynomial of an iteration, of Jordan et al. 2024: it raises small singular values fastest.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_TINY = 1e-20  # is added to a sum of squares that is 1 or more, or 0 for a matrix of zeros, which stays one
# Root mean square of the entries of a step at the rate 1, which is that of Adam (Liu et al. 2025, Sec. 2.2).
_ENTRY = 0.2


def orthogonal_factor(matrix: Array) -> Array:
    """Return about U Vᵀ of matrix = U S Vᵀ, by five iterations of Newton and Schulz.

    Parameters
    ----------
    matrix : array (m, n)
        Of any scale.

    Returns
    -------
    array (m, n)
        A matrix with the same singular vectors. Its singular values lie between 0.68 and 1.21, which is near enough for
        a step; but for those of `matrix` below 0.003 of its Frobenius norm, which become less.

    Notes
    -----
    An iteration is X <- a X + (b X Xᵀ + c (X Xᵀ)²) X. It costs two products of min(m, n)² max(m, n) multiplications and
    one of min(m, n)³. Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in
    neural networks".

    Examples
    --------
    >>> import numpy as np
    >>> factor = orthogonal_factor(np.diag([5.0, 0.1]))
    >>> bool(np.all(np.abs(np.diag(factor) - 1) < 0.35))
    True
    """
    xp = get_backend(matrix).xp
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else xp.matrix_transpose(matrix)
    largest = xp.max(xp.abs(x))
    x = x / xp.where(largest > 0, largest, xp.ones_like(largest))  # so that no square overflows or vanishes
    x = x / xp.sqrt(xp.sum(x * x) + _TINY)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = xp.matmul(x, xp.matrix_transpose(x))
        x = first * x + xp.matmul(third * gram + fifth * xp.matmul(gram, gram), x)
    return x if wide else xp.matrix_transpose(x)


def muon_step(gradient: Array, momentum: Array, *, outputs_axis: int) -> tuple[Array, Array]:
    """Return what a step takes away from a weight at the rate 1, and the momentum after it.

    The momentum M <- 0.95 M + 0.05 G is a moving average of gradients G, and the step is

        0.2 sqrt(max(m, n)) orthogonal_factor(0.95 M + 0.05 G).

    Parameters
    ----------
    gradient, momentum : array
        Of the shape of the weight, which is a matrix, or the kernel of a convolution, which is the matrix that leads
        from all its inputs (m of them: channels times taps) to its outputs.
    outputs_axis : int
        Axis of the outputs, the first one (0) or the last one (-1).

    Raises
    ------
    InvalidArgumentError
        If the weight has fewer than two axes.

    Notes
    -----
    The layers of a block are divided by a bound on their spectral norm. Adam's steps lie in few directions, and the
    largest singular values take up what the bound allows; steps of Muon change all singular values alike, so that the
    whole of a layer learns. The factor makes the entries of a step about as long as those of Adam's (Liu et al. 2025,
    "Muon is scalable for LLM training").
    """
    if gradient.ndim < 2:
        raise InvalidArgumentError(
            f"Muon trains matrices and kernels of convolutions, got a parameter of shape {tuple(gradient.shape)}. Give "
            "it the weights of flow.capped_layers(), and all other parameters to Adam."
        )
    xp = get_backend(gradient).xp
    momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * gradient
    ahead = _MOMENTUM * momentum + (1 - _MOMENTUM) * gradient
    outputs = gradient.shape[outputs_axis]
    inputs = math.prod(gradient.shape) // outputs
    matrix = xp.reshape(ahead, (outputs, inputs) if outputs_axis == 0 else (inputs, outputs))
    step = _ENTRY * math.sqrt(max(inputs, outputs)) * orthogonal_factor(matrix)
    return xp.reshape(step, gradient.shape), momentum
