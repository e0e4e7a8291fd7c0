"""Trains a small flow in the processes of torchrun, and once more in one; prints how far they are apart."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch_models import samples, vector_flow

D, STEPS = 40, 3


class Loss(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, **options):
        return -self.flow.log_prob(x, **options).mean()


def trained(model, x, noise):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x, noise=noise).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main():
    torch.set_num_threads(1)
    x = samples(16, D)
    torch.manual_seed(5)
    noise = [2.0 * torch.randint(0, 2, (1, *x.shape)) - 1 for _ in range(2)]
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    share = slice(rank * 16 // world, (rank + 1) * 16 // world)
    model = DistributedDataParallel(Loss(vector_flow(D)))
    parameters = trained(model, x[share], [part[:, share] for part in noise])
    again = vector_flow(D)
    again.checkpoint = True
    checkpointed = trained(DistributedDataParallel(Loss(again)), x[share], [part[:, share] for part in noise])
    torch.manual_seed(1)  # the same on every rank, and yet the probes must differ
    value = model.module.flow.log_prob(x).detach()
    state = torch.cat([b.double().flatten() for b in model.module.buffers()])
    found = [None] * world
    dist.all_gather_object(found, (parameters, value, state, checkpointed))
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        single = trained(Loss(vector_flow(D)), x, noise)
        first, second = found[0], found[1]
        print(
            float((first[0] - second[0]).abs().max()),
            float((first[0] - single).abs().max()),
            float((first[2] - second[2]).abs().max()),
            float((first[1] - second[1]).abs().max()),
            float((first[3] - first[0]).abs().max()),
            flush=True,
        )
    os._exit(0)  # gloo's threads may abort while the interpreter ends, which is none of this test's business


if __name__ == "__main__":
    main()
