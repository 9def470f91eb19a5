"""Training in one process or many: torchrun's process group, DDP or FSDP2, and each process's share of a batch."""

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
    """This process, one of those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, batch: int, accumulate: int) -> list[range]:
        """The clips ("rows") of a global batch that are this process's, as one range for each accumulated part.

        The batch is cut into parts first, and each part into shares for the processes. So the number of processes
        decides which of them computes a row, but not which rows make a part.
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
def join_world(device: str = "auto") -> Iterator[World]:
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


def distribute(stage: nn.Module, blocks: list[nn.Module], kind: Literal["replicate", "shard"], world: World) -> Any:
    """Wrap a stage in DDP (``replicate``) or FSDP2 (``shard``); the result is called in its place.

    ``blocks`` are sharded one by one, so that no process holds all weights at once. A stage without blocks is small and
    is replicated in either case.
    """
    if world.size == 1:
        return stage
    if kind == "replicate" or not blocks:
        device_ids = [world.device.index] if world.device.type == "cuda" else None
        # Buffers are constants. Gradients as views of the exchanged buckets save the memory of a second copy.
        return DistributedDataParallel(
            stage, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(stage, mesh=mesh)


def last_part(stage: Any, last: bool) -> Any:
    """A context in which replicas exchange gradients for the last accumulated part only.

    Shards exchange those of every part: otherwise each process would have to hold a whole gradient until the last one.
    """
    waits = isinstance(stage, DistributedDataParallel) and not last
    return stage.no_sync() if waits else contextlib.nullcontext()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor. If it is sharded, all processes have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
