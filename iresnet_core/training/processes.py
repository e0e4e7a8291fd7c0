"""The processes of one training. There is one, unless a launcher such as `torchrun` has started several."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol, TypeVar

from iresnet_core.errors import ClusterError, InvalidArgumentError

__all__ = ["ONE_PROCESS", "Processes", "joined_processes", "launched", "require_share", "shared_out"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher says to each process


class Processes(Protocol):
    """What the processes of one training say to each other.

    Attributes
    ----------
    rank, count : int
        The number of this process, from 0, and how many there are. The first one writes all files.
    """

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def count(self) -> int:
        """How many there are."""

    def first(self, value: Any) -> Any:
        """Return the value of the first process to all."""

    def all(self, value: Any) -> list[Any]:
        """Return the values of all processes to all, in their order."""


class _OneProcess:
    rank, count = 0, 1

    def first(self, value: Any) -> Any:
        return value

    def all(self, value: Any) -> list[Any]:
        return [value]


ONE_PROCESS: Processes = _OneProcess()


def shared_out(processes: Processes, items: Iterable[Item], compute: Callable[[Item], Result]) -> list[Result]:
    """Return what is computed of every item, in their order, to all processes, each of which computes its share."""
    own = {k: compute(item) for k, item in enumerate(items) if k % processes.count == processes.rank}
    found = {k: value for part in processes.all(own) for k, value in part.items()}
    return [found[k] for k in sorted(found)]


def require_share(processes: Processes, batch: int) -> None:
    """Refuse a batch of which a process would get nothing.

    Raises
    ------
    InvalidArgumentError
        If the batch is smaller than the number of processes.
    """
    if batch < processes.count:
        raise InvalidArgumentError(
            f"a batch of {batch} cannot be shared out to {processes.count} processes; try a larger --batch."
        )


def launched() -> int:
    """Return how many processes a launcher has started for one training; 1 without one.

    Raises
    ------
    InvalidArgumentError
        If the variables of the environment by which a launcher says so contradict each other.
    """
    if any(name not in os.environ for name in _LAUNCHED):
        return 1
    rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not rank.isdigit() or not count.isdigit() or int(rank) >= int(count):
        raise InvalidArgumentError(f"a launcher says RANK={rank} and WORLD_SIZE={count}, which are no processes.")
    return int(count)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that a launcher has started, by PyTorch's distributed runtime.

    Raises
    ------
    ClusterError
        If PyTorch is not installed, or the processes do not find each other.
    """
    if launched() == 1:
        yield ONE_PROCESS
        return
    try:
        module = import_module("iresnet_core.adapters.torch.processes")
    except ImportError as error:
        raise ClusterError(
            f"{launched()} processes were launched for one training, which needs PyTorch: {error}. "
            "Try: pip install 'iresnet-core[torch]'; or run the command without a launcher."
        ) from error
    with module.process_group() as processes:
        yield processes
