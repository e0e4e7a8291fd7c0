"""The inverse of I + J at the points of a batch, explicit, with a certified bound on its norm."""

import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.common import flatten, gamma, unit_roundoff, widest, working_dtype

__all__ = ["LARGEST_EXPLICIT", "LocalJacobian", "local_jacobian"]

# Dimension up to which it is worth its d products per sample, and numbers in one matrix or stack of products.
LARGEST_EXPLICIT, NUMBERS = 128, 2**22
# Squarings of the Gram matrix in the bound on a norm, which is then at most d^(1 / 16) above it.
SQUARINGS = 3
# Rounding of the Jacobian that does not matter, beside singular values near 1.
HARMLESS = 0.01


class LocalJacobian(NamedTuple):
    """Of one batch: `inverse` (batch, d, d) or None, and `smallest` (batch,), below the singular values of I + J.

    `bend` is the Lipschitz constant of J.
    """

    inverse: Array | None
    smallest: Array
    bend: float

    def __call__(self, residual: Array) -> Array:
        """Return (I + J)^-1 residual."""
        assert self.inverse is not None
        xp = get_backend(residual).xp
        right = xp.astype(flatten(xp, residual)[:, :, None], self.inverse.dtype, copy=False)
        step = xp.matmul(self.inverse, right)[:, :, 0]
        return xp.astype(xp.reshape(step, residual.shape), residual.dtype, copy=False)

    def distance(self, s: Array, away: Array) -> Array:
        """Smaller root t (batch,) of sigma t - K t^2 / 2 = s, with sigma at a point that lies `away` from these.

        Infinity where there is none.
        """
        xp = get_backend(s).xp
        sigma = self.smallest - self.bend * away
        left = sigma * sigma - 2 * self.bend * s
        there = (sigma > 0) & (left > 0)
        one = xp.ones_like(s)
        root = 2 * s / (xp.where(there, sigma, one) + xp.sqrt(xp.where(there, left, one)))
        return xp.where(there, root, xp.full_like(s, math.inf))


def local_jacobian(g: Any, x: Array, rounding: Array, *, keep_inverse: bool) -> LocalJacobian | None:
    """Invert I + J at x (batch, ...); None where g has no explicit Jacobian, or one that jumps.

    `rounding` (batch,) bounds the rounding error of g at x in float64. The Jacobian is computed in the dtype of x where
    the rounding of that does not matter, since float64 takes twice the time. A part of the batch is worked on at a
    time, so that memory is bounded; only the inverses grow with the batch, if they are kept.
    """
    backend = get_backend(x)
    constants = getattr(g, "curvature", None)
    if constants is None or not math.isfinite(constants.lipschitz):
        return None
    xp, wide, dtype = backend.xp, widest(backend), working_dtype(backend, x.dtype)
    if constants.rounding(unit_roundoff(backend, dtype)) > HARMLESS:
        dtype = wide
    branch = g if dtype == x.dtype else g.astype(dtype)
    u = unit_roundoff(backend, dtype)
    inverses, parts = [], []
    for J in branch.jacobian_matrices(xp.astype(x, dtype, copy=False), NUMBERS):
        inverse, sigma = _inverted(xp, backend.stop_gradient(J), wide)
        parts.append(sigma)
        if keep_inverse:
            inverses.append(inverse)
    if not parts:
        return None
    slopes = constants.sensitivity * rounding * (u / unit_roundoff(backend, wide))
    smallest = xp.concat(parts, axis=0) - constants.rounding(u) - slopes
    smallest = xp.where(xp.isfinite(smallest), smallest, xp.zeros_like(smallest))
    return LocalJacobian(xp.concat(inverses, axis=0) if inverses else None, smallest, constants.lipschitz)


def _inverted(xp: Any, J: Array, wide: Any) -> tuple[Array, Array]:
    """Return X near (I + J)^-1 (batch, d, d), and a bound (batch,) from below on the smallest singular values of I + J.

    ||(I + J)^-1|| <= ||X|| / (1 - ||I - (I + J) X||). NaN comes from a Jacobian that is not finite.
    """
    d, u = J.shape[-1], float(xp.finfo(J.dtype).eps) / 2
    identity = xp.eye(d, dtype=J.dtype, device=device_of(J))
    A = identity + J
    X = xp.linalg.inv(A)
    defect, a, b = (
        xp.astype(xp.linalg.vector_norm(flatten(xp, matrix), axis=-1), wide)
        for matrix in (identity - xp.matmul(A, X), A, X)
    )
    return X, (1 - defect - gamma(d + 4, u) * a * b) / _norm_bound(xp, X, wide) - u * a


def _norm_bound(xp: Any, X: Array, wide: Any) -> Array:
    """Bound the norms (batch,) from above by sigma^(2^(k + 1)) <= ||(X^T X)^(2^k)||_F (Delattre et al. 2023).

    The rounding of each product is added to the length of the next, relative to which it is at most gamma_d.
    """
    d, u = X.shape[-1], float(xp.finfo(X.dtype).eps) / 2
    own = 1 + 2 * gamma(d + 4, u) * d
    power, G, logarithm = 2, xp.matmul(xp.matrix_transpose(X), X), 0.0
    for step in range(SQUARINGS + 1):
        size = xp.linalg.vector_norm(flatten(xp, G), axis=-1)
        size = xp.where(size > 0, size, xp.ones_like(size))
        logarithm = logarithm + xp.log(xp.astype(size, wide) * own) / power
        if step < SQUARINGS:
            G = G / size[:, None, None]
            G, power = xp.matmul(G, G), 2 * power
    return xp.exp(logarithm) * (1 + 1e-10)
