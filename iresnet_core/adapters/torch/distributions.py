"""Distributions of PyTorch as densities of the core, and the density of a base as a distribution."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import distributions as of_torch
from torch.distributions import constraints

from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError, IResNetError, ShapeError
from iresnet_core.flows import DiagonalNormal, FullNormal, NormalMixture, StudentT, Uniform, VonMises, latents

__all__ = ["LatentDistribution", "OwnDistribution", "as_density"]


class OwnDistribution:
    """A distribution of PyTorch that the core has no density for, as an object with `log_prob` and `sample`."""

    def __init__(self, distribution: of_torch.Distribution) -> None:
        self.distribution, self.event_shape = distribution, tuple(distribution.event_shape)

    def __repr__(self) -> str:
        return f"OwnDistribution({self.distribution})"

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-densities (batch,) of latents; -inf outside of the support."""
        if z.shape[0] == 0:
            return z.new_zeros(0)
        support: Any = self.distribution.support
        inside = support.check(z)
        if torch.compiler.is_compiling():  # which has one graph for all latents, and switches the validation off
            nats = self.distribution.log_prob(z)
            return torch.where(inside, nats, torch.full_like(nats, -math.inf))
        if bool(inside.all()):
            return self.distribution.log_prob(z)
        # It refuses latents that have no density, or answers NaN where its validation is off,
        # as it is in the whole process once torch.compile has run.
        some = self.distribution.sample((z.shape[0],)).to(z.dtype)
        nats = self.distribution.log_prob(torch.where(inside.reshape(-1, *[1] * (z.ndim - 1)), z, some))
        return torch.where(inside, nats, torch.full_like(nats, -math.inf))

    def sample(self, n: int, rng: Any, like: Tensor) -> Tensor:
        """Draw latents; from a seed or a generator by a state of PyTorch's global one, which is put back."""
        draw = self.distribution.rsample if self.distribution.has_rsample else self.distribution.sample
        if n == 0:  # of which PyTorch's own cannot always make a sum over the entries
            return draw((1,)).to(like.dtype)[:0]
        if rng is None:
            return draw((n,)).to(like.dtype)
        # A number of the generator is the seed.
        seed = get_backend(like).sample("gaussian", (1,), like.detach().to(torch.float64), rng)
        devices = [like.device] if like.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(seed.view(torch.int64)))
            return draw((n,)).to(like.dtype)


def as_density(distribution: of_torch.Distribution) -> tuple[Any, bool]:
    """Return a density of the core with the same parameters, or else the distribution itself in our protocol.

    The second answer is whether a parameter requires a gradient.
    """
    if distribution.batch_shape:
        batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
        raise ShapeError(
            f"the base is a batch {batch} of distributions of events {event}, where one of whole latents is needed: "
            f"torch.distributions.Independent(distribution, {len(batch)}) makes one of entries that are independent."
        )
    if _is_discrete(distribution):
        raise InvalidArgumentError(
            f"the base {distribution} takes discrete values, which have probabilities and no density; a flow needs a "
            "base of real numbers, such as torch.distributions.Normal."
        )
    inner: Any = distribution
    while isinstance(inner, of_torch.Independent):
        inner = inner.base_dist
    found: Any = None
    try:
        with torch.no_grad():
            found = _of_entries(inner) if inner is not distribution else _of_vectors(distribution)
    except IResNetError:  # beyond the range of the core's density, such as a concentration of 1e4
        found = None
    if found is None:
        return OwnDistribution(distribution), False
    return found, any(a.requires_grad for a in _parameters(distribution))


def _is_discrete(distribution: of_torch.Distribution) -> bool:
    try:
        support: Any = distribution.support
    except NotImplementedError:  # a distribution of the caller's own need not say it
        return False
    return bool(getattr(support, "is_discrete", False))


def _of_entries(inner: Any) -> Any:
    """Return the density of the core of independent entries; the exact type counts, since a subclass may differ."""
    kind = type(inner)
    if kind is of_torch.Normal:
        return DiagonalNormal(inner.loc, inner.scale)
    if kind is of_torch.StudentT and bool(torch.all(inner.df == inner.df.flatten()[0])):
        return StudentT(float(inner.df.flatten()[0]), inner.loc, inner.scale)
    if kind is of_torch.VonMises:
        return VonMises(inner.loc, inner.concentration)
    if kind is of_torch.Uniform and inner.low.ndim == 1:
        return Uniform(inner.low.tolist(), inner.high.tolist())
    return None


def _of_vectors(distribution: Any) -> Any:
    """Return the density of the core of a distribution whose entries belong together."""
    kind = type(distribution)
    if kind is of_torch.MultivariateNormal:
        return FullNormal(distribution.loc, distribution.scale_tril)
    if kind is of_torch.MixtureSameFamily and type(distribution.component_distribution) is of_torch.Independent:
        parts = distribution.component_distribution.base_dist
        if type(parts) is of_torch.Normal and type(distribution.mixture_distribution) is of_torch.Categorical:
            return NormalMixture(distribution.mixture_distribution.logits, parts.loc, parts.scale)
    return None


def _parameters(part: Any) -> list[Tensor]:
    """Return the tensors that a distribution and those inside of it are made of."""
    values = list(vars(part).values())
    inner = [_parameters(value) for value in values if isinstance(value, of_torch.Distribution)]
    return [value for value in values if isinstance(value, Tensor)] + [a for found in inner for a in found]


class LatentDistribution(of_torch.Distribution):
    """The base of a flow as a distribution of latents, with the parameters that the flow has when it is called.

    Parameters
    ----------
    flow : Flow
        The flow.
    batch_shape : tuple of int
        As many densities beside each other, all the same.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, flow: Any, batch_shape: tuple[int, ...]) -> None:
        self.flow = flow
        super().__init__(torch.Size(batch_shape), torch.Size(flow.latent_shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Latents."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LatentDistribution":
        """Return as many of them."""
        return LatentDistribution(self.flow, tuple(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw latents (*sample_shape, *batch_shape, *event_shape), differentiable as those of the base are."""
        like, shape = self.flow._like(), self._extended_shape(torch.Size(sample_shape))
        n = math.prod(shape[: len(shape) - len(self.event_shape)])
        drawn = latents(self.flow._core_base(), get_backend(like), (n, *self.event_shape), like, None)
        return drawn.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p of latents (..., *event_shape)."""
        batch = value.shape[: value.ndim - len(self.event_shape)]
        nats = self.flow._core_base().log_prob(value.reshape(-1, *self.event_shape)).to(value.dtype)
        return nats.reshape(batch).expand(torch.broadcast_shapes(batch, self.batch_shape))
