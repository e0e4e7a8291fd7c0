"""The von Mises density, the normal of angles, as a density of latents."""

import math
from typing import Any

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import (
    require_finite,
    require_floating,
    require_same_dtype,
    unit_roundoff,
    widest,
)
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.latent_density import PLAIN, Base, Parameter, uniform_numbers

__all__ = ["VonMises"]

# Nodes of the trapezoidal rule for I_0, and the concentration up to which it is exact to rounding: the error is
# 2 I_512 / I_0, about 2 exp(-512^2 / (2 concentration)).
NODES, MOST_CONCENTRATION = 512, 3000.0
# Rounds of rejection. At least 0.65 of each are accepted (Best and Fisher 1979): 1e-18 of the samples are in none.
ROUNDS = 40


def _free_concentration(k: Array) -> Array:
    backend = get_backend(k)
    if not backend.is_tracing(k) and not bool(backend.xp.all((k > 0) & (k < MOST_CONCENTRATION))):
        raise InvalidArgumentError(
            f"a concentration that is learned begins above 0 and below {MOST_CONCENTRATION:g}: take a small one in "
            "place of 0, or keep it fixed."
        )
    return backend.xp.log(k / (MOST_CONCENTRATION - k))


class VonMises(Base):
    """``prod_i exp(k_i cos(z_i - m_i)) / (2 pi I_0(k_i))`` for angles z (d,) in radians.

    Parameters
    ----------
    mean : array (d,)
        The angles m of the maximum.
    concentration : array (d,)
        k, from 0, where the density is uniform, to 3000.

    Raises
    ------
    InvalidArgumentError, ShapeError, DtypeError, NonFiniteError
        If they do not fit each other, or a concentration is out of range.

    Notes
    -----
    ``log I_0(k) = k + log mean over j of exp(k (cos t_j - 1))`` by the trapezoidal rule, which converges faster than
    any power for periodic integrands and can be differentiated on every backend. Samples are those of Best and Fisher
    (1979), in 40 rounds of rejection at once; they lie within pi of the mean and are differentiable by it, not by the
    concentration, whose gradient `reverse_kl` takes by the score.

    Examples
    --------
    >>> import numpy as np
    >>> VonMises(np.zeros(2), np.zeros(2)).log_prob(np.ones((1, 2))).round(6)  # -2 log(2 pi)
    array([-3.675754])
    """

    mean: Array
    concentration: Array
    rejects = True
    parameters = {  # noqa: RUF012
        "mean": PLAIN,
        "concentration": Parameter(
            "free_", _free_concentration, lambda a: MOST_CONCENTRATION / (1 + get_backend(a).xp.exp(-a))
        ),
    }

    def __init__(self, mean: Array, concentration: Array) -> None:
        backend = get_backend(mean, concentration)
        for name, array in (("mean", mean), ("concentration", concentration)):
            require_floating(backend, array, name)
            require_finite(backend, array, name)
        require_same_dtype(concentration, "concentration", mean, "mean")
        if tuple(mean.shape) != tuple(concentration.shape) or len(mean.shape) != 1:
            raise ShapeError(
                f"mean and concentration are (d,), got {tuple(mean.shape)} and {tuple(concentration.shape)}."
            )
        if not backend.is_tracing(concentration):
            seen = backend.stop_gradient(concentration)
            low, high = (float(f(seen)) for f in (backend.xp.min, backend.xp.max))
            if low < 0 or high > MOST_CONCENTRATION:
                raise InvalidArgumentError(
                    f"concentrations are from 0 to {MOST_CONCENTRATION:g}, got {low:g} to {high:g}. For a negative one "
                    "turn the mean by pi; beyond, take DiagonalNormal with the scale 1 / sqrt(concentration)."
                )
        self._keep(mean=mean, concentration=concentration, shape=tuple(mean.shape))

    @property
    def periods(self) -> tuple[float | None, ...]:
        """A turn for each."""
        return (2 * math.pi,) * self.shape[0]

    def score_log_prob(self, z: Array) -> Array | None:
        """Return log p(z) as a function of the concentration."""
        return type(self)(get_backend(z, *self.arrays).stop_gradient(self.mean), self.concentration).log_prob(z)

    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) and its rounding bound."""
        xp, wide, d = backend.xp, widest(backend), self.shape[0]
        mean, k = (xp.astype(a, wide) for a in self.arrays)
        angle = xp.astype(z, wide) - mean
        # k (cos a - 1) = -2 k sin(a / 2)^2 has no cancellation near the maximum.
        exponent = -2 * k * xp.sin(0.5 * angle) ** 2
        nodes = xp.sin(xp.arange(NODES, dtype=wide, device=device_of(k)) * (math.pi / NODES)) ** 2
        scaled = xp.mean(xp.exp(-2 * k[:, None] * nodes), axis=1)
        constant = math.log(2 * math.pi)
        value = xp.sum(exponent, axis=1) - xp.sum(xp.log(scaled)) - d * constant
        # A rounding of the angle, which may be of many turns, changes the exponent by at most k times that.
        sizes = xp.sum(k * (xp.abs(xp.astype(z, wide)) + xp.abs(mean)) + xp.abs(exponent), axis=1)
        rounding = sizes + d * (constant + 32) + xp.sum(8 * k + xp.abs(xp.log(scaled)))
        return value, (d + 8) * unit_roundoff(backend, wide) * rounding

    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw angles (n, d) within pi of the mean."""
        backend = get_backend(like)
        xp, wide, rng = backend.xp, widest(backend), backend.generator(rng)
        with backend.full_precision():
            k = backend.stop_gradient(xp.astype(self.concentration, wide))
            root = xp.sqrt(1 + 4 * k * k)
            tau = xp.sqrt(1 + root)
            # rho of the wrapped Cauchy density, and k / rho, without the cancellation of the published form.
            rho = 2 * k * tau / ((root + 1) * (tau + math.sqrt(2)))
            ratio = (root + 1) * (tau + math.sqrt(2)) / (2 * tau)
            found = xp.zeros((n, *self.shape), dtype=wide, device=device_of(like))
            missing = found == 0
            for _ in range(ROUNDS):
                first, second = (uniform_numbers(backend, (n, *self.shape), like, rng) for _ in range(2))
                z = xp.cos(math.pi * 2 * first)
                f = (2 * rho + (1 + rho * rho) * z) / (1 + rho * rho + 2 * rho * z)
                c = 0.5 * ratio * (1 + rho * rho) - k * f
                accepted = xp.log(c) - xp.log(second) + 1 - c >= 0
                side = xp.where(first < 0.5, xp.ones_like(z), -xp.ones_like(z))
                new = side * xp.acos(xp.minimum(xp.maximum(f, -xp.ones_like(f)), xp.ones_like(f)))
                found = xp.where(accepted & missing, new, found)
                missing = missing & ~accepted
                if not backend.is_tracing(missing) and not bool(xp.any(missing)):
                    break
            return self.mean + xp.astype(found, like.dtype)
