"""Data parallel training over processes that `torchrun` started; one process needs none of it.

Gradients are summed over processes in one flat tensor: the loss is already divided by the global count of valid
samples, so two processes compute what one would at the same global batch. A parameter that only some processes used
counts as zero in the others; one that nobody used has no gradient, as on one process: the optimiser leaves it alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=4)  # how long the others wait for rank 0, which alone encodes frames and evaluates


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sum(self, numbers: dict[str, float], device: torch.device) -> dict[str, float]:
        """The sum of each number over all processes."""
        if self.size == 1:
            return numbers
        values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
        dist.all_reduce(values)
        return dict(zip(numbers, values.tolist(), strict=True))

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so on any process: what makes all of them stop must be one answer."""
        return self.sum({"": float(here)}, device)[""] > 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.size == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=parts[0].device)
        flat = torch.cat([*parts, used])
        dist.all_reduce(flat)
        *gradients, used = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, gradient, somewhere in zip(parameters, gradients, used.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if somewhere else None

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process rank 0's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@contextmanager
def world(device: str) -> Iterator[World]:
    """The process group around a run. Ends with a barrier: a bare destroy aborts while a peer is still talking."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    here = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(here.local_rank)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield here
        dist.barrier()
    finally:
        dist.destroy_process_group()
