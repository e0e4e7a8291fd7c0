"""The workers of a Dask cluster: one that is started on this machine, or one whose scheduler is given."""

import asyncio
import gc
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster, as_completed
from distributed.comm.core import CommClosedError

from iresnet_core.errors import ClusterError, InvalidArgumentError, IResNetError
from iresnet_core.parallel.jobs import Job
from iresnet_core.parallel.workers import Workers

__all__ = ["connected"]

_MOST_LOCAL = 1024
_CONNECT = 20  # seconds to find a scheduler
_POLL = 2  # seconds between two looks whether the scheduler is still there
_DEATHS = 10  # of workers in the hands of which a chunk is, until the chunk is taken to be the cause
_IN_HAND = 2  # chunks for each thread of the workers that are asked for at a time
# What takes part in sending a chunk; other packages may differ.
_PACKAGES = ("dask", "distributed", "numpy", "cloudpickle")
Result = TypeVar("Result")


@contextmanager
def connected(where: str) -> Iterator[Workers]:
    """Start or find a cluster.

    It is never Dask's default, for other work on Dask arrays: a client that sets itself as the default, and fails to
    connect, may leave that behind.

    Parameters
    ----------
    where : str
        A number of processes, each with one thread, or the address of a scheduler such as "tcp://host:8786".

    Raises
    ------
    InvalidArgumentError
        If it is neither.
    ClusterError
        If no scheduler answers there, it has no worker, or other versions of the packages.
    """
    if where.isascii() and where.isdecimal():
        if not 1 <= int(where) <= _MOST_LOCAL:
            raise InvalidArgumentError(f"--dask {where}: the number of workers is between 1 and {_MOST_LOCAL}.")
        with _local(int(where)) as client:
            yield _DaskWorkers(client, "the cluster on this machine")
        return
    if "://" not in where:
        raise InvalidArgumentError(
            f"--dask {where}: give a number of workers, or the address of a scheduler such as tcp://host:8786."
        )
    # What ends the work is said by our errors, and not by a traceback of the library in between.
    for logger in ("distributed", "distributed.client"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    client = _client_at(where)
    with client:
        _require_versions(client, where)
        yield _DaskWorkers(client, where)


def _client_at(where: str) -> Client:
    try:
        return Client(where, timeout=_CONNECT, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError, ImportError, CommClosedError) as error:
        said = _short(error)
    # The client that failed closes itself when it is collected. Where that happens while another one starts, the two
    # wait for each other.
    gc.collect()
    raise ClusterError(
        f"no scheduler answers at {where} ({said}). Is it running, and can this machine reach it? "
        "`dask scheduler` starts one, `dask worker ADDRESS` a worker."
    )


@contextmanager
def _local(n: int) -> Iterator[Client]:
    settings = {"distributed.scheduler.allowed-failures": _DEATHS, "distributed.worker.daemon": True}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=n, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _require_versions(client: Client, where: str) -> None:
    """Fail before the work where a worker could not do it."""
    if not client.nthreads():
        raise ClusterError(f"the scheduler at {where} has no worker. `dask worker {where}` starts one.")
    try:
        found = client.get_versions()
        # Functions that every worker has: one of this package could not arrive where the package is not installed.
        specs = client.run(find_spec, "iresnet_core", on_error="return")
        versions = client.run(version, "iresnet-core", on_error="return")
    except (OSError, TimeoutError, CommClosedError) as error:
        raise ClusterError(f"the scheduler at {where} does not answer ({_short(error)}).") from error
    for name, spec in specs.items():
        if spec is None or isinstance(spec, Exception):
            raise ClusterError(f"the worker {name} does not have iresnet-core. Install it there, with the extra dask.")
        other = versions[name]
        if isinstance(other, str) and other != _own_version(other):
            raise ClusterError(f"the worker {name} has iresnet-core {other}, this process {_own_version(other)}.")
    own = {name: found["client"]["packages"].get(name) for name in _PACKAGES}
    for name, there in (("the scheduler", found["scheduler"]), *found["workers"].items()):
        for package in _PACKAGES:
            other = there["packages"].get(package)
            if other is not None and other != own[package]:
                raise ClusterError(
                    f"{name} at {where} has {package} {other}, this process {own[package]}. Install the same version."
                )


class _DaskWorkers:
    def __init__(self, client: Client, where: str) -> None:
        self.client, self.where = client, where

    def chunks(self, job: Job[Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
        client = self.client
        # A task and no scattered data, so that a worker that lost it gets it again. It goes to each worker once.
        held = client.submit(partial(_taken, job), pure=False)
        waiting, deaths = iter(numbers), dict.fromkeys(numbers, 0)
        running: dict[Any, int] = {}
        again: list[int] = []
        try:
            while True:
                room = _IN_HAND * max(1, sum(client.nthreads().values())) - len(running)
                for k in again[:room] or _first(waiting, room):
                    running[client.submit(_chunk, held, k, pure=False, priority=-k, retries=0)] = k
                again = again[max(room, 0) :]
                if not running:
                    return
                for future in self._finished(list(running)):
                    k = running.pop(future)
                    found = self._result(future, k)
                    if found:
                        yield k, found[0]
                        continue
                    deaths[k] += 1
                    if deaths[k] > _DEATHS:
                        raise ClusterError(
                            f"workers died {deaths[k]} times while chunk {k} was in their hands. Is there enough "
                            "memory? Try a smaller --chunk."
                        )
                    again.append(k)
        except (CommClosedError, CancelledError, asyncio.CancelledError, ConnectionError) as error:
            raise self._gone() from error

    def _finished(self, futures: list[Any]) -> list[Any]:
        """Wait for some to end."""
        while True:
            if self.client.status != "running":
                raise self._gone()
            try:
                # Not `wait`, which asks for the default client.
                return as_completed(futures, loop=self.client.loop, timeout=_POLL).next_batch()  # type: ignore[no-any-return]
            except TimeoutError:
                if not self.client.nthreads() and self.client.cluster is None:
                    raise ClusterError(
                        f"{self.where} has lost its last worker. `dask worker {self.where}` starts one; the same "
                        "command goes on."
                    ) from None

    def _result(self, future: Any, k: int) -> list[Any]:
        """Return a chunk, or nothing where it was lost with a worker; raise what else ended it."""
        try:
            error = future.exception()
            if error is None:
                return [future.result()]
        # A worker died: in the middle of the chunk, or before the finished chunk was fetched.
        except CancelledError as cancelled:
            error = cancelled
        if isinstance(error, KilledWorker | CancelledError):
            if self.client.status != "running":
                raise self._gone() from error
            return []
        if isinstance(error, IResNetError | MemoryError):
            raise error
        if isinstance(error, FileNotFoundError):
            raise ClusterError(
                f"a worker does not find a file ({error}): the workers need the file system of this machine."
            ) from error
        if isinstance(error, ModuleNotFoundError):
            raise ClusterError(
                f"a worker lacks a package ({error}). Install iresnet-core and the extra there."
            ) from error
        raise ClusterError(f"chunk {k} failed on a worker: {type(error).__name__}: {_short(error)}") from error

    def _gone(self) -> ClusterError:
        return ClusterError(
            f"the connection to {self.where} is lost: its scheduler has ended. The same command goes on with the "
            "chunks that are left, once there is one."
        )


def _first(waiting: Iterator[int], n: int) -> list[int]:
    return [k for _, k in zip(range(n), waiting, strict=False)]


def _own_version(otherwise: str) -> str:
    """Return the version of this process; a source tree on the path has none, and is taken to be the same."""
    try:
        return version("iresnet-core")
    except PackageNotFoundError:
        return otherwise


def _taken(job: Job[Result]) -> Job[Result]:
    return job


def _chunk(job: Job[Result], k: int) -> Result:
    return job.chunk(k)


def _short(error: BaseException | None) -> str:
    return str(error).split("\n")[0][:200] or type(error).__name__
