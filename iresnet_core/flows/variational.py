"""Reverse KL and importance weights: what samples with their log-densities are good for.

A flow of turned residual blocks (`Inverted`) samples by evaluation: a step of reverse KL then takes what a step of
maximum likelihood takes with ordinary blocks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import which_samples, widest
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError
from iresnet_core.flows.bases import LogProb
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.maximum_likelihood import part_of
from iresnet_core.flows.sampling import drawn
from iresnet_core.results import Inverse

__all__ = ["ImportanceWeights", "importance_weights", "reverse_kl"]

Target = Callable[[Array], Array]


class ImportanceWeights(NamedTuple):
    """Samples of a flow, weighted so that they stand for a target density.

    Attributes
    ----------
    samples : Inverse
        The samples; `samples.value` is (n, *event_shape).
    log_prob : LogProb
        Log-densities of the flow, with their errors, which are those of the log-weights as well.
    log_weights : array (n,)
        log target - log q.
    weights : array (n,)
        Normalised: they add up to one.
    effective_sample_size : array ()
        1 / sum(weights^2), between 1 and n (Kish 1965): so many samples of the target have the variance that weighted
        means have, to first order.
    log_evidence : array ()
        log Z, the logarithm of the mean of the weights before normalisation: Z is unbiased.
    std_error : array ()
        Standard error of log Z to first order, sqrt((n / ESS - 1) / (n - 1)).
    """

    samples: Inverse
    log_prob: LogProb
    log_weights: Array
    weights: Array
    effective_sample_size: Array
    log_evidence: Array
    std_error: Array


def reverse_kl(
    flow: Flow,
    target: Target,
    n: int,
    *,
    context: Array | None = None,
    rng: Any = None,
    like: Array | None = None,
    share: float | None = 1,
    **options: Any,
) -> Array:
    """Return the mean of ``log q(x) - log target(x)`` over n samples x of the flow, as an array ().

    With a target that is known up to a factor Z it estimates KL(q || p) - log Z. The gradient is the pathwise one: the
    samples are functions of the parameters. Those of a base that they are no smooth function of, the weights of
    `NormalMixture` and the concentration of `VonMises`, have the score-function gradient with a leave-one-out baseline,
    unbiased but of more noise (Kool, van Hoof and Welling 2019).

    Parameters
    ----------
    flow : Flow
        The flow. Of `Inverted` blocks a step costs as much as one of maximum likelihood; of ordinary ones every sample
        takes a solution, and another on the way back.
    target : callable
        Takes samples (n, *event_shape) of the flow's backend and returns their log-densities (n,), differentiable.
    n : int
        The number of samples.
    context : array (n, features), or (features,) for all samples
        As in `Flow.sample`.
    rng : None, int or the backend's own generator
        Source of the latents and the probes.
    like : array, optional
        As in `Flow.sample`.
    share : float, optional
        Part of the samples whose log-determinants are taken and stand for all, as in `training_loss`. By default all of
        them, which takes a seventh longer with dense blocks and halves the error of a gradient; None is the default
        share of `training_loss`, for images.
    **options
        As in `Flow.inverse` and `Flow.log_prob`; errors are not computed.

    Raises
    ------
    NonFiniteError
        If the target or the flow has no finite log-density at a sample, outside of compiled programs.
    ShapeError, MixedBackendsError
        If the target returns anything but one number per sample, or arrays of another backend.
    InvalidArgumentError
        If there is no such option, or n is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Chain, Dense, Flow, Inverted, ResidualBlock
    >>> block = ResidualBlock(Chain([Dense(0.5 * np.eye(2))]))  # samples are 1.5 z
    >>> flow = Flow([Inverted(block)], event_shape=(2,))
    >>> loss = reverse_kl(flow, lambda x: -0.5 * np.sum(x**2, axis=1) / 1.5**2, 1000, rng=0)
    >>> bool(abs(loss + np.log(2 * np.pi) + 2 * np.log(1.5)) < 1e-12)  # it is the density itself, and -log Z is left
    True
    """
    like, backend, count = flow._drawing(n, like)
    if not backend.knows_size(count) or count < 1:
        raise InvalidArgumentError(f"reverse_kl takes a mean over samples and needs n >= 1, got {n!r}.")
    rng = backend.generator(rng)
    z = flow._latents(backend, count, like, rng)
    part = part_of(backend, count, math.prod(flow.latent_shape), share)
    found = drawn(flow, z, context, {"errors": False, **options}, rng=rng, part=part)
    x, nats = found.samples.value, found.log_prob.value
    log_target = _of_target(backend, target, x)
    integrand = nats - backend.xp.astype(log_target, nats.dtype, copy=False)
    return backend.xp.mean(integrand) + _score_term(backend, flow.base, z, integrand, count)


def _score_term(backend: Backend, base: Any, z: Array, integrand: Array, n: int) -> Any:
    """Return zero, with the gradient for the parameters that latents (n, ...) of the base are not differentiable by.

    The integrand without the mean of the others has the same expectation times the score, which is zero on average. A
    base of the caller's own may have a `score_log_prob(z)` too.
    """
    found = getattr(base, "score_log_prob", None)
    logs = None if found is None else found(backend.stop_gradient(z))
    if logs is None:
        return 0.0
    stopped = backend.stop_gradient(integrand)
    away = stopped if n == 1 else (stopped - backend.xp.mean(stopped)) * (n / (n - 1))
    return backend.xp.mean(away * backend.xp.astype(logs - backend.stop_gradient(logs), away.dtype, copy=False))


def importance_weights(
    flow: Flow,
    target: Target,
    n: int,
    *,
    context: Array | None = None,
    rng: Any = None,
    like: Array | None = None,
    **options: Any,
) -> ImportanceWeights:
    """Return n samples of a flow with the weights target / q, which make of them samples of the target.

    Parameters
    ----------
    flow, target, context, rng, like, **options
        As in `reverse_kl`; errors are computed. The target may be -inf where there is no mass. Log-determinants with
        noise make Z too large by about half its variance: see `log_prob.std_error`, and pass ``method="exact"`` or a
        `tol` where it counts.
    n : int
        How many samples, at least 2.

    Raises
    ------
    NonFiniteError
        If the target is NaN or +inf at a sample, or -inf at all of them.
    Others
        As `reverse_kl`.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Chain, Dense, Flow, Inverted, ResidualBlock
    >>> flow = Flow([Inverted(ResidualBlock(Chain([Dense(0.5 * np.eye(2))])))], event_shape=(2,))
    >>> found = importance_weights(flow, lambda x: -0.5 * np.sum(x**2, axis=1), 2000, rng=0)
    >>> bool(abs(found.log_evidence - np.log(2 * np.pi)) < 4 * found.std_error)
    True
    >>> bool(1000 < found.effective_sample_size < 2000)
    True
    """
    like, backend, count = flow._drawing(n, like)
    if not backend.knows_size(count) or count < 2:
        raise InvalidArgumentError(f"importance_weights needs n >= 2 samples, got {n!r}.")
    rng = backend.generator(rng)
    z = flow._latents(backend, count, like, rng)
    found = drawn(flow, z, context, options, rng=rng)
    xp, wide = backend.xp, widest(backend)
    with backend.full_precision():
        log_target = _of_target(backend, target, found.samples.value, empty=True)
        logs = xp.astype(log_target, wide) - xp.astype(found.log_prob.value, wide)
        largest = xp.max(logs)
        if not backend.is_tracing(logs) and not bool(xp.isfinite(largest)):
            raise NonFiniteError("the target is -inf at all samples: the flow and it do not overlap.")
        relative = xp.exp(logs - largest)
        total = xp.sum(relative)
        weights = relative / total
        size = 1 / xp.sum(weights**2)
        # Rounding may leave n / ESS a little below 1.
        excess = xp.maximum(count / size - 1, xp.zeros_like(size))
        return ImportanceWeights(
            samples=found.samples,
            log_prob=found.log_prob,
            log_weights=logs,
            weights=weights,
            effective_sample_size=size,
            log_evidence=largest + xp.log(total / count),
            std_error=xp.sqrt(excess / (count - 1)),
        )


def _of_target(backend: Backend, target: Target, x: Array, *, empty: bool = False) -> Array:
    """Return the log-densities (n,) of a target, checked; `empty` allows -inf."""
    if not callable(target):
        raise InvalidArgumentError(f"the target is a function of samples, got {type(target).__name__}.")
    value = target(x)
    get_backend(x, value)
    if tuple(value.shape) != (x.shape[0],):
        raise ShapeError(
            f"the target takes samples {tuple(x.shape)} to log-densities of shape ({x.shape[0]},), one for each; got "
            f"{tuple(value.shape)}. Sum over all axes but the first."
        )
    if backend.is_tracing(value):
        return value
    xp = backend.xp
    fine = xp.isfinite(value)
    if empty:
        fine = fine | ((value < 0) & ~xp.isnan(value))
    if not bool(xp.all(fine)):
        raise NonFiniteError(
            f"the log-density of the target is not finite at {which_samples(backend, fine)} of the flow. Continue it "
            "smoothly to where the flow has samples, or map these into its support by a last layer."
        )
    return value
