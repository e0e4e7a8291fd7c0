"""Jobs: what is computed chunk by chunk. A job is small, can be pickled, and gives the same chunk wherever it runs."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import numpy as np

from iresnet_core.backends import backend as find_backend
from iresnet_core.backends import get_backend
from iresnet_core.errors import IResNetError
from iresnet_core.files import RowFile, digest_of
from iresnet_core.flows import Flow
from iresnet_core.parallel.held_out_rows import HeldOutRows
from iresnet_core.training import SamplePreparation, bits_per_dim, draw_samples, samples_at_once, scores

__all__ = ["Chunk", "Job", "SampleJob", "ScoreJob", "computing", "dtype_of", "rows_of_a_chunk", "seed_of"]

Chunk = dict[str, np.ndarray]  # a few named arrays with one entry for each row
_ENTRIES = 2**20  # numbers of the samples in one chunk: 8 MiB, and seconds of work for a flow of eight blocks


Result = TypeVar("Result", covariant=True)


class Job(Protocol[Result]):
    """Work in chunks 0 .. count - 1."""

    @property
    def count(self) -> int:
        """Number of the chunks."""

    def identity(self) -> dict[str, Any]:
        """Return plain data that tell this job from others; chunks of another one are not taken for its own."""

    def chunk(self, k: int) -> Result:
        """Compute chunk k."""


def rows_of_a_chunk(shape: tuple[int, ...]) -> int:
    """Return how many samples of a shape make a chunk: a whole number of the batches that `scores` takes.

    So every batch holds the same samples as without chunks, and the rounding is the same.
    """
    at_once = samples_at_once(shape)
    return at_once * max(1, _ENTRIES // int(np.prod(shape)) // at_once)


@dataclass(frozen=True)
class ScoreJob:
    """Log-densities of the rows of a file, or of a test set.

    Attributes
    ----------
    flow : Flow
        On any backend.
    source : RowFile or HeldOutRows
        The file, which every worker has to see under the same path, or the test set.
    preparation : SamplePreparation or HeldOutRows
        How its rows become samples.
    n, rows : int
        How many rows are scored, from the first, and how many make a chunk.
    size : int
        Numbers of a sample of the data, for bits per dimension.
    seed : int
        Of the noise on grey levels, and with `own_seeds` false of the probes.
    own_seeds : bool
        Whether every sample has probes of its own, as in `scores`.
    method, tol : str, float or None
        As in `Flow.log_prob`.
    """

    flow: Flow
    source: RowFile | HeldOutRows
    preparation: SamplePreparation | HeldOutRows
    n: int
    rows: int
    size: int
    seed: int = 0
    own_seeds: bool = True
    method: str = "auto"
    tol: float | None = None

    @property
    def count(self) -> int:
        """Number of the chunks."""
        return -(-self.n // self.rows)

    def identity(self) -> dict[str, Any]:
        """Return what the answer depends on."""
        return {
            "job": "score",
            "model": _digest(self.flow),
            "file": os.path.realpath(self.source.path),
            "key": self.source.key,
            "shape": list(self.source.shape),
            "changed": self.source.changed,
            "condition": self.preparation.condition,
            **{name: getattr(self, name) for name in ("n", "rows", "seed", "method", "tol")},
        }

    def chunk(self, k: int) -> Chunk:
        """Score the rows k * rows .. (k + 1) * rows - 1."""
        begin = k * self.rows
        rows = self.source.read(begin, min(begin + self.rows, self.n))
        if self.preparation.leaves_none(rows):
            return self._none()
        x, context, kept = self.preparation.of(rows, np.random.default_rng([self.seed, 5, k]), begin)
        with computing(self.flow):
            try:
                found = scores(
                    self.flow,
                    x,
                    seed=None if self.own_seeds else seed_of(self.seed, k),
                    context=context,
                    method=self.method,
                    tol=self.tol,
                )
            except IResNetError as error:
                error.add_note(f"samples are counted from row {begin} of {self.source.path}")
                raise
        places = np.arange(len(x)) if kept is None else kept
        chunk = {"sample": begin + places, **{name: getattr(found, name) for name in _SCORES}}
        if self.preparation.levels is not None:
            levels = self.preparation.levels
            chunk["bits_per_dim"] = np.array([bits_per_dim(-float(v), levels, self.size) for v in found.log_prob])
        return {**chunk, "method": np.array(found.method)}

    def _none(self) -> Chunk:
        """Return a chunk of which every row has a missing value and is left out."""
        columns: Chunk = {"sample": np.zeros(0, dtype=np.int64), **{name: np.zeros(0) for name in _SCORES}}
        return {**columns, "method": np.array("")}


_SCORES = ("log_prob", "std_error", "bias_bound")


@dataclass(frozen=True)
class SampleJob:
    """Samples of a flow; those of chunk k are drawn with a seed of its own.

    Attributes
    ----------
    flow : Flow
        On any backend.
    n, rows : int
        How many samples are drawn, and how many make a chunk.
    seed : int
        Of the latents.
    context : tuple of float, or None
        The condition of all samples.
    """

    flow: Flow
    n: int
    rows: int
    seed: int
    context: tuple[float, ...] | None = None

    @property
    def count(self) -> int:
        """Number of the chunks."""
        return -(-self.n // self.rows)

    def identity(self) -> dict[str, Any]:
        """Return what the answer depends on."""
        context = None if self.context is None else list(self.context)
        return {
            "job": "sample",
            "model": _digest(self.flow),
            "context": context,
            **{name: getattr(self, name) for name in ("n", "rows", "seed")},
        }

    def chunk(self, k: int) -> Chunk:
        """Draw the samples k * rows .. (k + 1) * rows - 1."""
        with computing(self.flow):
            drawn = draw_samples(
                self.flow,
                min(self.rows, self.n - k * self.rows),
                seed=seed_of(self.seed, k),
                context=None if self.context is None else np.array(self.context),
            )
        return drawn._asdict()


def _digest(flow: Flow) -> str:
    backend = get_backend(*flow.arrays)
    return digest_of(repr(flow), [(str(k), backend.to_numpy(a)) for k, a in enumerate(flow.arrays)])


def dtype_of(flow: Flow) -> np.dtype[Any]:
    """Return the dtype of NumPy that a flow computes in."""
    dtype: np.dtype[Any] = get_backend(*flow.arrays).to_numpy(flow.arrays[0]).dtype
    return dtype


def seed_of(seed: int, k: int) -> int:
    """Return the seed of chunk k, from a hash so that neighbouring ones share no stream."""
    return int(np.random.SeedSequence([seed, 7, k]).generate_state(1)[0])


@contextmanager
def computing(flow: Flow) -> Iterator[None]:
    """Give the backend the precision of the flow, and BLAS one thread: the workers share the cores already."""
    backend = get_backend(*flow.arrays)
    with ExitStack() as held:
        if dtype_of(flow) == np.float64:
            held.enter_context(find_backend(backend.name).full_precision())
        if find_spec("threadpoolctl") is not None:
            held.enter_context(import_module("threadpoolctl").threadpool_limits(limits=1))
        yield
