"""What the networks of a checkpoint have in common, of whatever family: where they compute, and who they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from rest_fast import checkpoint, cores
from rest_fast.ops.derived import derived, forget
from rest_fast.units import from_levels
from rest_fast.worker import Worker, worker

T = TypeVar("T")


class Network(nn.Module):
    """A checkpoint's networks as one module, which computes in the worker of its device. It holds nothing of a stream.

    ``threads``: CPU threads for what it computes; see :func:`rest_fast.load`. ``any_threads``: whether float32 frames
    do not depend on the number.
    """

    config: Any  # of its family
    dit: nn.Module  # with a parameter ``table``
    exact: tuple[str, ...] = ()  # what the names of tensors begin with that a checkpoint holds as they are

    def __init__(self, threads: int | None, *, any_threads: bool = False):
        super().__init__()
        self.threads = threads
        self._cores = cores.allowed()  # asked once: it reads a dozen files
        self._any_threads = any_threads

    @property
    def device(self) -> torch.device:
        return self._table.device

    @property
    def dtype(self) -> torch.dtype:
        return self._table.dtype

    @property
    def _table(self) -> torch.Tensor:
        table: torch.Tensor = self.dit.table
        return table

    # -- where it computes

    @property
    def worker(self) -> Worker:
        """The thread in which this model computes."""
        return worker(self.device)

    def team(self) -> tuple[int, bool]:
        """The largest number of OpenMP threads for a job of this model, and whether fewer are allowed.

        The frames of a model of the preset ``drawn`` do not depend on the number, which is tested. At other sizes MKL
        and oneDNN may divide one sum between threads (with AVX2 oneDNN does so in the demo's decoder), and in bfloat16
        the last bits of products depend on the number at any size.
        """
        if self.threads is not None:
            return self.threads, False
        one = self.worker
        asked_by_a_job = one.thread == threading.get_ident()  # it may have been given fewer than it may have
        most = one.limit if asked_by_a_job else torch.get_num_threads()
        return min(most, self._cores), self._any_threads and self.dtype == torch.float32

    def compute(self, job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``job(*args, **kwargs)`` in the model's worker; waits for the result."""
        return self.worker.run(*self.team(), job, *args, **kwargs)

    def submit(self, job: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """The same without waiting."""
        return self.worker.submit(*self.team(), job, *args, **kwargs)

    def compute_once(self, job: Callable[..., T], *args: Any) -> T:
        """Compute what streams start from in one thread, so that its last bits do not depend on the number of cores.

        MKL computes it and may divide its longest sums between threads: with AVX2 those of 768 inputs and 16 tokens.
        """
        return self.worker.run(1, False, job, *args)

    def pixels(self, picture: np.ndarray) -> torch.Tensor:
        """A picture uint8 [H, W, 3] as the VAE takes it: [1, 3, 1, H, W] in -1..1."""
        pixels = from_levels(torch.from_numpy(picture.copy()).to(self.device).float())  # bf16 has 8 bits
        return pixels.permute(2, 0, 1)[None, :, None].to(self.dtype)

    # -- derived from the weights, once

    @property
    def fingerprint(self) -> str:
        """Identity of the weights as loaded; an avatar belongs to one."""
        return derived(self, "_fingerprint", self._weights(), lambda: self.compute(self._hashed))

    def _hashed(self) -> str:
        return checkpoint.fingerprint(self, self.config)

    def _weights(self) -> tuple[torch.Tensor, ...]:
        return (*self.parameters(), *self.buffers())

    def _apply(self, function, recurse=True):
        """On a change of device or dtype, drop what was derived from the weights, and free its memory."""
        forget(self)
        return super()._apply(function, recurse)
