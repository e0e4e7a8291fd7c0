"""Upper bounds on the spectral norm: the Lipschitz constant of a linear layer, certified with its rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.common import round_up, widest
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.lipschitz.certificates import (
    cholesky_bound,
    frobenius_bound,
    holder_bound,
    singular_value_bound,
    tight_gram_bound,
)
from iresnet_core.lipschitz.estimates import SVD_LIMIT, spectral_norm
from iresnet_core.lipschitz.fourier import fourier_bound
from iresnet_core.lipschitz.one_tap import GroupMatrices, simplified
from iresnet_core.lipschitz.probabilistic import probabilistic_bound
from iresnet_core.lipschitz.scaling import prepared
from iresnet_core.lipschitz.symbol import certified_bound
from iresnet_core.operators import (
    Convolution,
    ConvolutionTranspose,
    Dense,
    LinearOperator,
    Matrices,
    as_operator,
    detached_operator,
)
from iresnet_core.results import Certificate, LipschitzBound

__all__ = ["BOUNDS", "BoundMethod", "bound_methods", "lipschitz_bound"]

# Beyond this many entries a layer known by its products is not made explicit (128 MiB in float64).
EXPLICIT_LIMIT = 2**24

# Accuracy of the singular vectors that make up the derivative of a bound.
GRADIENT_RTOL = 1e-8


@dataclass(frozen=True)
class BoundMethod:
    """One method of `lipschitz_bound`, a row of the table BOUNDS.

    Attributes
    ----------
    bound : callable (operator, rng) -> array (...,)
        The bound in float64, for an operator whose entries are constants for differentiation.
    suits : callable (operator) -> bool
        Whether "auto" takes the method, if no method before it in the table suits.
    refusal : callable (operator) -> str or None
        Why the method cannot bound this operator; None if it can.
    certificate : str
        What the bound is: "exact", "certified" or "probabilistic".
    """

    bound: Callable[[LinearOperator, Any], Array]
    suits: Callable[[LinearOperator], bool]
    refusal: Callable[[LinearOperator], str | None]
    certificate: Certificate = "certified"


def lipschitz_bound(A: Any, *, method: str = "auto", rng: Any = None) -> LipschitzBound:
    """Bound the spectral norm from above: sigma(A) = max ||A v|| / ||v|| <= value, rounding included.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, or anything `as_operator` takes
        One operator, or a stack of matrices.
    method : str
        "auto" suits most operators. The others are listed with how far above the norm they aim to be; the bound holds
        even where they miss that aim.

        - "svd": the norm itself, up to rounding. "auto" takes it where m or n is at most 128.
        - "cholesky": at most 0.5 % above. "auto" takes it for larger matrices.
        - "gram": the norm up to rounding, or within 0.1 % in a compiled program, by matrix products alone. "auto" takes
          it in place of "svd" and "cholesky" on an accelerator and in a compiled program.
        - "fft": for convolutions. With circular padding it is the norm, and with zero padding the norm on a torus of
          size n + k - 1, which is a few percent larger. Where an image has more than 31 (k - 1) points along an axis,
          up to 0.13 % is added for that axis; in a compiled program, beyond 32 channels, or with three axes, 0.9 % from
          12 (k - 1) points on. "auto" takes it for larger convolutions.
        - "lanczos": 0.5 % above, with probability 1 - 1e-10, by products with A and A^T alone. "auto" takes it for
          operators without entries.
        - "frobenius", "holder": ||A||_F and sqrt(||A||_1 ||A||_inf). They cost little and are 2 to 40 times too large.
    rng : None, int or generator
        For "lanczos", whose start has to be fresh and random; None draws from the framework's own generator.

    Returns
    -------
    LipschitzBound
        value (...,) in the dtype of A, rounded upwards; certificate "exact" (the norm up to rounding), "certified" or
        "probabilistic"; the method.

    Raises
    ------
    InvalidArgumentError
        If the method is unknown or cannot bound this operator.
    NotConvergedError
        If "cholesky" certifies no multiple of its estimate, for a matrix that is badly scaled beyond float64.
    ShapeError, DtypeError, NonFiniteError, UnknownArrayError
        For operators that make no sense.

    Notes
    -----
    Cost for an n x n matrix: "svd" takes about 20 n^3 operations, "cholesky" 1.3 n^3 and some 20 products, "gram" 2 n^3
    for each squaring (up to 46, in a compiled program 14), and "lanczos" two products per step. "fft" takes about 12
    c^3 operations for each group and frequency, where a group has c inputs and outputs. There are at most 31 (k - 1)
    frequencies along an axis, half of them along the last one; the memory is about 200 MiB, however large the images.
    The other methods make convolutions explicit, each group by itself. A convolution with a single tap is the stack of
    its groups' matrices, for every method and at their cost. Everything but "lanczos" is computed in float64, whatever
    the dtype of A.

    Where the backend differentiates, the derivative of every bound is that of the norm, scaled to the bound:
    (bound / sigma) u v^T; with "fft" that of the norm on the torus. Where nobody can ask for it, no singular vectors
    are computed. "cholesky" and "lanczos" look at values, so they are not for compiled functions, where "fft" takes
    Gram iteration.

    Sources: "cholesky" certifies a Lanczos estimate s, raised by 0.4 %, by the Cholesky factorisation of s^2 I - A^T A
    (Rump 2006, Thm 2.3); "gram" is Gram iteration (Delattre et al. 2023, Thm 1); "lanczos" is Hochstenbach (2013).

    Examples
    --------
    >>> import numpy as np
    >>> bound = lipschitz_bound(np.array([[3.0, 0.0], [4.0, 0.0]]))
    >>> round(float(bound.value), 6), bound.certificate, bound.method
    (5.0, 'exact', 'svd')
    """
    operator = as_operator(A)
    if isinstance(operator, ConvolutionTranspose):
        operator = operator.convolution  # whose norm is the same
    if method == "auto":
        method = _automatic(simplified(operator))
    if not isinstance(method, str) or method not in BOUNDS:
        raise InvalidArgumentError(f"lipschitz_bound has the methods auto, {', '.join(BOUNDS)}; got {method!r}.")
    row = BOUNDS[method]
    refusal = row.refusal(simplified(operator))
    if refusal is not None:
        raise InvalidArgumentError(f"method {method!r} {refusal}")
    backend = operator.backend
    with backend.certified_precision():
        with backend.no_grad():
            parts = simplified(detached_operator(operator))
            value = row.bound(parts, rng)
            value = backend.xp.max(value) if isinstance(parts, GroupMatrices) else value
            value = round_up(backend, value, operator.like.dtype)
        bound = LipschitzBound(value, row.certificate, method)
        entries = operator.entries
        if entries is None or not backend.may_differentiate(entries):
            return bound
        sigma = _torus_norm(operator) if method == "fft" else spectral_norm(operator, rtol=GRADIENT_RTOL).value
        positive = backend.stop_gradient(sigma) > 0
        # The factor is 1; it carries the relative derivative of the norm.
        factor = sigma / backend.stop_gradient(backend.xp.where(positive, sigma, backend.xp.ones_like(sigma)))
        return bound._replace(value=backend.xp.where(positive, value * factor, value))


def bound_methods(operator: LinearOperator) -> tuple[str, ...]:
    """Return the names of the methods that can bound an operator."""
    return tuple(name for name, row in BOUNDS.items() if row.refusal(simplified(operator)) is None)


def _automatic(operator: LinearOperator) -> str:
    return next(name for name, row in BOUNDS.items() if row.suits(operator))


def _torus_norm(operator: LinearOperator) -> Array:
    """Norm of a convolution on the torus, by the singular vectors of one frequency, with its derivative."""
    if isinstance(simplified(operator), GroupMatrices):
        return spectral_norm(operator, rtol=GRADIENT_RTOL).value
    backend, layer = operator.backend, detached_operator(operator)
    assert isinstance(operator, Convolution)
    assert isinstance(layer, Convolution)
    with backend.no_grad():
        direction = backend.stop_gradient(certified_bound(layer, derivative=True).direction)
    return backend.xp.sum(backend.xp.astype(direction, operator.weight.dtype) * operator.weight)


def _is_matrix(operator: LinearOperator) -> bool:
    return isinstance(operator, Matrices | Dense)


def _can_be_explicit(operator: LinearOperator) -> bool:
    m, n = operator.shape
    groups = operator.groups if isinstance(operator, Convolution) else 1
    return _is_matrix(operator) or m * n <= EXPLICIT_LIMIT * groups


def _has_few_entries(operator: LinearOperator) -> bool:
    """Whether the SVD of an operator with entries costs no more than a certificate."""
    return operator.entries is not None and min(operator.shape) <= SVD_LIMIT and _can_be_explicit(operator)


def _wants_products_alone(operator: LinearOperator) -> bool:
    """Whether a bound by matrix products alone is the best.

    While a program is compiled no certificate can be tried, and the accuracy of the compiler's SVD is unknown. On an
    accelerator products are by far the fastest. A convolution that would not be made explicit otherwise is not either.
    """
    backend = operator.backend
    if backend.is_tracing(operator.like) and (_is_matrix(operator) or _has_few_entries(operator)):
        return True
    return _is_matrix(operator) and backend.is_accelerated(operator.like)


def _explicit_refusal(operator: LinearOperator) -> str | None:
    if _can_be_explicit(operator):
        return None
    m, n = operator.shape
    return (
        f"needs the explicit matrix, {m} x {n} here, beyond the limit of {EXPLICIT_LIMIT} entries. Use 'fft' for a "
        "convolution, 'lanczos' for an operator."
    )


def _explicit(bound: Callable[[Backend, Array], Array]) -> Callable[[LinearOperator, Any], Array]:
    """Make a bound of operators out of one of explicit float64 matrices."""

    def of_operator(operator: LinearOperator, rng: Any) -> Array:
        backend = operator.backend
        scaled, scale = prepared(operator, widest(backend))
        if isinstance(scaled, Convolution):
            return backend.xp.max(bound(backend, scaled.group_matrices())) * scale
        matrix = backend.xp.astype(scaled.matrix(), widest(backend), copy=False)
        return bound(backend, matrix) * backend.xp.astype(scale, widest(backend))

    return of_operator


def _fourier(operator: LinearOperator, rng: Any) -> Array:
    if isinstance(operator, GroupMatrices):  # These are the symbol, at all frequencies.
        return BOUNDS[_automatic(operator)].bound(operator, rng)
    if operator.backend.is_tracing(operator.like):  # The certificate below looks at values.
        assert isinstance(operator, Convolution)
        return certified_bound(operator, derivative=False).bound
    scaled, scale = prepared(operator, widest(operator.backend))
    assert isinstance(scaled, Convolution)
    return fourier_bound(scaled) * scale


def _fourier_refusal(operator: LinearOperator) -> str | None:
    if isinstance(operator, Convolution | GroupMatrices):
        return None
    kind = type(operator).__name__
    return f"is for convolutions, got {kind} of shape {operator.shape}; use 'svd', 'cholesky' or 'gram'."


def _probabilistic(operator: LinearOperator, rng: Any) -> Array:
    backend = operator.backend
    scaled, scale = prepared(operator)
    value = backend.xp.astype(probabilistic_bound(scaled, rng), widest(backend))
    return value * backend.xp.astype(scale, widest(backend))


def _always(operator: LinearOperator) -> bool:
    return True


def _never(operator: LinearOperator) -> bool:
    return False


def _no_refusal(operator: LinearOperator) -> None:
    return None


# The methods of `lipschitz_bound`. "auto" is the first one that suits the operator.
BOUNDS: dict[str, BoundMethod] = {
    "gram": BoundMethod(_explicit(tight_gram_bound), _wants_products_alone, _explicit_refusal),
    "svd": BoundMethod(_explicit(singular_value_bound), _has_few_entries, _explicit_refusal, "exact"),
    "cholesky": BoundMethod(_explicit(cholesky_bound), _is_matrix, _explicit_refusal),
    "fft": BoundMethod(_fourier, lambda operator: isinstance(operator, Convolution), _fourier_refusal),
    "lanczos": BoundMethod(_probabilistic, _always, _no_refusal, "probabilistic"),
    "frobenius": BoundMethod(_explicit(frobenius_bound), _never, _explicit_refusal),
    "holder": BoundMethod(_explicit(holder_bound), _never, _explicit_refusal),
}
