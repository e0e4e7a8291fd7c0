"""Who computes the chunks of a job: this process, or the workers of a Dask cluster."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, TypeVar

from iresnet_core.errors import MissingDependencyError
from iresnet_core.parallel.jobs import Job

__all__ = ["Workers", "open_workers", "own_process"]

Result = TypeVar("Result")


class Workers(Protocol):
    """They compute chunks in whatever order they finish."""

    def chunks(self, job: Job[Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
        """Yield the numbers of chunks and the chunks; a few more than there are workers are in memory at a time."""


class _OwnProcess:
    def chunks(self, job: Job[Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
        for k in numbers:
            yield k, job.chunk(k)


@contextmanager
def own_process() -> Iterator[Workers]:
    """Compute here, one chunk after the other."""
    yield _OwnProcess()


def open_workers(where: str | None) -> AbstractContextManager[Workers]:
    """Return who computes.

    Parameters
    ----------
    where : str, optional
        The number of processes to start on this machine, or the address of a Dask scheduler; None for this process.

    Raises
    ------
    MissingDependencyError
        If Dask is not installed.
    """
    if where is None:
        return own_process()
    if find_spec("distributed") is None:
        raise MissingDependencyError(
            "--dask needs dask and distributed, which this Python does not have. Try: pip install 'iresnet-core[dask]'"
        )
    found: AbstractContextManager[Workers] = import_module("iresnet_core.parallel.dask_workers").connected(where)
    return found
