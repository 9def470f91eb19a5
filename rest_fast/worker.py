"""The thread in which a device's models compute: one for the process, however many sessions and callers there are.

Why one: OpenMP gives every calling thread a team of its own, and teams that wait for work keep cores busy; a process of
many callers would have more threads than cores, each in the others' way. It also keeps the caller's settings out
(autocast, default device, gradient mode belong to a thread), and a forked child can compute: it starts a thread of its
own, where the caller's would wait for a team that was not forked along.

How many OpenMP threads a job gets: as many as the process may use, or, where the result does not depend on it
(``flexible``), fewer while other processes need the cores. A team of which one thread has no core is slower than a
single thread, since all wait for it at every parallel region (docs/measured_facts.md).
"""

from __future__ import annotations

import contextvars
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from rest_fast import cores
from rest_fast.ops import native

T = TypeVar("T")

WINDOW = 0.2  # seconds over which free cores are counted: the system counts in steps of 10 ms
SPARE = 0.25  # of a core that others may use before a thread is taken away


class Worker:
    """A thread, its queue of jobs, and the number of OpenMP threads for the next of them."""

    def __init__(self, device: torch.device | None = None) -> None:
        on_gpu = device is not None and device.type == "cuda"  # the current device belongs to a thread, too
        prepare = (torch.cuda.set_device, (device,)) if on_gpu else (None, ())
        self.idle = threading.Lock()  # held during a job
        self._pool = ThreadPoolExecutor(1, "rest_fast", *prepare)
        self._thread: int | None = None
        self._free, self._looked = cores.FreeCores(), -math.inf
        self.threads = 0  # of the latest job

    def submit(self, threads: int, flexible: bool, job: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Queue ``job(*args, **kwargs)``; it sees the caller's context variables. ``threads``: at most so many."""
        context = contextvars.copy_context()
        return self._pool.submit(self._run, context, threads, flexible, job, args, kwargs)

    def run(self, threads: int, flexible: bool, job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The same, and wait for its result. Jobs may call this, too."""
        if threading.get_ident() == self._thread:
            return job(*args, **kwargs)
        return self.submit(threads, flexible, job, *args, **kwargs).result()

    def _run(self, context: contextvars.Context, threads: int, flexible: bool, job: Any, args: Any, kwargs: Any) -> Any:
        with self.idle:
            self._thread = threading.get_ident()
            self.threads = self._available(threads) if flexible else threads
            native.set_threads(self.threads)
            return context.run(job, *args, **kwargs)

    def _available(self, most: int) -> int:
        """So many of ``most`` threads as there are free cores, a power of two if not all."""
        now = time.monotonic()
        if most == 1 or now - self._looked < WINDOW:
            return min(self.threads or most, most)
        self._looked = now
        free = self._free.look(native.thread_seconds(max(self.threads, 1))) + SPARE
        threads = most if free >= most else 2 ** int(math.log2(max(free, 1)))
        if threads != self.threads:
            self._free.recount(native.thread_seconds(threads))
        return threads


_workers: dict[torch.device, Worker] = {}
_lock = threading.Lock()


def worker(device: torch.device) -> Worker:
    """The worker of a device, started at its first job."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with _lock:
        if device not in _workers:
            _workers[device] = Worker(device)
        return _workers[device]


def _before_fork() -> None:
    """Wait for running jobs: libraries may hold locks in them that nobody would release in the child."""
    _lock.acquire()
    for one in _workers.values():
        if one._thread != threading.get_ident():
            one.idle.acquire()


def _after_fork(child: bool) -> None:
    for one in _workers.values():
        if one._thread != threading.get_ident():
            one.idle.release()
    if child:
        _workers.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=lambda: _after_fork(False), after_in_child=lambda: _after_fork(True)
    )
