"""The test set of a run as rows that are scored chunk by chunk."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from iresnet_core.files import Table
from iresnet_core.training import (
    Dataset,
    DatasetSource,
    PreparedSamples,
    SampleLayout,
    dequantized,
    fingerprint,
    load_dataset,
)

__all__ = ["HeldOutRows"]


@dataclass(frozen=True)
class HeldOutRows:
    """The rows of a test set, and what the model makes of them: in a `ScoreJob` both source and preparation.

    It is small and can be pickled: every process loads the data of the run once, by their name or their file.

    Attributes
    ----------
    data : DatasetSource
        The data of the run.
    layout : SampleLayout
        Shapes of a sample in the data and in the model.
    levels : int or None
        Grey levels of the data.
    path : str
        Absolute path of the run, by which its chunks and messages name it.
    seed : int
        Of the noise that grey levels are dequantised with.
    key, condition : None
        A test set has one array, and its conditions are known.
    shape, changed : tuple of int, str
        Its shape, and the hash of the data.
    """

    data: DatasetSource
    layout: SampleLayout
    levels: int | None
    path: str
    seed: int
    key: None = None
    condition: None = None
    shape: tuple[int, ...] = field(init=False)
    changed: str = field(init=False)

    def __post_init__(self) -> None:
        dataset = _loaded(self.data)
        object.__setattr__(self, "shape", tuple(dataset.test.shape))
        object.__setattr__(self, "changed", fingerprint(dataset))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, begin: int, end: int) -> np.ndarray:
        """Return the rows begin .. end - 1 as they are stored."""
        rows: np.ndarray = _loaded(self.data).test[begin:end]
        return rows

    def of(self, rows: np.ndarray | Table, rng: np.random.Generator, first: int | None = None) -> PreparedSamples:
        """Return the samples of rows from number `first` on.

        The noise of a row is the same however the rows are parted, and that of `iresnet score` without chunks, so that
        `rng`, which belongs to the chunk, is not drawn from: the generator of PCG64 is moved on to the row instead.
        """
        assert isinstance(rows, np.ndarray)
        begin = first or 0
        noise = np.random.PCG64(np.random.SeedSequence([self.seed, 5]))
        noise.advance(begin * int(np.prod(self.shape[1:])))
        x = self.layout.to_model(dequantized(rows, self.levels, np.random.Generator(noise)))
        contexts = _loaded(self.data).contexts
        return PreparedSamples(x, None if contexts is None else contexts[2][begin : begin + len(rows)], None)

    def leaves_none(self, rows: np.ndarray | Table) -> bool:
        """Return False: rows with missing values were left out, or filled, when the data were loaded."""
        return False


@lru_cache(maxsize=1)
def _loaded(source: DatasetSource) -> Dataset:
    return load_dataset(source)
