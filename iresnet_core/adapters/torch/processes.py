"""What several processes of one training have to agree on, and what must differ between them."""

import torch
from torch import Tensor

__all__ = ["gathered", "probe_generator"]


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
