"""Upper bounds on the spectral norm: the Lipschitz constant of a linear layer, certified with its rounding."""

from typing import Any

from iresnet_core.backends import Array
from iresnet_core.common import round_up, widest
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.lipschitz.certificates import (
    cholesky_bound,
    frobenius_bound,
    holder_bound,
    singular_value_bound,
    tight_gram_bound,
)
from iresnet_core.lipschitz.estimates import SMALL, prepared, spectral_norm
from iresnet_core.lipschitz.fourier import fourier_bound
from iresnet_core.lipschitz.probabilistic import probabilistic_bound
from iresnet_core.operators import Convolution, Dense, LinearOperator, Matrices, as_operator, constant_operator
from iresnet_core.results import Certificate, LipschitzBound

__all__ = ["lipschitz_bound"]

# Beyond this many entries a layer known by its products is not made explicit (128 MiB in float64).
EXPLICIT_LIMIT = 2**24

# Accuracy of the singular vectors that make up the derivative of a bound.
GRADIENT_RTOL = 1e-8

_EXPLICIT = {
    "svd": singular_value_bound,
    "cholesky": cholesky_bound,
    "gram": tight_gram_bound,
    "frobenius": frobenius_bound,
    "holder": holder_bound,
}
_METHODS = (*_EXPLICIT, "fft", "lanczos")


def lipschitz_bound(A: Any, *, method: str = "auto", rng: Any = None) -> LipschitzBound:
    """Bound the spectral norm of an operator from above; the bound holds in floating point.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, or anything `as_operator` takes
        One operator, or a stack of matrices.
    method : str
        "svd": the norm itself. "cholesky": a Lanczos estimate s, raised by 0.4 %, is certified by the Cholesky
        factorisation of s^2 I - A^T A (Rump 2006); within 0.5 % of the norm. "gram": Gram iteration (Delattre et al.
        2023), matrix products only, up to 46, until rounding is left; in a compiled program 14, and within 0.1 %.
        "fft" (convolutions): norm of the circular convolution on a torus of size n + k - 1, of which the layer is a
        part; with circular padding the layer itself. "frobenius", "holder" (sqrt(||A||_1 ||A||_inf)): cheap and loose,
        2 to 40 times. "lanczos": from matvec and rmatvec alone, with probability 1 - 1e-10 (Hochstenbach 2013).
        "auto": "svd" where m or n is at most 128, else "cholesky" (on an accelerator "gram" for either), for
        convolutions "fft", for operators without entries "lanczos".
    rng : None, int or generator
        For "lanczos", whose start has to be fresh and random; None draws from the framework's own generator.

    Returns
    -------
    LipschitzBound
        value (...,) in the dtype of A, rounded upwards; certificate "exact" (the norm up to rounding), "certified" or
        "probabilistic"; the method.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, UnknownArrayError, InvalidArgumentError
        For operators or options that make no sense.

    Notes
    -----
    Computed in float64 whatever the dtype of A. Cost for an n x n matrix: "svd" about 20 n^3 operations, "cholesky"
    1.3 n^3 and some 20 products, "gram" 2 n^3 a squaring, "lanczos" two products a step. Where the backend
    differentiates, the derivative of every bound is that of the norm, scaled to the bound: (bound / sigma) u v^T.
    "cholesky" and "lanczos" look at values, so they are not for compiled functions, where "auto" takes "gram".

    Examples
    --------
    >>> import numpy as np
    >>> bound = lipschitz_bound(np.array([[3.0, 0.0], [4.0, 0.0]]))
    >>> round(float(bound.value), 6), bound.certificate, bound.method
    (5.0, 'exact', 'svd')
    """
    operator = as_operator(A)
    if method == "auto":
        method = _choose(operator)
    if not isinstance(method, str) or method not in _METHODS:
        raise InvalidArgumentError(f"lipschitz_bound has the methods auto, {', '.join(_METHODS)}; got {method!r}.")
    backend = operator.backend
    with backend.full_precision():
        with backend.no_grad():
            bound = _bound(A, constant_operator(operator), method, rng)
        entries = operator.entries
        if entries is None or not backend.may_differentiate(entries):
            return bound
        sigma = spectral_norm(operator, rtol=GRADIENT_RTOL).value
        positive = backend.stop_gradient(sigma) > 0
        # The factor is 1; it carries the relative derivative of the norm.
        factor = sigma / backend.stop_gradient(backend.xp.where(positive, sigma, backend.xp.ones_like(sigma)))
        return bound._replace(value=backend.xp.where(positive, bound.value * factor, bound.value))


def _bound(A: Any, operator: LinearOperator, method: str, rng: Any) -> LipschitzBound:
    backend = operator.backend
    scaled, scale = prepared(operator, widest(backend)) if method != "lanczos" else prepared(operator)
    certificate: Certificate = "certified"
    if method == "lanczos":
        value = probabilistic_bound(scaled, rng)
        certificate = "probabilistic"
    elif method == "fft":
        if not isinstance(scaled, Convolution):
            raise InvalidArgumentError(
                f"method 'fft' is for convolutions, got {type(A).__name__}; use 'svd', 'cholesky' or 'gram'."
            )
        value = fourier_bound(scaled)
    else:
        value = _EXPLICIT[method](backend, _explicit(scaled, method))
        if method == "svd":
            certificate = "exact"
    value = backend.xp.astype(value, widest(backend)) * backend.xp.astype(scale, widest(backend))
    return LipschitzBound(round_up(backend, value, operator.like.dtype), certificate, method)


def _choose(operator: LinearOperator) -> str:
    """The method that "auto" stands for."""
    m, n = operator.shape
    # While a program is compiled a certificate cannot be tried, and the accuracy of the compiler's SVD is unknown.
    if operator.backend.is_tracing(operator.like) and m * n <= EXPLICIT_LIMIT and operator.entries is not None:
        return "gram"
    if isinstance(operator, Convolution):
        return "svd" if min(m, n) <= SMALL and m * n <= EXPLICIT_LIMIT else "fft"
    if isinstance(operator, Matrices | Dense):
        if operator.backend.is_accelerated(operator.like):
            return "gram"
        return "svd" if min(m, n) <= SMALL else "cholesky"
    return "lanczos"


def _explicit(operator: LinearOperator, method: str) -> Array:
    """The matrix of an operator, unless it is too large to be written down."""
    m, n = operator.shape
    if not isinstance(operator, Matrices) and m * n > EXPLICIT_LIMIT:
        raise InvalidArgumentError(
            f"method {method!r} needs the explicit matrix, {m} x {n} here, beyond the limit of {EXPLICIT_LIMIT} "
            "entries. Use 'fft' for a convolution, 'lanczos' for an operator."
        )
    return operator.backend.xp.astype(operator.matrix(), widest(operator.backend), copy=False)
