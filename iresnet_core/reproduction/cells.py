"""The cells of a run, such as one model on one data set: computed once, kept in files, several at once."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.errors import RunError
from iresnet_core.files import digest_of, write_array
from iresnet_core.reproduction.record import read_hashed, write_hashed
from iresnet_core.reproduction.request import Request
from iresnet_core.reproduction.unfinished import Unfinished

__all__ = ["Cell", "CellResult", "InProgress", "compute_cells", "environment", "in_progress"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class CellResult:
    """What a cell found.

    Attributes
    ----------
    values : dict
        Plain data.
    arrays : dict of arrays
        What a picture needs.
    seconds : float
        Wall time of the cell, evaluations included; set by `compute_cells`.
    """

    values: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One part of a run.

    Attributes
    ----------
    name : str
        Its name, and that of its files.
    settings : dict
        Plain data that determine the result: a cell that was made with others is computed again.
    compute : callable
        A function of a module (other processes import it), which takes the settings and returns a `CellResult`.
    """

    name: str
    settings: Mapping[str, Any]
    compute: Callable[[Mapping[str, Any]], CellResult]


class InProgress(NamedTuple):
    """The cell that this process computes.

    Attributes
    ----------
    unfinished : Unfinished
        Where it may keep what it goes on from after an interruption.
    say : callable
        Takes a line for whoever looks at the run.
    """

    unfinished: Unfinished
    say: Callable[[str], None]


_in_progress: InProgress | None = None
_say_to_parent: Callable[[str], None] = print  # in a process that computes cells for another


def in_progress() -> InProgress | None:
    """Return the cell that this process computes; None outside of a run."""
    return _in_progress


def compute_cells(request: Request, cells: Sequence[Cell], processes: int = 1) -> dict[str, CellResult]:
    """Return the results of all cells; those that the run folder holds are not computed again.

    Every cell is written as it is finished, so that a run that was interrupted goes on with the others; a cell may also
    keep what it goes on from itself, see `in_progress`. With more than one process each cell has a process of one
    thread, whose own time can be counted.
    """
    folder = request.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    done = {cell.name: found for cell in cells if (found := _kept(folder, cell)) is not None}
    missing = [cell for cell in cells if cell.name not in done]
    if done:
        request.say(f"{len(done)} of {len(cells)} parts are in {folder} already and are not computed again")

    def finished(cell: Cell, result: CellResult) -> None:
        _keep(folder, cell, result)
        _unfinished(folder, cell).remove()
        done[cell.name] = result
        request.say(f"[{len(done)}/{len(cells)}] {cell.name}: {_in_short(result.values)} ({result.seconds:.0f} s)")

    if processes <= 1 or len(missing) <= 1:
        for cell in missing:
            finished(cell, _computed(folder, cell, request.say))
    else:
        _in_processes(folder, missing, processes, finished, request.say)
    return {cell.name: done[cell.name] for cell in cells}


def _in_processes(
    folder: Path,
    cells: Sequence[Cell],
    processes: int,
    finished: Callable[[Cell, CellResult], None],
    say: Callable[[str], None],
) -> None:
    """Compute cells in processes of one thread each."""
    # A forked process could not use the threads that a framework has begun in this one.
    context = multiprocessing.get_context("spawn")
    lines = context.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(lines, say), daemon=True)
    listener.start()
    with environment(dict.fromkeys(_THREADS, "1")):
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_the_parent, initargs=(lines,))
        _compute_in_processes(folder, cells, pool, finished)
    # Not after a failure: a worker that was ended in the middle of a line has the lock of the queue for ever.
    lines.put(None)
    listener.join()


def _listen(lines: Any, say: Callable[[str], None]) -> None:
    """Say what the workers say, until there is None."""
    while (line := lines.get()) is not None:
        say(line)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, and put back what was there before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _compute_in_processes(
    folder: Path,
    cells: Sequence[Cell],
    pool: ProcessPoolExecutor,
    finished: Callable[[Cell, CellResult], None],
) -> None:
    try:
        waiting: dict[Future[CellResult], Cell] = {pool.submit(_computed, folder, cell): cell for cell in cells}
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                finished(waiting.pop(future), future.result())
    except BaseException:
        workers = list(getattr(pool, "_processes", {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:  # what they compute is not wanted any more
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_the_parent(lines: Any) -> None:
    """Leave interrupts to the parent, and end with it, which may be killed while cells have an hour to go."""
    global _say_to_parent
    _say_to_parent = lines.put
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _computed(folder: Path, cell: Cell, say: Callable[[str], None] | None = None) -> CellResult:
    global _in_progress
    unfinished = _unfinished(folder, cell)
    _in_progress = InProgress(unfinished, say or _say_to_parent)
    try:
        result = cell.compute(cell.settings)
    finally:
        _in_progress = None
    return CellResult(result.values, result.arrays, unfinished.seconds())


def _unfinished(folder: Path, cell: Cell) -> Unfinished:
    return Unfinished(folder / f"{cell.name}.unfinished.npz", digest_of(_plain(cell.settings)))


def _paths(folder: Path, cell: Cell) -> tuple[Path, Callable[[str], Path]]:
    return folder / f"{cell.name}.json", lambda name: folder / f"{cell.name}.{name}.npy"


def _keep(folder: Path, cell: Cell, result: CellResult) -> None:
    path, of_array = _paths(folder, cell)
    for name, array in result.arrays.items():
        write_array(of_array(name), array)
    node = {
        "settings": digest_of(_plain(cell.settings)),
        "values": result.values,
        "seconds": result.seconds,
        "arrays": digest_of(None, sorted(result.arrays.items())),
        "names": sorted(result.arrays),
    }
    write_hashed(path, node)


def _kept(folder: Path, cell: Cell) -> CellResult | None:
    """Return the result that a file holds; None where there is none, or one of other settings, or one with damage."""
    path, of_array = _paths(folder, cell)
    if not path.is_file():
        return None
    try:
        node = read_hashed(path)
        if node["settings"] != digest_of(_plain(cell.settings)):
            return None
        arrays = {name: np.load(of_array(name), allow_pickle=False) for name in node["names"]}
        if node["arrays"] != digest_of(None, sorted(arrays.items())):
            return None
        return CellResult(node["values"], arrays, node["seconds"])
    except (RunError, OSError, ValueError, KeyError):
        return None


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(settings)))


def _in_short(values: Mapping[str, Any]) -> str:
    """Return the first numbers of a result in a line."""
    numbers = ((name, value) for name, value in values.items() if isinstance(value, int | float))
    return ", ".join(f"{name} {value:.4g}" for name, value in list(numbers)[:4]) or "done"
