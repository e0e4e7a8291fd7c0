"""Log-densities and samples of a flow as Dask arrays, with their errors."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed

from iresnet_core.determinant import uses_own_seeds
from iresnet_core.errors import DtypeError, InvalidArgumentError, IResNetError, ShapeError, UnknownArrayError
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
        As in `Flow.log_prob`, but `rng` and `noise`, in place of which there is `seed`.

    Raises
    ------
    ShapeError
        If the samples have another shape than those of the flow, or the conditions are not as many.
    UnknownArrayError, DtypeError
        If `x` or `context` is no Dask array of real numbers.
    InvalidArgumentError
        If `seed` is negative, or an option is one of a single call.
    """
    _require_array(x, "x")
    if given := sorted({"rng", "noise"} & options.keys()):
        raise InvalidArgumentError(f"{given[0]} is of a single call; every block has probes of its own, see `seed`.")
    if seed is not None:
        _require_whole(seed, "seed", 0)
    if tuple(x.shape[1:]) != flow.event_shape:
        raise ShapeError(f"the flow has samples of shape {flow.event_shape}, got an array of shape {x.shape}.")
    if seed is None and not uses_own_seeds(options):  # type: ignore[arg-type]
        seed = 0
    x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
    held = delayed(flow, pure=True)
    blocks = x.to_delayed().ravel()
    under: Any = [None] * len(blocks)
    if context is not None:
        _require_array(context, "context")
        if context.ndim != 2 or not (context.shape[0] == x.shape[0] or math.isnan(x.shape[0] + context.shape[0])):
            raise ShapeError(f"context has shape {context.shape}, expected a row for each of {x.shape[0]} samples.")
        under = context.rechunk({0: x.chunks[0], 1: -1}).to_delayed().ravel()
    columns = [
        da.from_delayed(
            delayed(_scored)(held, block, own, None if seed is None else seed_of(seed, k), options, k), (3, rows), float
        )
        for k, (block, own, rows) in enumerate(zip(blocks, under, x.chunks[0], strict=True))
    ]
    return DaskScores(*da.concatenate(columns, axis=1))


def sample(
    flow: Flow, n: int, *, chunk: int | None = None, seed: int = 0, context: Sequence[float] | None = None
) -> DaskSamples:
    """Draw n samples in blocks of `chunk`; block k has a seed of its own, made from `seed` and k.

    A conditional flow draws all of them under one `context`, which has as many numbers as its conditions.

    Raises
    ------
    InvalidArgumentError
        If n or `chunk` is below 1, `seed` is negative, or a context is missing or has another length.
    """
    rows = rows_of_a_chunk(flow.event_shape) if chunk is None else chunk
    for value, name, least in ((n, "n", 1), (rows, "chunk", 1), (seed, "seed", 0)):
        _require_whole(value, name, least)
    own = None if context is None else tuple(float(value) for value in context)
    if (0 if own is None else len(own)) != (flow.context_features or 0):
        raise InvalidArgumentError(
            f"context has {0 if own is None else len(own)} numbers; a condition of this flow has "
            f"{flow.context_features or 0}."
        )
    job = SampleJob(flow, n, rows, seed, own)
    held = delayed(job, pure=True)
    values, bounds = [], []
    for k in range(job.count):
        drawn = delayed(_drawn)(held, k)
        size = min(rows, n - k * rows)
        values.append(da.from_delayed(drawn["value"], (size, *flow.event_shape), dtype_of(flow)))
        bounds.append(da.from_delayed(drawn["error_bound"], (size,), float))
    return DaskSamples(da.concatenate(values), da.concatenate(bounds))


def _scored(
    flow: Flow, x: np.ndarray, context: np.ndarray | None, seed: int | None, options: dict[str, Any], block: int
) -> np.ndarray:
    if not math.prod(x.shape):
        return np.zeros((3, 0))
    with computing(flow):
        try:
            found = scores(flow, x, seed=seed, context=context, **options)
        except IResNetError as error:
            error.add_note(f"samples are counted in block {block} of the Dask array")
            raise
    return np.stack([found.log_prob, found.std_error, found.bias_bound])


def _require_whole(value: Any, name: str, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise InvalidArgumentError(f"{name} must be a whole number from {least} on, got {value!r}.")


def _require_array(array: Any, name: str) -> None:
    if not isinstance(array, da.Array):
        raise UnknownArrayError(
            f"{name} is {type(array).__name__}, expected a Dask array; `dask.array.from_array` makes one of an array."
        )
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{name} has dtype {array.dtype}, expected real numbers.")
    if isinstance(array._meta, np.ma.MaskedArray):
        raise InvalidArgumentError(f"{name} has masked values; `dask.array.ma.filled` puts numbers in their place.")


def _drawn(job: SampleJob, k: int) -> dict[str, np.ndarray]:
    return job.chunk(k)
