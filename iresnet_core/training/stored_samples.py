"""Samples to train on that stay in their file, which is read in shuffled blocks: for data larger than memory.

A file is cut into blocks of consecutive rows. Every epoch goes through the blocks in a random order; as many of them as
the memory takes at once are read and their rows shuffled together. So the order is a function of the seed and the step,
and a training that was interrupted goes on with the same samples.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, NonFiniteDataError, ShapeError
from iresnet_core.files import RowFile, Table, as_table, open_rows
from iresnet_core.training.sample_arrays import as_samples
from iresnet_core.training.table_columns import TableColumns

__all__ = ["FEWEST", "USUAL_MEMORY", "OpenedSamples", "ShuffledBlocks", "StoredSamples", "open_stored"]

USUAL_MEMORY = 1024  # MiB
_BLOCKS = 32  # of one buffer, so that neighbours in the file, which may be alike, come apart
FEWEST = 10  # samples, which can be split
_LEAST_BLOCKS = 8  # of one buffer, below which samples would not be shuffled
_LEAST_SAMPLES = 500  # of one buffer, from which the data are known


@dataclass(frozen=True, eq=False)
class StoredSamples:
    """The rows of a file that are trained on.

    Attributes
    ----------
    file : RowFile
        The file.
    levels : int or None
        Grey levels of its samples.
    columns : TableColumns or None
        The columns of a table that are used.
    event_shape, dtype : tuple of int, str
        Of a sample, as it is held in memory.
    starts : array of int (blocks + 1,)
        The first row of every block, and the number of all rows.
    room : int
        Samples that are held at once.
    held_out : array of int
        The rows, in increasing order, that are not trained on.
    """

    file: RowFile
    levels: int | None
    columns: TableColumns | None
    event_shape: tuple[int, ...]
    dtype: str
    starts: np.ndarray
    room: int
    held_out: np.ndarray

    def __len__(self) -> int:
        return len(self.file) - len(self.held_out)

    @cached_property
    def counts(self) -> np.ndarray:
        """How many rows of each block are trained on."""
        held = np.searchsorted(self.held_out, self.starts)
        counts: np.ndarray = np.diff(self.starts) - np.diff(held)
        return counts

    def numbers(self, block: int) -> np.ndarray:
        """Return the numbers of the rows of a block that are trained on."""
        begin, end = map(int, self.starts[block : block + 2])
        low, high = np.searchsorted(self.held_out, (begin, end))
        numbers: np.ndarray = np.delete(np.arange(begin, end), self.held_out[low:high] - begin)
        return numbers

    def block(self, block: int) -> np.ndarray:
        """Return the samples (n, *event_shape) of a block that are trained on.

        Raises
        ------
        DataFileError, ShapeError, NonFiniteDataError
            If the rows are no samples; the message says which.
        """
        begin, end = map(int, self.starts[block : block + 2])
        found = self.samples(self.file.read(begin, end), begin)
        trained: np.ndarray = found[self.numbers(block) - begin]
        return trained

    def shuffled(self, blocks: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the samples of some blocks in one array, the i-th of them at places[i].

        Memory: that array and one block.
        """
        found, done = np.empty((len(places), *self.event_shape), dtype=self.dtype), 0
        for block in blocks:
            own = self.block(int(block))
            found[places[done : done + len(own)]] = own
            done += len(own)
        return found

    def samples(self, rows: np.ndarray | Table, begin: int) -> np.ndarray:
        """Return rows of the file, the first of which has the number `begin`, as samples."""
        name = f"{self.file.path}, counted from row {begin}"
        if self.columns is None:
            array = _as_array(rows)
            self._require_finite(array, begin)
            return as_samples(array, name, self.levels)[0].astype(self.dtype, copy=False)
        values = self.columns.values_of(as_table(rows), name)
        self._require_finite(values, begin)
        return self.columns.imputed(values)

    def _require_finite(self, values: np.ndarray, begin: int) -> None:
        """Refuse NaN, unless medians are put in, and infinity; the message names the row of the file."""
        if values.dtype.kind != "f":
            return
        imputes = self.columns is not None and self.columns.missing == "impute"
        bad = np.argwhere(np.isinf(values) if imputes else ~np.isfinite(values))
        if not len(bad):
            return
        row, *place = map(int, bad[0])
        kind = "NaN" if np.isnan(values[tuple(bad[0])]) else "infinity"
        where = f"column {self.columns.label(place[0])}" if self.columns is not None else f"at {tuple(place)}"
        way = "" if imputes or kind == "infinity" or self.columns is None else " A new run can use --missing impute."
        raise NonFiniteDataError(
            f"{self.file.path}: {kind} in row {begin + row}, {where}. Mend the file; the same command then goes on "
            f"from the last checkpoint, if there is one.{way}"
        )


class OpenedSamples(NamedTuple):
    """What `open_stored` returns.

    Attributes
    ----------
    stored : StoredSamples
        The samples to train on.
    train, validation, test : array (n, *event_shape)
        Some of the samples to train on, and those that are held out.
    """

    stored: StoredSamples
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def open_stored(
    path: Path,
    memory: int,
    held_out: float,
    seed: int,
    *,
    key: str | None = None,
    levels: int | None = None,
    drop: str | None = None,
    missing: str | None = None,
) -> OpenedSamples:
    """Open a .npy, .zarr or .parquet file, or a folder of .parquet files, whose samples are not held in memory.

    A random part of the blocks is read. A tenth of its rows each, say, are held out for validation and for the test,
    and some of the others are returned: statistics of the data are those of these. Of a file that fits into a buffer
    that is all of it.

    Parameters
    ----------
    path : Path
        The file or folder.
    memory : int
        MiB that the samples may take. Half of it is for the shuffled blocks, at least one.
    held_out : float
        Part of the rows that are read here for validation, and again for the test.
    seed : int
        Seed of the split.
    key, levels, drop, missing
        As in `DatasetSource`; rows cannot be dropped, since they are counted beforehand.

    Raises
    ------
    InvalidArgumentError
        If an option does not fit.
    DataFileError, ShapeError, NonFiniteDataError
        If the file does not hold samples.
    """
    if memory < 1:
        raise InvalidArgumentError(f"the memory for the samples must be at least 1 MiB, got {memory}.")
    if missing == "drop":
        raise InvalidArgumentError(
            "rows with missing values cannot be left out of data that stay in their file, since all rows are counted "
            "beforehand. Try --missing impute, or write the complete rows into another file."
        )
    file = open_rows(path, key)
    if len(file) < FEWEST:
        raise ShapeError(f"{path} has {len(file)} samples; at least {FEWEST} are needed to split them.")
    first = file.read(0, 1)
    columns = None
    if levels is None and (isinstance(first, Table) or first.ndim <= 2):
        columns = TableColumns.of_table(as_table(first), drop, missing)
        event_shape, dtype = (len(columns.used),), "float64"
    else:
        samples, levels = as_samples(_as_array(first), f"{path}", levels)
        event_shape = tuple(samples.shape[1:])
        exact = levels is None and isinstance(first, np.ndarray) and first.dtype == np.float32
        dtype = "float32" if exact else samples.dtype.name
    room = max(1, memory * 2**19 // (np.dtype(dtype).itemsize * int(np.prod(event_shape))))
    starts = _block_starts(file, max(1, room // _BLOCKS))
    _require_room(file, room, int(np.max(np.diff(starts))), memory)
    stored = StoredSamples(file, levels, columns, event_shape, dtype, starts, room, np.zeros(0, dtype=np.int64))
    return _split(stored, held_out, np.random.default_rng([seed, 0]))


def _split(stored: StoredSamples, held_out: float, rng: np.random.Generator) -> OpenedSamples:
    """Read as many blocks as are held at once, and hold some of their rows out."""
    order = rng.permutation(len(stored.counts))
    order = order[: max(1, int(np.searchsorted(np.cumsum(stored.counts[order]), stored.room, side="right")))]
    places = rng.permutation(int(np.sum(stored.counts[order])))
    numbers = np.empty_like(places)
    numbers[places] = np.concatenate([stored.numbers(block) for block in order])
    samples = stored.shuffled(order, places)
    held = max(1, round(held_out * len(samples)))
    # Statistics take some times the memory of their samples in float64; that is for the buffers of the training.
    train = samples[2 * held :][: max(_LEAST_SAMPLES, stored.room // 8)]
    parts = [part.copy() for part in (train, samples[:held], samples[held : 2 * held])]
    stored = replace(stored, held_out=np.sort(numbers[: 2 * held]))
    if stored.columns is not None and stored.columns.missing == "impute":
        gaps = np.isnan(parts[0]).all(axis=0)
        if gaps.any():
            empty = stored.columns.label(int(np.argmax(gaps)))
            raise DataFileError(
                f"{stored.file.path}: column {empty} has no value in the {len(train)} samples that were looked at. "
                f"Leave it out: --drop {empty}."
            )
        columns = replace(stored.columns, fill=tuple(map(float, np.nanmedian(parts[0], axis=0))))
        stored, parts = replace(stored, columns=columns), [columns.imputed(part) for part in parts]
    return OpenedSamples(stored, *parts)


class ShuffledBlocks:
    """The samples of every step: a function of the seed and the step alone.

    Memory: `stored.room` samples and one block.
    """

    def __init__(self, stored: StoredSamples, batch: int, seed: int) -> None:
        self.stored, self.batch, self.seed = stored, batch, seed
        self.per_epoch = len(stored) // batch
        self._epoch = -1
        self._order = self._firsts = self._begins = np.zeros(0, dtype=np.int64)
        self._held: tuple[int, int] | None = None
        self._buffer = np.zeros(0)

    def at(self, step: int) -> np.ndarray:
        """Return the samples (batch, *event_shape) of a step."""
        epoch, k = divmod(step, self.per_epoch)
        self._take_up(epoch)
        place, end, parts = k * self.batch, (k + 1) * self.batch, []
        while place < end:  # a batch may begin in one buffer and end in the next
            number = int(np.searchsorted(self._begins, place, side="right")) - 1
            begin = int(self._begins[number])
            part = self._read(epoch, number)[place - begin : end - begin].copy()
            parts.append(part)
            place += len(part)
        return np.concatenate(parts)

    def _take_up(self, epoch: int) -> None:
        """Plan the buffers of an epoch: which blocks each has, and where in the epoch its samples begin."""
        if epoch == self._epoch:
            return
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.stored.counts))
        order = order[self.stored.counts[order] > 0]
        ends = np.cumsum(self.stored.counts[order])
        self._firsts = np.flatnonzero(np.diff((ends - 1) // self.stored.room, prepend=-1))
        self._begins = np.concatenate([[0], ends])[self._firsts]
        self._epoch, self._order = epoch, order

    def _read(self, epoch: int, number: int) -> np.ndarray:
        """Return the shuffled samples of a buffer of the epoch that is taken up."""
        if self._held != (epoch, number):
            self._held, self._buffer = None, np.zeros(0)  # frees the memory before the next one takes it
            last = self._firsts[number + 1] if number + 1 < len(self._firsts) else None
            blocks = self._order[self._firsts[number] : last]
            rng = np.random.default_rng([self.seed, 10, epoch, number])
            places = rng.permutation(int(np.sum(self.stored.counts[blocks])))
            self._held, self._buffer = (epoch, number), self.stored.shuffled(blocks, places)
        return self._buffer


def _require_room(file: RowFile, room: int, largest: int, memory: int) -> None:
    """Refuse a memory in which samples could be neither shuffled nor known, unless it holds all of them.

    Raises
    ------
    InvalidArgumentError
        The message says how much memory would do.
    """
    needed = min(len(file), max(_LEAST_BLOCKS * largest if largest > 1 else 0, _LEAST_SAMPLES))
    if room < needed:
        enough = -(-memory * needed // room)
        together = f", of which {largest} are stored together" if largest > max(1, room // _BLOCKS) else ""
        raise InvalidArgumentError(
            f"half of {memory} MiB holds {room} of the {len(file)} samples of {file.path}{together}: too few to "
            f"shuffle them. Try --memory {enough}"
            + (", or write the file in smaller row groups or chunks." if together else ".")
        )


def _block_starts(file: RowFile, rows: int) -> np.ndarray:
    """Return where blocks of at least so many rows begin, none of which cuts what the file stores together."""
    if not file.groups:
        rows = -(-rows // file.rows_together) * file.rows_together
        return np.append(np.arange(0, len(file), rows), len(file))
    starts = [0]
    for end in np.cumsum([count for _, _, count in file.groups]):
        if end - starts[-1] >= rows or end == len(file):
            starts.append(int(end))
    return np.array(starts)


def _as_array(rows: np.ndarray | Table) -> np.ndarray:
    return rows.numbers() if isinstance(rows, Table) else rows
