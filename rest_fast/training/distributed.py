"""One process or many: torchrun's process group, DDP or FSDP2 around a stage, and what a process has of a batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rest_fast.errors import ArgumentError

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, batch: int, accumulate: int) -> list[range]:
        """Rows of a global batch that are this process's, one range for each accumulated part.

        Parts are cut first, so that a part's rows lie together over all processes: how many processes there are changes
        who computes a row, and not which rows make a step.
        """
        if batch % (accumulate * self.size):
            raise ArgumentError(
                f"train: batch: expected a multiple of {accumulate} accumulated parts x {self.size} processes, "
                f"got {batch}"
            )
        each = batch // accumulate // self.size
        starts = [part * batch // accumulate + self.rank * each for part in range(accumulate)]
        return [range(start, start + each) for start in starts]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over processes of a scalar."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value


@contextlib.contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """The processes that ``torchrun`` started, or this one alone; NCCL on GPUs, gloo on the CPU."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(f"cuda:{local}" if device == "cuda" else device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if "WORLD_SIZE" not in os.environ:
        yield World(device=where)
        return
    started = not dist.is_initialized()
    if started:
        # long: the first process alone encodes latents and fits bases while the others wait
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), where)
    finally:
        if started:
            dist.destroy_process_group()


def distribute(stage: nn.Module, blocks: list[nn.Module], kind: Literal["replicate", "shard"], among: World) -> Any:
    """What is called in place of the stage.

    ``blocks`` are sharded one by one: no process holds all weights at once. A stage that names none is small, and
    replicated whatever ``kind`` says.
    """
    if among.size == 1:
        return stage
    if kind == "replicate" or not blocks:
        device_ids = [among.device.index] if among.device.type == "cuda" else None
        # buffers are constants; gradients that are views of what is exchanged cost the memory of one copy less
        return DistributedDataParallel(
            stage, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(among.device.type, (among.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(stage, mesh=mesh)


def last_part(stage: Any, last: bool) -> Any:
    """A context in which replicas exchange gradients for the last accumulated part only.

    Shards exchange every part's: what waits for the last one would be a whole gradient in every process.
    """
    waits = isinstance(stage, DistributedDataParallel) and not last
    return stage.no_sync() if waits else contextlib.nullcontext()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor. Called by all processes where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
