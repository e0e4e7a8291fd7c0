"""What a density of latents is, and what all of them share: the protocol, its parameters, and uniform numbers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import Copyable, require_floating, widest
from iresnet_core.errors import ShapeError

__all__ = ["LOGARITHM", "LOG_DIAGONAL", "PLAIN", "Base", "Parameter", "uniform_numbers"]


class Parameter(NamedTuple):
    """How a parameter of a density becomes an array of any numbers, which an optimiser may change, and back.

    Attributes
    ----------
    prefix : str
        What is put before the name of the parameter in that form.
    free : callable
        Takes the parameter to any numbers.
    bound : callable
        Takes them back, whatever they are.
    """

    prefix: str
    free: Callable[[Array], Array]
    bound: Callable[[Array], Array]


def _log_of_diagonal(a: Array) -> Array:
    xp = get_backend(a).xp
    diagonal = xp.eye(a.shape[0], dtype=a.dtype, device=device_of(a))
    return xp.tril(a, k=-1) + diagonal * xp.log(xp.where(diagonal > 0, a, xp.ones_like(a)))


def _exp_of_diagonal(a: Array) -> Array:
    xp = get_backend(a).xp
    diagonal = xp.eye(a.shape[0], dtype=a.dtype, device=device_of(a))
    return xp.tril(a, k=-1) + diagonal * xp.exp(diagonal * a)


PLAIN = Parameter("", lambda a: a, lambda a: a)
LOGARITHM = Parameter("log_", lambda a: get_backend(a).xp.log(a), lambda a: get_backend(a).xp.exp(a))
LOG_DIAGONAL = Parameter("log_", _log_of_diagonal, _exp_of_diagonal)


class Base(Copyable, ABC):
    """A density of latents: `log_prob` and `sample`, and which latents it is for.

    Attributes
    ----------
    arrays : tuple of array
        Its parameters, which are parameters of the flow.
    shape : tuple of int
        Shape of one latent.
    bounded : bool
        Whether it is zero somewhere, where its log-density is -inf.
    rejects : bool
        Whether it draws by rejection, and hence more random numbers in a compiled program than in an eager one.
    periods : tuple of (float or None)
        Period of every entry of a latent, of which all that differ by whole periods are one point, and None for those
        that have no period.
    """

    shape: tuple[int, ...]
    bounded = False
    rejects = False
    parameters: ClassVar[Mapping[str, Parameter]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} never changes; build another one to have another {name}.")

    def _keep(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape})"

    @property
    def named_arrays(self) -> dict[str, Array]:
        """The parameters by their names."""
        return {name: getattr(self, name) for name in self.parameters}

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The parameters."""
        return tuple(self.named_arrays.values())

    def with_arrays(self, arrays: Sequence[Array]) -> Self:
        """Return the density of the same kind with other parameters, in the order of `arrays`."""
        return type(self)(*arrays) if self.parameters else self

    def astype(self, dtype: Any) -> Self:
        """Return the density with parameters of another dtype."""
        return self.with_arrays([get_backend(a).xp.astype(a, dtype) for a in self.arrays])

    @property
    def free_names(self) -> tuple[str, ...]:
        """Names of the parameters in the form of `free`."""
        return tuple(form.prefix + name for name, form in self.parameters.items())

    @property
    def free(self) -> dict[str, Array]:
        """The parameters as arrays of any numbers, for an optimiser: logarithms of scales, means as they are."""
        forms = zip(self.free_names, self.parameters.values(), self.arrays, strict=True)
        return {name: form.free(array) for name, form, array in forms}

    def with_free(self, free: Mapping[str, Array]) -> Self:
        """Return the density with parameters in the form of `free`, whatever the numbers are."""
        forms = zip(self.free_names, self.parameters.values(), strict=True)
        return self.with_arrays([form.bound(free[name]) for name, form in forms])

    @property
    def periods(self) -> tuple[float | None, ...]:
        """The period of every entry."""
        return (None,) * math.prod(self.shape)

    def log_prob(self, z: Array) -> Array:
        """Return log p(z) (batch,) in nats, in float64, for latents z (batch, *shape)."""
        backend = get_backend(z, *self.arrays)
        require_floating(backend, z, "the latents")
        if tuple(z.shape[1:]) != self.shape:
            raise ShapeError(f"{self!r} is a density of latents of shape {self.shape}, got {tuple(z.shape[1:])}.")
        with backend.full_precision(), backend.batch_of_unknown_size(z):
            return self.density(backend, z)[0]

    def score_log_prob(self, z: Array) -> Array | None:
        """Return log p(z) (batch,) by the parameters that samples are not differentiable by; None if there are none.

        `reverse_kl` takes the gradient for these parameters by their score.
        """
        return None

    @abstractmethod
    def density(self, backend: Backend, z: Array) -> tuple[Array, Array]:
        """Return log p(z) of checked latents and a bound on its rounding error, both float64 (batch,)."""

    @abstractmethod
    def sample(self, n: int, rng: Any, like: Array) -> Array:
        """Draw latents (n, *shape) of the backend, dtype and device of `like`, differentiable by mean and scale."""

    def _gaussian(self, n: int, rng: Any, like: Array) -> Array:
        return get_backend(like).sample("gaussian", (n, *self.shape), like, rng)


def uniform_numbers(backend: Backend, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
    """Draw from [0, 1] in float64: the angle of a pair of normal numbers is uniform, on every backend."""
    xp, wide = backend.xp, widest(backend)
    pair = xp.astype(backend.sample("gaussian", (2, *shape), like, rng), wide)
    return 0.5 + xp.atan2(pair[0, ...], pair[1, ...]) / (2 * math.pi)
