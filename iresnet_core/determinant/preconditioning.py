"""The mean Jacobian of a batch as a preconditioner of log-determinants.

For a fixed matrix B, near (I + J0)^-1 with J0 the Jacobian at the mean slopes, and I + E = B (I + J),

    log det(I + J) = -log det B + tr E + E_v[v^T (log(I + E) - E) v].

The first term is the same for all samples, the trace is exact (see `slope_traces`), and E is small, so that little is
left to the probes, see `preconditioned_arnoldi`. The identity holds for every B, whatever rounding or a change of the
weights did to it. So does the certificate: with A = B^-1,

    I + t E = B ((1 - t) A + t (I + J)),   ||(I + t E)^-1|| <= ||A|| / (1 - (1 - t) ||A - I|| - t c),

which needs ||J|| <= c and ||A - I|| < 1 alone. E itself may have any norm: no eigenvalue of it is on the real axis at
or below -1, so that its principal logarithm exists and is the integral over t of (I + t E)^-1 E.

This is the use of a preconditioner as a control variate, known from Gaussian processes (Wenger et al. 2022).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.branches import Linearization, layer_product, linearize, stated_lipschitz, without_condition
from iresnet_core.common import (
    gamma,
    require_batch,
    require_contraction,
    require_finite,
    require_floating,
    require_same_device,
    require_same_dtype,
    squared_frobenius,
    widest,
    working_dtype,
)
from iresnet_core.errors import DerivativeError, InvalidArgumentError, NotContractiveError, ShapeError
from iresnet_core.lipschitz import gram_bound

__all__ = [
    "MeanJacobian",
    "fixed_linearization",
    "fixed_preconditioner",
    "mean_jacobian",
    "no_mean_jacobian",
    "preconditioner",
    "require_reference",
]

# J0 is scaled below the constant by this share, to leave room for the rounding of B.
ROOM_FOR_ROUNDING = 1e-4
# Relative rounding of J0 in float64, for layers up to a width of a million.
LARGEST_ROUNDING = 1e-9
# Products behind the bound on the norm of J0, which is within some hundredths of it; more count where it is above the
# constant.
FEW_SQUARINGS, MANY_SQUARINGS = 3, 5
# Standard normal points of a mean Jacobian that does not depend on the batch, for a branch without a reference.
FIXED_POINTS = 64
# Defect up to which log det B is that of its origin, corrected to the first order.
LARGEST_CORRECTED_DEFECT = 1e-4


class MeanJacobian(NamedTuple):
    """What the mean Jacobian J0 of a batch gives for every sample: a B near (I + J0)^-1.

    Attributes
    ----------
    inverse : array (d, d)
        B.
    log_determinant : float64 array ()
        -log det B, in nats.
    norm, growth : float64 array ()
        Certified bounds on ||B^-1 - I|| and ||B^-1||.
    constant : float
        The Lipschitz constant that J0 was kept below.
    """

    inverse: Array
    log_determinant: Array
    norm: Array
    growth: Array
    constant: float


def mean_jacobian(g: Any, x: Array, *, lipschitz: float | None = None) -> MeanJacobian:
    """Take the mean Jacobian of a branch over a reference batch, for ``logdet(g, ..., reference=...)``.

    It is valid for any inputs, and for other weights as well: the further they are, the noisier is the answer, and its
    errors say so. For scoring, one reference batch serves a whole data set.

    Parameters
    ----------
    g : Branch
        A `Chain` of dense layers, or convolutions on small images, and entrywise activations, or a branch whose
        linearisation has `mean_matrix`.
    x : array (batch, ...)
        The reference batch; some hundred samples are plenty.
    lipschitz : float, optional
        Lipschitz constant c < 1 of g; default ``g.lipschitz``.

    Returns
    -------
    MeanJacobian

    Raises
    ------
    DerivativeError
        If g has no mean Jacobian.
    NotContractiveError, UnknownLipschitzError, ShapeError, DtypeError, NonFiniteError, MixedBackendsError
        As `logdet`.

    Notes
    -----
    Cost: one evaluation of g, and some 4 d^3 operations in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Activation, Chain, Dense, logdet
    >>> rng = np.random.default_rng(0)
    >>> W = 0.4 * np.linalg.qr(rng.standard_normal((40, 40)))[0]
    >>> g, x = Chain([Dense(W), Activation("tanh")]), rng.standard_normal((100, 40))
    >>> result = logdet(g, x[:1], method="mean-jacobian", reference=mean_jacobian(g, x), rng=0)
    >>> exact = logdet(g, x[:1], method="exact")
    >>> bool(abs(result.value[0] - exact.value[0]) < 4 * result.std_error[0] + result.bias_bound[0])
    True
    """
    backend = get_backend(x)
    require_batch(x, "x")
    require_floating(backend, x, "x")
    require_finite(backend, x, "x")
    constant = require_contraction(*stated_lipschitz(g, lipschitz))
    if x.shape[0] == 0:
        raise ShapeError("a mean over an empty batch was asked for.")
    with backend.full_precision(), backend.no_grad(), backend.batch_of_unknown_size(x):
        working = working_dtype(backend, x.dtype)
        if working != x.dtype and hasattr(g, "astype"):
            g, x = g.astype(working), backend.xp.astype(x, working)
        return preconditioner(backend, linearize(backend, g, x), x, constant, layer_product(g))


def no_mean_jacobian() -> DerivativeError:
    """What is said about a branch that has none."""
    return DerivativeError(
        "method 'mean-jacobian' needs a branch with mean slopes and a cheap trace: a Chain of Dense layers, or "
        "convolutions on small images, and entrywise activations. Use method 'arnoldi'."
    )


def preconditioner(
    backend: Backend, linearization: Linearization, x: Array, constant: float, largest: float | None = None
) -> MeanJacobian:
    """The mean Jacobian of a batch x that has been linearised, in the dtype of x.

    `largest` is a bound on the norm of the Jacobian, where there is one beside the constant.
    """
    if linearization.mean_matrix is None or linearization.preconditioned_trace is None:
        raise no_mean_jacobian()
    xp, wide = backend.xp, widest(backend)
    J0 = xp.astype(backend.stop_gradient(linearization.mean_matrix()), wide)
    d = J0.shape[-1]
    # J0 was rounded in the dtype of x, which a bound on what it was before does not know in a narrower one.
    known = math.inf if largest is None or x.dtype != wide else largest * (1 + LARGEST_ROUNDING)
    J0, norm = _shrunk(backend, J0, constant, known)
    identity = xp.eye(d, dtype=wide, device=device_of(x))
    A = identity + J0
    inverse, log_determinant = backend.inverse_and_log_determinant(A)
    B = xp.astype(inverse, x.dtype)
    stored = xp.astype(B, wide)
    # B A = I + R, hence B^-1 - A = -A R (I + R)^-1.
    R = xp.matmul(stored, A) - identity
    rounding = gamma(2 * d + 4, 2.0**-53) * xp.sqrt(squared_frobenius(xp, stored) * squared_frobenius(xp, A))
    defect = xp.sqrt(squared_frobenius(xp, R)) * (1 + 1e-12) + rounding
    norm = norm + (1 + norm) * defect / (1 - defect)
    certain = not backend.is_tracing(norm)
    if certain and not (float(defect) < 0.5 and float(norm) < 1):
        require_finite(backend, J0, "the mean Jacobian of g")
        raise NotContractiveError(
            f"the mean Jacobian cannot be inverted in {x.dtype} (c = {constant:.6g}). Use float64, or method 'arnoldi'."
        )
    if certain and float(defect) < LARGEST_CORRECTED_DEFECT:  # log det(I + R) = tr R, but for the second order
        log_determinant = log_determinant - xp.linalg.trace(R)
    else:
        log_determinant = -xp.linalg.slogdet(stored)[1]
    return MeanJacobian(B, log_determinant, norm, 1 + norm, constant)


def fixed_preconditioner(backend: Backend, g: Any, x: Array, constant: float) -> tuple[Linearization, MeanJacobian]:
    """The linearisation of a branch at fixed points, see `fixed_linearization`, and its mean Jacobian there."""
    there = fixed_linearization(backend, g, x)
    return there, preconditioner(backend, there, x, constant, layer_product(g))


def fixed_linearization(backend: Backend, g: Any, x: Array) -> Linearization:
    """The linearisation of a branch at fixed points: its reference, or else standard normal ones.

    It depends on the branch alone, for answers that are the same in any batch; of the samples `x` it takes shape and
    dtype. A conditioning is left out.
    """
    points = getattr(g, "reference", None)
    if points is None:
        points = backend.constant_array(_normal_points, math.prod(x.shape[1:]), like=x)
        points = backend.xp.reshape(points, (FIXED_POINTS, *x.shape[1:]))
    return linearize(backend, without_condition(g), backend.xp.astype(points, x.dtype, copy=False))


def _normal_points(d: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((FIXED_POINTS, d))


def _shrunk(backend: Backend, J0: Array, constant: float, largest: float) -> tuple[Array, Array]:
    """Return J0, and a bound on its norm; a stated constant may be below that, and then J0 is scaled: any will do.

    Products of J0 bound the norm of one that is near an isometry some hundredths too high. What it is scaled by then
    comes back as noise: a `largest` that the layers certify is taken where it is smaller.
    """
    xp, limit = backend.xp, (1 - ROOM_FOR_ROUNDING) * constant
    norm = gram_bound(backend, J0, rtol=0.0, max_steps=FEW_SQUARINGS) + 1e-100
    norm = xp.minimum(norm, xp.full_like(norm, largest))
    tracing = backend.is_tracing(J0)
    if not tracing and float(norm) <= limit:
        return J0, norm
    more = gram_bound(backend, J0, rtol=0.0, max_steps=MANY_SQUARINGS) + 1e-100
    more = xp.minimum(more, xp.full_like(more, largest))
    scale = xp.minimum(xp.ones_like(more), limit / more)
    if tracing:  # the same choice, so that a compiled program has the certificate of an eager one
        more = xp.where(norm <= limit, norm, more)
        scale = xp.where(norm <= limit, xp.ones_like(scale), scale)
    return scale * J0, scale * more * (1 + 1e-14)


def require_reference(reference: Any, x: Array) -> MeanJacobian:
    """Check a mean Jacobian that was made before for samples like x."""
    if not isinstance(reference, MeanJacobian):
        raise InvalidArgumentError(f"reference must be a MeanJacobian, got {type(reference).__name__}.")
    if not isinstance(reference.constant, float):
        raise InvalidArgumentError(
            "a reference cannot be an argument of a compiled function, which would hide its constant; let the function "
            "close over it."
        )
    get_backend(x, reference.inverse)
    d = math.prod(x.shape[1:])
    if tuple(reference.inverse.shape) != (d, d):
        raise ShapeError(f"the reference is for samples of {reference.inverse.shape[0]} entries, x has {d}.")
    require_same_dtype(reference.inverse, "the reference", x, "x")
    require_same_device(get_backend(x), reference.inverse, "the reference", x, "x")
    return reference
