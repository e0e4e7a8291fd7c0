"""Densities of latents other than the standard normal: fixed, or with parameters that are learned with the flow's."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import (
    flatten,
    require_finite,
    require_floating,
    require_same_dtype,
    unit_roundoff,
    widest,
)
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError
from iresnet_core.flows.latent_density import LOG_DIAGONAL, LOGARITHM, PLAIN, Base, uniform_numbers

__all__ = ["BASE_NAMES", "DiagonalNormal", "FullNormal", "NormalMixture", "StudentT", "Uniform", "named_base"]

BASE_NAMES = ("normal", "diagonal-normal", "student-t")
_DEGREES_OF_FREEDOM = 5.0  # of "student-t"; docs/benchmarks.md has what other numbers came to


def _checked(name: str, **parameters: Array) -> Backend:
    """Check parameters of a density: floating, finite, of one dtype; the scale positive."""
    arrays = list(parameters.items())
    backend = get_backend(*parameters.values())
    for label, array in arrays:
        require_floating(backend, array, label)
        require_finite(backend, array, label)
        require_same_dtype(array, label, arrays[0][1], arrays[0][0])
        if label == "scale" and not backend.is_tracing(array) and not bool(backend.xp.all(array > 0)):
            raise InvalidArgumentError(
                f"the scale of {name} must be positive, got {float(backend.xp.min(backend.stop_gradient(array))):g}."
            )
    return backend


class DiagonalNormal(Base):
    """``N(z; mean, diag(scale^2))``, entry by entry.

    Parameters
    ----------
    mean, scale : array (*shape)
        Of one shape, that of a latent; the scale is positive.

    Raises
    ------
    InvalidArgumentError, ShapeError, DtypeError, NonFiniteError
        If they do not fit each other, or a scale is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> DiagonalNormal(np.zeros(2), np.array([1.0, 2.0])).log_prob(np.zeros((1, 2))).round(6)  # -log(2 pi) - log 2
    array([-2.531024])
    """

    mean: Array
    scale: Array
    parameters = {"mean": PLAIN, "scale": LOGARITHM}  # noqa: RUF012

    def __init__(self, mean: Array, scale: Array) -> None:
        _checked(type(self).__name__, mean=mean, scale=scale)
        if tuple(mean.shape) != tuple(scale.shape) or not mean.shape:
            raise ShapeError(f"mean and scale have one shape, that of a latent; got {mean.shape} and {scale.shape}.")

        self._keep(mean=mean, scale=scale, shape=tuple(mean.shape))

    def _standard(self, backend: Backend, z: Array) -> tuple[Array, Array, Array]:
        """Return the standardised entries, a bound on their rounding errors, and log det of the scales."""
        xp, wide = backend.xp, widest(backend)
        mean, scale = (flatten(xp, xp.astype(a, wide)[None, ...]) for a in self.arrays)
        y = (flatten(xp, xp.astype(z, wide)) - mean) / scale
        return y, 3 * unit_roundoff(backend, wide) * xp.abs(y), xp.sum(xp.log(scale), axis=1)

    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) and its rounding bound."""
        y, _, logs = self._standard(backend, z)
        return _normal(backend, y, logs, backend.xp.sum(backend.xp.abs(backend.xp.log(_flat(backend, self.scale)))))

    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw mean + scale * normal numbers."""
        return self.mean + self.scale * self._gaussian(n, rng, like)


def _flat(backend: Backend, a: Array) -> Array:
    return backend.xp.reshape(backend.xp.astype(a, widest(backend)), (-1,))


def _normal(backend: Backend, y: Array, logs: Array, log_sizes: Array) -> tuple[Array, Array]:
    """Return -|y|^2 / 2 - logs - d log(2 pi) / 2 for y (batch, d), each with some roundings, and their bound."""
    xp, d = backend.xp, y.shape[-1]
    squares = xp.sum(y**2, axis=-1)
    constant = 0.5 * d * math.log(2 * math.pi)
    value = -0.5 * squares - logs - constant
    rounding = (d + 8) * unit_roundoff(backend, widest(backend)) * (squares + constant + log_sizes)
    return value, rounding + xp.zeros_like(value)


class StudentT(DiagonalNormal):
    """Student's t in every entry, ``t_df((z - mean) / scale) / scale``: tails that a contraction does not thin out.

    Parameters
    ----------
    df : float
        Degrees of freedom, positive and fixed; the fewer, the heavier the tails.
    mean, scale : array (*shape)
        As in `DiagonalNormal`.

    Notes
    -----
    Samples are those of Bailey (1994): ``sqrt(df expm1(r^2 / df)) cos(phi)`` for the polar coordinates of a pair of
    normal numbers, exact for every df. Below df = 1 some may be beyond the range of the dtype (NonFiniteError).

    Examples
    --------
    >>> import numpy as np
    >>> StudentT(1.0, np.zeros(1), np.ones(1)).log_prob(np.zeros((1, 1))).round(6)  # -log pi
    array([-1.14473])
    """

    df: float

    def __init__(self, df: float, mean: Array, scale: Array) -> None:
        number = float(df)
        if not (number > 0 and math.isfinite(number)):
            raise InvalidArgumentError(f"the degrees of freedom are a positive number, got {df!r}.")
        super().__init__(mean, scale)
        self._keep(df=number)

    def with_arrays(self, arrays: Sequence[Array]) -> Self:
        """Return the density with another mean and scale."""
        return type(self)(self.df, *arrays)

    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) and its rounding bound."""
        xp, d, half = backend.xp, math.prod(self.shape), (self.df + 1) / 2
        y, _, logs = self._standard(backend, z)
        # log(1 + a^2) = 2 log a + log(1 + a^-2) for the large, whose squares overflow.
        a = xp.abs(y) / math.sqrt(self.df)
        large = xp.where(a > 1, a, xp.ones_like(a))
        small = xp.where(a > 1, 1 / large, a)
        terms = xp.sum(2 * xp.log(large) + xp.log1p(small**2), axis=1)
        first, second, third = math.lgamma(half), math.lgamma(self.df / 2), 0.5 * math.log(self.df * math.pi)
        value = d * (first - second - third) - logs - half * terms
        sizes = d * (abs(first) + abs(second) + abs(third) + 16 * half)
        sizes = sizes + xp.sum(xp.abs(xp.log(_flat(backend, self.scale)))) + half * terms
        return value, (d + 16) * unit_roundoff(backend, widest(backend)) * sizes

    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw by pairs of normal numbers."""
        backend = get_backend(like)
        xp = backend.xp
        pair = backend.sample("gaussian", (2, n, *self.shape), like, rng)
        square = pair[0, ...] ** 2 + pair[1, ...] ** 2
        # sqrt(expm1(s)) = exp(s / 2) sqrt(1 - exp(-s)) overflows where the sample does, and its square long before.
        half = 0.5 * square / self.df
        fits = half < math.log(float(xp.finfo(like.dtype).max))
        if not backend.is_tracing(half) and not bool(xp.all(fits)):
            raise NonFiniteError(
                f"Student's t with {self.df:g} degrees of freedom has samples beyond the range of {like.dtype}: take "
                "more degrees of freedom, or a wider dtype."
            )
        size = xp.exp(half) * xp.sqrt(-self.df * xp.expm1(-2 * half))
        return self.mean + self.scale * (size * pair[0, ...] / xp.sqrt(square))


class FullNormal(Base):
    """``N(z; mean, L L^T)`` on latents (d,), with the lower triangle L of a covariance.

    Parameters
    ----------
    mean : array (d,)
        The mean.
    cholesky : array (d, d)
        L, whose diagonal is positive; what is above it is not looked at.

    Examples
    --------
    >>> import numpy as np
    >>> FullNormal(np.zeros(2), np.array([[1.0, 0.0], [0.5, 2.0]])).log_prob(np.zeros((1, 2))).round(6)
    array([-2.531024])
    """

    mean: Array
    cholesky: Array
    parameters = {"mean": PLAIN, "cholesky": LOG_DIAGONAL}  # noqa: RUF012

    def __init__(self, mean: Array, cholesky: Array) -> None:
        backend = _checked(type(self).__name__, mean=mean, cholesky=cholesky)
        if mean.ndim != 1 or tuple(cholesky.shape) != (mean.shape[0],) * 2:
            raise ShapeError(f"mean is (d,) and cholesky (d, d), got {tuple(mean.shape)}, {tuple(cholesky.shape)}.")
        _checked(type(self).__name__, scale=backend.xp.linalg.diagonal(cholesky))
        self._keep(mean=mean, cholesky=cholesky, shape=tuple(mean.shape))

    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) and its rounding bound; the inverse triangle has the error d u |L^-1| |L| |L^-1|."""
        xp, wide = backend.xp, widest(backend)
        d, u = self.shape[0], unit_roundoff(backend, wide)
        triangle = xp.tril(xp.astype(self.cholesky, wide))
        inverse = xp.linalg.inv(triangle)
        away = xp.astype(z, wide) - xp.astype(self.mean, wide)
        y = xp.matmul(away, xp.matrix_transpose(inverse))
        diagonal = xp.log(xp.linalg.diagonal(triangle))
        value, rounding = _normal(backend, y, xp.sum(diagonal), xp.sum(xp.abs(diagonal)))
        sizes = xp.sqrt(xp.sum(inverse**2)), xp.sqrt(xp.sum(triangle**2))
        off = 8 * d * u * sizes[0] * (1 + sizes[0] * sizes[1]) * xp.sqrt(xp.sum(away**2, axis=1))
        return value, rounding + off * xp.sqrt(xp.sum(y**2, axis=1)) + off**2

    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw mean + L times normal numbers."""
        xp = get_backend(like).xp
        return self.mean + xp.matmul(self._gaussian(n, rng, like), xp.matrix_transpose(xp.tril(self.cholesky)))


class NormalMixture(Base):
    """``sum_k w_k N(z; mean_k, diag(scale_k^2))``, with w the softmax of `log_weights`.

    Parameters
    ----------
    log_weights : array (k,)
        Logarithms of the weights, up to a constant.
    mean, scale : array (k, *shape)
        Of the components; the scale is positive.

    Notes
    -----
    Samples are differentiable by mean and scale, and not by the weights, for which `reverse_kl` takes the score.

    Examples
    --------
    >>> import numpy as np
    >>> base = NormalMixture(np.zeros(2), np.array([[-1.0], [1.0]]), np.ones((2, 1)))
    >>> base.log_prob(np.zeros((1, 1))).round(6)  # log N(1; 0, 1)
    array([-1.418939])
    """

    log_weights: Array
    mean: Array
    scale: Array
    parameters = {"log_weights": PLAIN, "mean": PLAIN, "scale": LOGARITHM}  # noqa: RUF012

    def __init__(self, log_weights: Array, mean: Array, scale: Array) -> None:
        _checked(type(self).__name__, log_weights=log_weights, mean=mean, scale=scale)
        shapes = [tuple(a.shape) for a in (log_weights, mean, scale)]
        if len(shapes[0]) != 1 or shapes[1] != shapes[2] or len(shapes[1]) < 2 or shapes[1][0] != shapes[0][0]:
            raise ShapeError(f"log_weights are (k,), mean and scale (k, *shape), got {', '.join(map(str, shapes))}.")
        self._keep(log_weights=log_weights, mean=mean, scale=scale, shape=shapes[1][1:])

    def score_log_prob(self, z: Array) -> Array | None:
        """Return log p(z) as a function of the weights."""
        stop = get_backend(z, *self.arrays).stop_gradient
        return type(self)(self.log_weights, stop(self.mean), stop(self.scale)).log_prob(z)

    def _log_weights(self, backend: Backend) -> Array:
        xp = backend.xp
        logs = xp.astype(self.log_weights, widest(backend))
        logs = logs - backend.stop_gradient(xp.max(logs))
        return logs - xp.log(xp.sum(xp.exp(logs)))

    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) and its rounding bound: a sum of exponentials has the largest error of its terms."""
        xp, wide = backend.xp, widest(backend)
        mean, scale = (flatten(xp, xp.astype(a, wide)) for a in (self.mean, self.scale))
        y = (flatten(xp, xp.astype(z, wide))[:, None, :] - mean) / scale
        logs = xp.log(scale)
        terms, off = _normal(backend, y, xp.sum(logs, axis=1), xp.sum(xp.abs(logs), axis=1))
        weights = self._log_weights(backend)
        terms = terms + weights
        largest = backend.stop_gradient(xp.max(terms, axis=1))
        relative = xp.exp(terms - largest[:, None])
        value = largest + xp.log(xp.sum(relative, axis=1))
        count = mean.shape[0]
        u = unit_roundoff(backend, wide) * (2 * count + 16)
        # A component that is far out has a large error and no weight.
        counts = relative > 0
        worst = xp.max(xp.where(counts, off + u * (xp.abs(terms) + xp.abs(weights)), xp.zeros_like(terms)), axis=1)
        return value, worst + u * (1 + xp.abs(largest))

    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw a component for each sample by its weight, and then a sample of that."""
        backend = get_backend(like)
        xp, rng = backend.xp, backend.generator(rng)
        chances = xp.cumulative_sum(xp.exp(self._log_weights(backend)))[:-1]
        which = xp.sum(xp.astype(uniform_numbers(backend, (n,), like, rng)[:, None] > chances, xp.int32), axis=1)
        mean, scale = (xp.take(a, which, axis=0) for a in (self.mean, self.scale))
        return mean + scale * self._gaussian(n, rng, like)


class Uniform(Base):
    """The uniform density of the box from `low` to `high`, or of the torus with these periods.

    Parameters
    ----------
    low, high : sequence of float
        Ends of the box for latents of shape (d,); numbers and no parameters.
    periodic : bool
        Whether a latent stands for all that differ from it by whole periods, as angles do. Then the density is the same
        everywhere; otherwise it is zero outside of the box, and the log-density -inf.

    Examples
    --------
    >>> import numpy as np
    >>> Uniform([0.0, 0.0], [1.0, 2.0]).log_prob(np.array([[0.5, 0.5], [0.5, 3.0]])).round(6)
    array([-0.693147,      -inf])
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    periodic: bool

    def __init__(self, low: Iterable[float], high: Iterable[float], *, periodic: bool = False) -> None:
        lows, highs = tuple(map(float, low)), tuple(map(float, high))
        if not lows or len(lows) != len(highs):
            raise ShapeError(f"low and high have one number for each entry, got {len(lows)} and {len(highs)}.")
        if not all(map(math.isfinite, (*lows, *highs))):
            raise NonFiniteError("low and high must be finite numbers.")
        if not all(a < b for a, b in zip(lows, highs, strict=True)):
            raise InvalidArgumentError(f"every low is below its high, got {lows} and {highs}.")
        self._keep(low=lows, high=highs, periodic=bool(periodic), shape=(len(lows),), bounded=not periodic)

    @property
    def periods(self) -> tuple[float | None, ...]:
        """The lengths of the torus."""
        lengths = [b - a for a, b in zip(self.low, self.high, strict=True)]
        return tuple(lengths) if self.periodic else super().periods

    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) and its rounding bound."""
        xp, wide = backend.xp, widest(backend)
        logs = [math.log(b - a) for a, b in zip(self.low, self.high, strict=True)]
        value = xp.zeros((z.shape[0],), dtype=wide, device=device_of(z)) - math.fsum(logs)
        sizes = math.fsum([abs(one) for one in logs]) + len(logs)
        rounding = xp.zeros_like(value) + 4 * unit_roundoff(backend, wide) * sizes
        if self.periodic:
            return value, rounding
        low, high = self._ends(backend, z)
        entries = xp.astype(z, wide)
        inside = xp.all((entries >= low) & (entries <= high), axis=1)
        return xp.where(inside, value, xp.full_like(value, -math.inf)), rounding

    def _ends(self, backend: Backend, like: Array) -> tuple[Array, ...]:
        xp = backend.xp
        made = (xp.asarray(list(a), dtype=widest(backend), device=device_of(like)) for a in (self.low, self.high))
        return tuple(made)

    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw; rounding to the dtype stays inside of the box."""
        backend = get_backend(like)
        xp = backend.xp
        with backend.full_precision():
            low, high = self._ends(backend, like)
            drawn = low + (high - low) * uniform_numbers(backend, (n, *self.shape), like, rng)
            return xp.astype(xp.minimum(xp.maximum(drawn, low), high), like.dtype)


def named_base(name: str, latent_shape: Sequence[int], like: Array) -> "str | DiagonalNormal":
    """Return a density of latents by its name, with mean 0 and scale 1 in every entry.

    Parameters
    ----------
    name : {"normal", "diagonal-normal", "student-t"}
        The standard normal, as which a flow takes the name itself; `DiagonalNormal`; `StudentT` with 5 degrees of
        freedom.
    latent_shape : sequence of int
        Shape of a latent.
    like : array
        The backend, the device and the dtype of the parameters.

    Raises
    ------
    InvalidArgumentError
        If there is no density of this name.

    Examples
    --------
    >>> import numpy as np
    >>> named_base("student-t", (2,), np.zeros(1)).df
    5.0
    """
    if name not in BASE_NAMES:
        raise InvalidArgumentError(
            f"there is no base density {name!r}; by name there are {', '.join(BASE_NAMES)}. Others are objects of this "
            "package such as DiagonalNormal, or of your own with log_prob(z) and sample(n, rng, like)."
        )
    if name == "normal":
        return name
    xp = get_backend(like).xp
    options = {"dtype": like.dtype, "device": device_of(like)}
    mean, scale = xp.zeros(tuple(latent_shape), **options), xp.ones(tuple(latent_shape), **options)
    return DiagonalNormal(mean, scale) if name == "diagonal-normal" else StudentT(_DEGREES_OF_FREEDOM, mean, scale)
