"""Densities of latents, and the log-density of a sample from them and a log-determinant."""

import inspect
import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import flatten, require_floating, round_up, unit_roundoff, which_samples, widest
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError
from iresnet_core.flows.latent_density import Base
from iresnet_core.inverse import UNSTATED_ROUNDING
from iresnet_core.results import LogDet

__all__ = ["LogProb", "checked_base", "latents", "scored"]


class LogProb(NamedTuple):
    """Log-density of samples under a flow, with the errors of its log-determinant.

    Attributes
    ----------
    value : array (batch,)
        In nats.
    std_error : array (batch,)
        Standard error over the random probes.
    bias_bound : array (batch,)
        Bound on the deterministic part of the error: truncation and the rounding of the sums. The rounding of the
        latents themselves is not part of it.
    products : int array (batch,)
        Jacobian products spent on the sample.
    method : str
        Methods of the log-determinants.
    reason : str
        Why "auto" chose these methods.
    """

    value: Array
    std_error: Array
    bias_bound: Array
    products: Array
    method: str
    reason: str = ""


def checked_base(base: Any, latent_shape: tuple[int, ...]) -> Any:
    """Return a base density if it is one, of latents of this shape; refuse anything else.

    An object of the caller's own may say its `event_shape`, which is then compared.
    """
    if isinstance(base, Base):
        if base.shape != latent_shape:
            raise ShapeError(
                f"{base!r} is a density of latents of shape {base.shape}; those of the flow have {latent_shape}."
            )
        return base
    if isinstance(base, str) and base == "normal":
        return base
    if (
        not isinstance(base, str | type)
        and callable(getattr(base, "log_prob", None))
        and callable(getattr(base, "sample", None))
    ):
        _require_samples_like(base)
        said = getattr(base, "event_shape", None)
        if said is not None and tuple(said) != latent_shape:
            raise ShapeError(
                f"{base!r} is a density of latents of shape {tuple(said)}; those of the flow have {latent_shape}."
            )
        return base
    if isinstance(base, type):
        raise InvalidArgumentError(
            f"{base.__name__} is a class; a base density is an object of it, {base.__name__}(...)."
        )
    raise InvalidArgumentError(
        f"there is no base density {base!r}; there is 'normal', one of this package such as DiagonalNormal or StudentT "
        "(`named_base` makes those of a name, 'student-t' say), or an object with log_prob(z) and sample(n, rng, like)."
    )


def _require_samples_like(base: Any) -> None:
    """Refuse a density of another library, which draws samples by a method with other arguments."""
    try:
        inspect.signature(base.sample).bind(1, None, None)
    except TypeError:
        raise InvalidArgumentError(
            f"the base {type(base).__name__} has a method sample that does not take (n, rng, like). A distribution of "
            "PyTorch is taken by the Flow of iresnet_core.adapters.torch; others need an object around them."
        ) from None
    except ValueError:  # a method of C, without a signature
        return


def latents(base: Any, backend: Backend, shape: tuple[Any, ...], like: Array, rng: Any) -> Array:
    """Draw latents of this shape (n, ...) from a base density."""
    if isinstance(base, str):
        return backend.sample("gaussian", shape, like, rng)
    z = base.sample(shape[0], rng, like)
    get_backend(like, z)
    drawn, known = z.shape[0] if len(z.shape) else 0, backend.knows_size
    if tuple(z.shape)[1:] != tuple(shape)[1:] or (known(shape[0]) and known(drawn) and drawn != shape[0]):
        raise ShapeError(f"the base density drew latents of shape {tuple(z.shape)}, and the flow takes {shape}.")
    return backend.xp.astype(z, like.dtype, copy=False)


def scored(backend: Backend, z: Array, logdet: LogDet, base: Any = "normal") -> LogProb:
    """Return the log-density of samples with the latents z (batch, ...) and the log-determinant at them.

    Outside of the support of a base that is zero somewhere it is -inf, without error.
    """
    xp, wide = backend.xp, widest(backend)
    nats, base_rounding = _log_base(backend, base, z)
    value = xp.astype(logdet.value, wide) + nats
    dtype = logdet.value.dtype
    inside = nats > -math.inf
    zero_somewhere = not isinstance(base, str) and getattr(base, "bounded", True)
    _require_representable(backend, xp.where(inside, value, xp.zeros_like(value)) if zero_somewhere else value, dtype)
    own = unit_roundoff(backend, dtype) + 4 * unit_roundoff(backend, wide)
    rounding = base_rounding + own * xp.where(inside, xp.abs(value), xp.zeros_like(value))
    return LogProb(
        xp.astype(value, dtype),
        logdet.std_error,
        backend.stop_gradient(round_up(backend, xp.astype(logdet.bias_bound, wide) + rounding, dtype)),
        logdet.products,
        logdet.method,
        logdet.reason,
    )


def _log_base(backend: Backend, base: Any, z: Array) -> tuple[Array, Array]:
    """Return the log-density of latents and a bound on its rounding, both float64 (batch,).

    A density of the caller's own is taken to be right to 16 units in the last place of its dtype.
    """
    if isinstance(base, str):
        return _log_normal(backend, z)
    if isinstance(base, Base):
        return base.density(backend, z)
    nats = base.log_prob(z)
    get_backend(z, nats)
    require_floating(backend, nats, "log_prob of the base density")
    if tuple(nats.shape) != (z.shape[0],):
        raise ShapeError(
            f"log_prob of the base density has one entry for each of the {z.shape[0]} latents, got shape "
            f"{tuple(nats.shape)}. A density of single entries needs a sum over them (torch.distributions.Independent)."
        )
    value, xp = backend.xp.astype(nats, widest(backend)), backend.xp
    # Both NaN and +inf are not below it; -inf is what a density has outside of its support.
    good = value < math.inf
    if not backend.is_tracing(value) and not bool(xp.all(good)):
        raise NonFiniteError(
            f"log_prob of the base density is NaN or +inf at the latent of {which_samples(backend, good)}."
        )
    finite = xp.where(value > -math.inf, xp.abs(value), xp.zeros_like(value))
    return value, UNSTATED_ROUNDING * unit_roundoff(backend, nats.dtype) * finite


def _log_normal(backend: Backend, z: Array) -> tuple[Array, Array]:
    """Return log N(z; 0, I) and a bound on its rounding, both float64 (batch,)."""
    xp, wide = backend.xp, widest(backend)
    size = math.prod(z.shape[1:])
    squares = xp.sum(flatten(xp, xp.astype(z, wide)) ** 2, axis=1)
    constant = 0.5 * size * math.log(2 * math.pi)
    return -0.5 * squares - constant, (size + 4) * unit_roundoff(backend, wide) * (squares + constant)


def _require_representable(backend: Backend, log_prob: Array, dtype: Any) -> None:
    """Refuse float64 log-densities (batch,) that are below the range of a dtype; programs look at no value."""
    if backend.is_tracing(log_prob):
        return
    representable = backend.xp.abs(log_prob) <= float(backend.xp.finfo(dtype).max)
    if not bool(backend.xp.all(representable)):
        raise NonFiniteError(
            f"the log-density of {which_samples(backend, representable)} is below the range of {dtype}. Look at these "
            "data, which are far from all that the flow describes."
        )
