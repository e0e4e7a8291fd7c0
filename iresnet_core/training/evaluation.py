"""Scores and samples of an exported flow, chunk by chunk on any backend, as NumPy arrays with their errors."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import numpy as np

from iresnet_core.backends import get_backend
from iresnet_core.determinant import LogDetOptions, uses_own_seeds
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError
from iresnet_core.flows import Flow, Standardize
from iresnet_core.training.data_spread import require_spread

__all__ = [
    "MeanScore",
    "Samples",
    "Scores",
    "draw_samples",
    "mean_score",
    "merged_means",
    "preimages",
    "samples_at_once",
    "scores",
    "transformed",
]

Progress = Callable[[int, int], None]
CHUNK_ENTRIES = 200_000  # of the samples of one chunk
_MOST_NUMBERS = 2**31  # of a draw, which is held in memory


class Scores(NamedTuple):
    """Log-densities of samples, in nats.

    Attributes
    ----------
    log_prob, std_error, bias_bound : float64 array (n,)
        The value, its standard error over the random probes, and the bound on its deterministic error.
    method : str
        How the log-determinants were computed.
    """

    log_prob: np.ndarray
    std_error: np.ndarray
    bias_bound: np.ndarray
    method: str


class MeanScore(NamedTuple):
    """Mean log-density, as an estimate of its expectation under the distribution of the data.

    Attributes
    ----------
    mean : float
        In nats.
    sampling_error : float
        Standard error over the samples; the noise of the probes is part of it.
    probe_error : float
        The part that the probes alone make up.
    bias_bound : float
        Bound on the deterministic error.
    n : int
        Number of samples.
    """

    mean: float
    sampling_error: float
    probe_error: float
    bias_bound: float
    n: int


class Samples(NamedTuple):
    """Samples of a flow.

    Attributes
    ----------
    value : array (n, *event_shape)
        In the dtype of the flow.
    error_bound : float64 array (n,)
        Certified distance to the exact preimages of the latents.
    round_trip : float64 array (n,)
        Distance of the flow's value at the samples to the latents that they were made from, as computed.
    error_estimate : float64 array (n,)
        The distance that `error_bound` bounds, to first order.
    """

    value: np.ndarray
    error_bound: np.ndarray
    round_trip: np.ndarray
    error_estimate: np.ndarray


def scores(
    flow: Flow,
    x: np.ndarray,
    *,
    seed: int | None = None,
    progress: Progress | None = None,
    context: np.ndarray | None = None,
    **options: Any,
) -> Scores:
    """Return the log-density of every sample.

    Parameters
    ----------
    flow : Flow
        On any backend; `x` is converted to its dtype.
    x : array (n, *event_shape)
        Samples as the model takes them.
    seed : int, optional
        Seed of the probes; by default every sample has its own, so that its score does not depend on the others, but
        for answers that draw the number of their products ("roulette", `unbiased`): these take 0.
    progress : callable, optional
        Called with the number of samples done and that of all.
    context : array (n, features), optional
        Their conditions.
    **options
        As in `Flow.log_prob`.

    Raises
    ------
    ShapeError
        If `x` is empty or of another shape.
    NonFiniteError
        If `x` holds NaN or infinity, or a log-density overflows.
    DataFileError
        If `x` loses its spread in the dtype of the flow.
    """
    if not len(x):
        raise ShapeError("there is no sample to score.")
    backend = get_backend(*flow.arrays)
    if seed is None and not uses_own_seeds(cast(LogDetOptions, options)):
        seed = 0
    parts: list[list[np.ndarray]] = []
    done = 0
    for k, chunk in enumerate(_chunks(flow, x)):
        if seed is not None:
            options["rng"] = _seed(seed, k)
        try:
            own = None if context is None else _contexts(flow, context[done : done + len(chunk)])
            done += len(chunk)
            result = flow.log_prob(_on_backend(flow, chunk), own, **options)
        except NonFiniteError as error:
            if k:
                error.add_note(f"the batch begins with sample {sum(map(len, (part[0] for part in parts)))} of {len(x)}")
            raise
        parts.append(
            [backend.to_numpy(a).astype(np.float64) for a in (result.value, result.std_error, result.bias_bound)]
        )
        if progress is not None:
            progress(min(len(x), sum(len(part[0]) for part in parts)), len(x))
    log_prob, std_error, bias_bound = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Scores(log_prob, std_error, bias_bound, result.method)


def mean_score(found: Scores) -> MeanScore:
    """Return the mean of scores with its errors.

    Examples
    --------
    >>> import numpy as np
    >>> mean_score(Scores(np.array([-1.0, -3.0]), np.zeros(2), np.zeros(2), "exact")).mean
    -2.0
    """
    n = len(found.log_prob)
    return MeanScore(
        mean=float(np.mean(found.log_prob)),
        sampling_error=float(np.std(found.log_prob, ddof=1)) / math.sqrt(n) if n > 1 else math.inf,
        probe_error=float(np.sqrt(np.sum(found.std_error**2))) / n,
        bias_bound=float(np.mean(found.bias_bound)),
        n=n,
    )


def merged_means(parts: Iterable[MeanScore]) -> MeanScore:
    """Return the mean of all samples from the means of parts of them, of which there is at least one.

    Sums of squares are merged about the means (Chan, Golub and LeVeque 1983), so that none cancels.

    Examples
    --------
    >>> import numpy as np
    >>> zeros = np.zeros(2)
    >>> halves = [mean_score(Scores(np.array(x), zeros, zeros, "exact")) for x in ([-1.0, -3.0], [-2.0, -6.0])]
    >>> merged_means(halves).mean
    -3.0
    """
    n, mean, squares, of_probes, bias = 0, 0.0, 0.0, 0.0, 0.0
    for part in parts:
        own = part.sampling_error**2 * part.n * (part.n - 1) if part.n > 1 else 0.0
        away, total = part.mean - mean, n + part.n
        squares += own + away**2 * n * part.n / total
        mean += away * part.n / total
        of_probes += (part.probe_error * part.n) ** 2
        bias += part.bias_bound * part.n
        n = total
    return MeanScore(
        mean=mean,
        sampling_error=math.sqrt(squares / (n * (n - 1))) if n > 1 else math.inf,
        probe_error=math.sqrt(of_probes) / n,
        bias_bound=bias / n,
        n=n,
    )


def draw_samples(
    flow: Flow,
    n: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    context: np.ndarray | None = None,
    **options: Any,
) -> Samples:
    """Draw samples; the same for a seed on every backend, up to rounding. Options as for `preimages`.

    All of them are drawn under one `context` (features,), where the flow takes conditions.

    Raises
    ------
    InvalidArgumentError
        If n is not positive, or the samples are more than 2^31 numbers.
    NotConvergedError
        As `Flow.inverse`.
    """
    if n < 1:
        raise InvalidArgumentError(f"the number of samples must be at least 1, got {n}.")
    if n * math.prod(flow.latent_shape) > _MOST_NUMBERS:
        raise InvalidArgumentError(f"{n} samples are more than 2^31 numbers; draw them in parts, with other seeds.")
    flow = flow.given(None if context is None else _contexts(flow, context))
    z = np.random.default_rng(seed).standard_normal((n, *flow.latent_shape))
    return preimages(flow, z, progress=progress, **options)


def preimages(flow: Flow, z: np.ndarray, *, progress: Progress | None = None, **options: Any) -> Samples:
    """Return the preimages of latents (n, *latent_shape) with certified bounds on their errors.

    The solves go down to the rounding of the dtype unless `options` has tolerances: a step of the solver gains a digit.
    """
    backend = get_backend(*flow.arrays)
    options = {"rtol": 0.0, "atol": 0.0, **options}
    values, bounds, distances, estimates = [], [], [], []
    for chunk in _chunks(flow, z):
        result = flow.inverse(_on_backend(flow, chunk), **options)
        values.append(backend.to_numpy(result.value))
        bounds.append(backend.to_numpy(result.error_bound).astype(np.float64))
        estimates.append(backend.to_numpy(result.error_estimate).astype(np.float64))
        back = backend.to_numpy(flow(result.value)).astype(np.float64) - chunk
        distances.append(np.linalg.norm(back.reshape(len(back), -1), axis=1))
        if progress is not None:
            progress(sum(map(len, values)), len(z))
    return Samples(*(np.concatenate(parts) for parts in (values, bounds, distances, estimates)))


def transformed(flow: Flow, x: np.ndarray) -> np.ndarray:
    """Return the latents of samples."""
    backend = get_backend(*flow.arrays)
    return np.concatenate([backend.to_numpy(flow(_on_backend(flow, chunk))) for chunk in _chunks(flow, x)])


def samples_at_once(shape: tuple[int, ...]) -> int:
    """Return how many samples of a shape are computed in one call of a flow."""
    return max(1, CHUNK_ENTRIES // math.prod(shape) // 16)


def _chunks(flow: Flow, x: np.ndarray) -> list[np.ndarray]:
    size = samples_at_once(x.shape[1:])
    return [x[i : i + size] for i in range(0, len(x), size)]


def _on_backend(flow: Flow, x: np.ndarray) -> Any:
    backend, like = get_backend(*flow.arrays), flow.arrays[0]
    cast = np.ascontiguousarray(x, dtype=backend.to_numpy(like).dtype)
    first = flow.layers[0]
    if isinstance(first, Standardize):
        shape = [1] * x.ndim
        shape[first.axis] = -1
        std = np.reshape(first.std, shape)[0]
        require_spread(x, cast.dtype.name, std, "Compute in float64: --dtype float64.")
    return backend.from_numpy(cast, like)


def _contexts(flow: Flow, context: np.ndarray) -> Any:
    """Return conditions on the backend and in the dtype of a flow."""
    backend, like = get_backend(*flow.arrays), flow.arrays[0]
    return backend.from_numpy(np.ascontiguousarray(context, dtype=backend.to_numpy(like).dtype), like)


def _seed(seed: int, k: int) -> int:
    """Seed of chunk k, from a hash so that neighbouring seeds share no stream."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0]) >> 1
