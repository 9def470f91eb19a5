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
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import thread as pools
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
        self.thread: int | None = None  # that runs a job now
        self.threads = 0  # of the latest job
        self._pool = ThreadPoolExecutor(1, "rest_fast", *prepare)
        self.free, self.looked = cores.FreeCores(), -math.inf
        self._earlier = 0.0  # seconds of CPU time that earlier teams are ahead of the present one

    def submit(self, threads: int, flexible: bool, job: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Queue ``job(*args, **kwargs)``; it sees the caller's context variables. ``threads``: at most so many."""
        task = (contextvars.copy_context(), threads, flexible, job, args, kwargs)
        try:
            return self._pool.submit(self._run, *task)
        except RuntimeError:
            if not pools._shutdown:
                raise
        # The main thread has ended, and all pools with it; threads that go on, and exit handlers, compute themselves.
        future: Future[T] = Future()
        try:
            future.set_result(self._run(*task))
        except BaseException as error:
            future.set_exception(error)
        return future

    def run(self, threads: int, flexible: bool, job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The same, and wait for its result. Jobs may call this, too, and get no more threads than they have."""
        if threading.get_ident() != self.thread:
            return self.submit(threads, flexible, job, *args, **kwargs).result()
        outer = self.threads
        if threads >= outer:
            return job(*args, **kwargs)
        self._take(threads)
        try:
            return job(*args, **kwargs)
        finally:
            self._take(outer)

    def _run(self, context: contextvars.Context, threads: int, flexible: bool, job: Any, args: Any, kwargs: Any) -> Any:
        with self.idle:
            self.thread = threading.get_ident()
            before = self._take(self._available(threads) if flexible else threads)
            try:
                return context.run(job, *args, **kwargs)
            finally:
                self.thread = None
                native.restore_threads(before)

    def _take(self, threads: int) -> int | None:
        """So many threads from now on. Their CPU time goes on from that of the team before."""
        if threads != self.threads:
            self._earlier += native.thread_seconds(max(self.threads, 1)) - native.thread_seconds(threads)
            self.threads = threads
        return native.set_threads(threads)

    def _available(self, most: int) -> int:
        """So many of ``most`` threads as there are free cores, a power of two if not all."""
        now = time.monotonic()
        if most == 1 or now - self.looked < WINDOW:
            return min(self.threads or most, most)
        self.looked = now
        free = self.free.look(native.thread_seconds(max(self.threads, 1)) + self._earlier) + SPARE
        return most if free >= most else 2 ** int(math.log2(max(free, 1)))


_workers: dict[torch.device, Worker] = {}
_lock = threading.Lock()


def worker(device: torch.device) -> Worker:
    """The worker of a device, started at its first job."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    found = _workers.get(device)
    if found is not None and found.thread == threading.get_ident():
        return found  # a job asks: a fork that holds the lock waits for this very job
    with _lock:
        if device not in _workers:
            _workers[device] = Worker(device)
        return _workers[device]


# -- forking: libraries may hold locks during a job, callers those of a session; in a child nobody would release them

_guarded: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[Any] = []  # by the fork under way
_interrupted: list[bool] = []


def hold_over_fork(lock: Any) -> None:
    """A lock that threads hold for a moment and outside of jobs: a fork waits for it."""
    with _lock:
        _guarded.add(lock)


def _acquire(lock: Any) -> None:
    """Ctrl-C waits until the fork is over: half of the locks would be worse than none."""
    while True:
        try:
            lock.acquire()
            return
        except KeyboardInterrupt:
            _interrupted.append(True)


def _before_fork() -> None:
    _acquire(_lock)
    running = [one.idle for one in _workers.values() if one.thread != threading.get_ident()]
    for lock in (*running, *_guarded):
        _acquire(lock)
        _held.append(lock)


def _after_fork(child: bool) -> None:
    for lock in _held:
        lock.release()
    _held.clear()
    if child:
        _workers.clear()
    interrupted = bool(_interrupted)
    _interrupted.clear()
    _lock.release()
    if interrupted and not child:
        signal.raise_signal(signal.SIGINT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=lambda: _after_fork(False), after_in_child=lambda: _after_fork(True)
    )
