"""Log-densities and samples of a flow as Dask arrays, with their errors."""

import math
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed

from iresnet_core.determinant import uses_own_seeds
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows import Flow
from iresnet_core.parallel.jobs import SampleJob, computing, dtype_of, rows_of_a_chunk, seed_of
from iresnet_core.training import scores

__all__ = ["DaskSamples", "DaskScores", "log_prob", "sample"]


class DaskScores(NamedTuple):
    """Log-densities in nats.

    Attributes
    ----------
    log_prob, std_error, bias_bound : dask array (n,)
        The value, its standard error over random probes, and the bound on its deterministic error; float64.
    """

    log_prob: da.Array
    std_error: da.Array
    bias_bound: da.Array


class DaskSamples(NamedTuple):
    """Samples of a flow.

    Attributes
    ----------
    value : dask array (n, *event_shape)
        In the dtype of the flow.
    error_bound : dask array (n,)
        Certified distance to the exact preimages of the latents, float64.
    """

    value: da.Array
    error_bound: da.Array


def log_prob(
    flow: Flow, x: da.Array, *, context: da.Array | None = None, seed: int | None = None, **options: Any
) -> DaskScores:
    """Return log p(x) of every sample of a Dask array, which is computed where and when the array is.

    The flow goes to each worker once. A block is a function of its samples, and with a `seed` of its number, so that
    the answer does not depend on the workers.

    Parameters
    ----------
    flow : Flow
        On any backend that the workers have.
    x : dask array (n, *event_shape)
        Blocks along the first axis; others are joined. A block of some thousands of samples is a good size.
    context : dask array (n, features), optional
        The conditions, which are given the blocks of `x`.
    seed : int, optional
        Of the probes; by default every sample has its own.
    **options
        As in `Flow.log_prob`.

    Raises
    ------
    ShapeError
        If the samples have another shape than those of the flow.
    """
    if tuple(x.shape[1:]) != flow.event_shape:
        raise ShapeError(f"the flow has samples of shape {flow.event_shape}, got an array of shape {x.shape}.")
    if seed is None and not uses_own_seeds(options):  # type: ignore[arg-type]
        seed = 0
    x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
    held = delayed(flow, pure=True)
    blocks = x.to_delayed().ravel()
    under: Any = [None] * len(blocks)
    if context is not None:
        under = context.rechunk({0: x.chunks[0], 1: -1}).to_delayed().ravel()
    columns = [
        da.from_delayed(
            delayed(_scored)(held, block, own, None if seed is None else seed_of(seed, k), options), (3, rows), float
        )
        for k, (block, own, rows) in enumerate(zip(blocks, under, x.chunks[0], strict=True))
    ]
    return DaskScores(*da.concatenate(columns, axis=1))


def sample(flow: Flow, n: int, *, chunk: int | None = None, seed: int = 0) -> DaskSamples:
    """Draw n samples in blocks of `chunk`; block k has a seed of its own, made from `seed` and k.

    Raises
    ------
    InvalidArgumentError
        If n or `chunk` is below 1.
    """
    rows = rows_of_a_chunk(flow.event_shape) if chunk is None else chunk
    if n < 1 or rows < 1:
        raise InvalidArgumentError(f"n and chunk must be at least 1, got n={n} and chunk={chunk}.")
    job = SampleJob(flow, n, rows, seed)
    held = delayed(job, pure=True)
    values, bounds = [], []
    for k in range(job.count):
        drawn = delayed(_drawn)(held, k)
        size = min(rows, n - k * rows)
        values.append(da.from_delayed(drawn["value"], (size, *flow.event_shape), dtype_of(flow)))
        bounds.append(da.from_delayed(drawn["error_bound"], (size,), float))
    return DaskSamples(da.concatenate(values), da.concatenate(bounds))


def _scored(
    flow: Flow, x: np.ndarray, context: np.ndarray | None, seed: int | None, options: dict[str, Any]
) -> np.ndarray:
    if not math.prod(x.shape):
        return np.zeros((3, 0))
    with computing(flow):
        found = scores(flow, x, seed=seed, context=context, **options)
    return np.stack([found.log_prob, found.std_error, found.bias_bound])


def _drawn(job: SampleJob, k: int) -> dict[str, np.ndarray]:
    return job.chunk(k)
