"""The loss of maximum likelihood, with log-determinants of a part of the batch.

The mean of log|det| over a batch has the expectation of its mean over a random part. The values, weights and norms are
those of the whole batch, and cost what they cost in a plain network; what a part saves is products with the Jacobian
and the way back through them. The part is drawn with equal chances for all samples, so that with weights for the
samples, too, nothing is biased (Horvitz and Thompson 1952).

One sample that is far out must not destroy the weights: see `training_log_prob`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack, cast

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import (
    require_batch,
    require_floating,
    require_options,
    require_same_device,
    require_same_dtype,
    which_samples,
)
from iresnet_core.determinant import LOGDET_OPTIONS, LogDetOptions
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError
from iresnet_core.flows.condition import usable_rows
from iresnet_core.flows.flow import Flow, LogProb
from iresnet_core.flows.layer import ForwardOptions

__all__ = [
    "DEFAULT_SHARE",
    "mean_loss",
    "part_of",
    "require_share",
    "training_log_prob",
    "training_loss",
    "with_own_numbers",
    "with_part_first",
]

# Part of a batch whose log-determinants are taken. On digits and on MNIST the variance of the gradient over batches is
# that with all samples, but for some percent; with an eighth it is up to a tenth larger.
DEFAULT_SHARE = 0.25
# By default the part has as many entries at least: in few dimensions a step costs hardly less with fewer, and early in
# a training the noise counts. (Two dimensions, batches of 200: a tenth of a nat after 600 steps.) Where that would be
# half of the batch, all samples take no longer.
FEWEST_ENTRIES = 256
# Shares are multiples of 1 / 1024, in whole numbers that a compiler of programs for any batch can follow.
SHARES = 1024


class PartFirst(NamedTuple):
    """A batch in random order.

    Attributes
    ----------
    order : array (batch,) or None
        Numbers of the samples in their order; None where it is as it was.
    part : int or None
        How many of the first are taken; None for all.
    """

    order: Array | None
    part: int | None

    def of(self, backend: Backend, a: Any) -> Any:
        """Return an array (batch, ...) in the order; None for None, and what stands for all samples as it is."""
        if a is None or self.order is None or (backend.knows_size(a.shape[0]) and a.shape[0] == 1):
            return a
        return backend.xp.take(a, self.order, axis=0)

    def undone(self, backend: Backend, a: Array) -> Array:
        """Return an array (batch, ...) that has the order as it was before."""
        return a if self.order is None else backend.xp.take(a, backend.xp.argsort(self.order), axis=0)


def require_share(share: float | None) -> float | None:
    """Return a part of a batch, above 0 and at most 1, or None; refuse anything else."""
    if share is None:
        return None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise InvalidArgumentError(f"share is the part of a batch, above 0 and at most 1; got {share!r}.")
    return float(share)


def with_part_first(backend: Backend, x: Array, share: float | None, rng: Any) -> PartFirst:
    """Draw an order of the samples x (batch, ...), of which the first are to be the part; None is the default share."""
    n = x.shape[0]
    part = part_of(backend, n, math.prod(x.shape[1:]), share)
    if part is None:
        return PartFirst(None, None)
    like = backend.xp.astype(backend.xp.reshape(x, (n, -1))[:, 0], backend.xp.float32)
    return PartFirst(backend.xp.argsort(backend.sample("gaussian", (n,), like, rng)), part)


def part_of(backend: Backend, n: Any, entries: int, share: float | None) -> int | None:
    """Return how many of `n` samples with so many entries have their log-determinants taken; None for all."""
    share, fewest = require_share(share), 0
    if share is None:
        share, fewest = DEFAULT_SHARE, -(-FEWEST_ENTRIES // max(1, entries))
    known = n is not None and backend.knows_size(n)
    if share == 1 or n is None or (known and n <= max(1, 2 * fewest)):
        return None
    part: int = (n * max(1, round(share * SHARES)) + SHARES - 1) // SHARES
    return None if known and (part := max(part, fewest)) >= n else part


def training_loss(
    flow: Flow,
    x: Array,
    context: Array | None = None,
    *,
    weights: Array | None = None,
    share: float | None = None,
    **options: Unpack[LogDetOptions],
) -> Array:
    """Return what training minimises, the mean of ``-weights log p(x)`` over a batch, as an array ().

    Log-determinants are those of a random part of the batch, while latents are those of all samples. Value and gradient
    have the expectation of the mean over all, and a gradient costs about half: its noise is that of the choice of the
    batch for the most part, so that a quarter hardly adds to it.

    Parameters
    ----------
    flow : Flow
        The flow.
    x : array (batch, *event_shape)
        Samples.
    context : array (batch, features), or (features,) for all samples
        Their conditions, where the flow takes any; the loss is differentiable with respect to it and to its map.
    weights : array (batch,), optional
        Weights of the samples; default ones. The mean is not divided by theirs.
    share : float, optional
        Part of the batch whose log-determinants are taken, above 0 and at most 1; by default a quarter, and at least
        256 entries of samples, but all where that is half of the batch or more (in compiled programs for batches of any
        size a quarter).
    **options
        As in `Flow.log_prob`; errors are not computed, `rng` is the source of the order of the samples and of the
        probes, and `noise` is for the samples of the part.

    Raises
    ------
    InvalidArgumentError
        If `share` is out of its range, or an option contradicts it.
    NonFiniteError
        As `training_log_prob`.
    ShapeError, DtypeError, MixedBackendsError
        If x or the weights do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Chain, Dense, Flow, ResidualBlock
    >>> flow = Flow([ResidualBlock(Chain([Dense(0.5 * np.eye(2))]))], event_shape=(2,))
    >>> x = np.random.default_rng(0).standard_normal((8, 2))
    >>> loss, exact = training_loss(flow, x, rng=0), -np.mean(flow.log_prob(x).value)
    >>> bool(abs(loss - exact) < 1e-12)  # the log-determinant of this block is the same everywhere
    True
    """
    require_options(options, LOGDET_OPTIONS)
    backend = get_backend(x, *flow.arrays)
    require_batch(x, "x")
    options = {"errors": False, **options, "rng": backend.generator(options.get("rng"))}
    rows = flow.context_rows(x, context)
    first = with_part_first(backend, x, share, options["rng"])

    def scored(first: PartFirst) -> Array:
        own = first.of(backend, rows)
        nats = training_log_prob(flow, first.of(backend, x), first.part, context=own, **options).value
        return first.undone(backend, nats)

    return mean_loss(with_own_numbers(first, scored), weights)


def with_own_numbers(first: PartFirst, scored: Callable[[PartFirst], Array]) -> Array:
    """Return what a function makes of an order; if it refuses a sample, then by its number in the batch as given."""
    try:
        return scored(first)
    except NonFiniteError:
        if first.order is not None:
            scored(PartFirst(None, None))
        raise


def mean_loss(nats: Array, weights: Array | None) -> Array:
    """Return the mean of negative log-densities, with weights."""
    backend = get_backend(nats)
    if weights is None:
        return -backend.xp.mean(nats)
    get_backend(nats, weights)
    require_floating(backend, weights, "the weights")
    require_same_dtype(weights, "the weights", nats, "the log-densities")
    require_same_device(backend, weights, "the weights", nats, "the log-densities")
    if tuple(weights.shape) != tuple(nats.shape):
        raise ShapeError(f"weights have one entry for each of the {nats.shape[0]} samples, got {tuple(weights.shape)}.")
    return -backend.xp.mean(weights * nats)


def training_log_prob(
    flow: Flow, x: Array, part: int | None = None, *, context: Array | None = None, **options: Unpack[LogDetOptions]
) -> LogProb:
    """Return `Flow.log_prob` for a step of training, which is refused where its gradient would overflow.

    The gradient of a log-density is about as large as itself. Optimisers such as Adam keep squares of gradients: one
    that overflows stops a weight for good, and one that is infinite destroys it. So log-densities must be smaller than
    a quarter of the root of the largest number of the dtype, 4.6e18 nats in float32, which a latent of 3e9 reaches.

    A compiled program cannot raise. There such samples, and those with entries, of theirs or of their conditions, that
    are not finite or so large that the flow would overflow, or with labels that are not known, have the log-density NaN
    and no gradient: the loss says NaN, and the weights learn from the other samples of the batch.

    With `part` the log-determinants of the first samples stand for all, see `ForwardOptions`.

    Raises
    ------
    NonFiniteError
        Outside of compiled programs, with the samples.
    Others
        As `Flow.log_prob`.
    """
    backend = get_backend(x)
    xp = backend.xp
    require_options(options, LOGDET_OPTIONS)
    known = cast(ForwardOptions, options if part is None else {**options, "part": part})
    rows = flow.context_rows(x, context)
    if backend.is_tracing(x):
        small = xp.abs(x) < _largest_entry(backend, x)
        axes = tuple(range(1, x.ndim))
        usable = xp.all(small, axis=axes)
        if rows is not None:
            allowed, rows = usable_rows(backend, rows, flow.context_labels, _largest_entry(backend, x))
            usable = usable & allowed
        x = xp.where(xp.all(small, axis=axes, keepdims=True), x, xp.zeros_like(x))
        result = flow._for(x, rows)._scored(x, known)
        usable = usable & (xp.abs(result.value) < _largest_value(backend, result.value))
        return result._replace(value=xp.where(usable, result.value, xp.full_like(result.value, math.nan)))
    result = flow._for(x, rows)._scored(x, known)
    largest = _largest_value(backend, result.value)
    usable = xp.abs(result.value) < largest
    if not bool(xp.all(usable)):
        raise NonFiniteError(
            f"the log-density of {which_samples(backend, usable)} is beyond {largest:.1e} nats, so that a step of "
            "training with it would destroy the weights. Look at these data."
        )
    return result


def _largest_value(backend: Backend, log_prob: Array) -> float:
    """Return the log-density from which on squares of gradients may overflow."""
    return math.sqrt(float(backend.xp.finfo(log_prob.dtype).max)) / 4


def _largest_entry(backend: Backend, x: Array) -> float:
    """Return the entry of a sample from which on the flow may overflow, and zero times its products be NaN.

    An ActNorm of data of scale 1e-9 may come: 3e26 in float32.
    """
    info = backend.xp.finfo(x.dtype)
    return float(info.max) * (2.0**-40 if info.bits >= 32 else 1.0)
