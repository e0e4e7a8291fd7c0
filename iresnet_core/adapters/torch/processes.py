"""What several processes of one training have to agree on, and what must differ between them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from iresnet_core.errors import ClusterError

__all__ = ["ProcessGroup", "gathered", "lost_processes", "probe_generator", "process_group"]

# Words of the errors that PyTorch raises where another process has gone, which are of no class of their own.
_LOST = ("connection closed", "connection reset", "connection refused", "broken pipe", "gloo", "nccl", "timed out")


def _active() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gathered(x: Tensor) -> Tensor:
    """Return the samples of all processes (batches may differ in size); with one process, x itself."""
    if not _active():
        return x
    parts: list[Tensor | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, x.cpu())
    return torch.cat([part.to(x.device) for part in parts if part is not None])


def summed(x: Tensor) -> Tensor:
    """Return the sum over all processes, which carries the derivative by the arrays of each; with one process, x."""
    return all_reduce(x) if _active() else x  # type: ignore[no-any-return, no-untyped-call]


def probe_generator(x: Tensor) -> torch.Generator | None:
    """Return a generator of probes that differs between processes, even where all were seeded alike.

    It is drawn from the global generator, so that `torch.manual_seed` decides it. None, the global generator itself,
    with one process.
    """
    if not _active():
        return None
    seed = int(torch.randint(2**62, (1,)))
    rank = torch.distributed.get_rank()
    return torch.Generator(device=x.device).manual_seed((seed + 0x9E3779B97F4A7C15 * (rank + 1)) % 2**63)


class ProcessGroup:
    """The processes of a training, see `iresnet_core.training.Processes`."""

    def __init__(self) -> None:
        self.rank, self.count = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def first(self, value: Any) -> Any:
        """Return the value of the first process to all."""
        values = [value]
        with lost_processes():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all(self, value: Any) -> list[Any]:
        """Return the values of all processes to all, in their order."""
        values: list[Any] = [None] * self.count
        with lost_processes():
            torch.distributed.all_gather_object(values, value)
        return values


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the group that a launcher such as torchrun has started: gloo on the CPU, NCCL between GPUs."""
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        torch.distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"the processes of the training do not find each other at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} ({_short(error)}). Start all of them with torchrun."
        ) from error
    try:
        yield ProcessGroup()
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def lost_processes() -> Iterator[None]:
    """Say what has happened where another process has gone in the middle of an exchange."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ClusterError) or not any(word in str(error).lower() for word in _LOST):
            raise
        raise ClusterError(
            f"another process of the training has ended ({_short(error)}). What was written stays: the same command "
            "goes on from the last checkpoint, with as many processes or with others."
        ) from error


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0][:160]
