"""The thread in which the models of a device compute: one per process, however many sessions and callers there are.

There is only one because OpenMP gives every calling thread a team of its own, and teams that wait for work keep cores
busy: with many callers a process would have more threads than cores, and they would slow each other down. One thread
also keeps out the settings of callers (autocast, default device and gradient mode belong to a thread). And a forked
child can compute, because it starts a worker of its own; a caller's thread would wait for a team that was not forked.

A job gets as many OpenMP threads as the process may use. If its result does not depend on their number (``flexible``),
it gets fewer while other processes need the cores: a team in which one thread has no core is slower than a single
thread, since all others wait for it at every parallel region (docs/measured_facts.md).
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

WINDOW = 0.2  # seconds over which free cores are measured: the system counts in steps of 10 ms
SPARE = 0.25  # share of a core that others may use before a thread is taken away


class Worker:
    """A thread, its queue of jobs, and the number of OpenMP threads for the next of them."""

    def __init__(self, device: torch.device | None = None) -> None:
        on_gpu = device is not None and device.type == "cuda"  # the current device belongs to a thread, too
        prepare = (torch.cuda.set_device, (device,)) if on_gpu else (None, ())
        self.idle = threading.Lock()  # held during a job
        self.thread: int | None = None  # identifier of this thread while it runs a job
        self.threads = 0  # number of OpenMP threads of the latest job
        self.limit = 0  # number that the present job may have at most, for the jobs that it queues
        self._pool = ThreadPoolExecutor(1, "rest_fast", *prepare)
        self.free, self.looked = cores.FreeCores(), -math.inf
        self._earlier = 0.0  # added to the present team's CPU seconds, it continues the count of the teams before

    def submit(self, threads: int, flexible: bool, job: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Queue ``job(*args, **kwargs)`` with at most ``threads`` threads; it sees the caller's context variables."""
        task = (contextvars.copy_context(), threads, flexible, job, args, kwargs)
        try:
            return self._pool.submit(self._run, *task)
        except RuntimeError:
            if not pools._shutdown:
                raise
        # The main thread has ended, and with it all pools. Remaining threads and exit handlers compute by themselves.
        future: Future[T] = Future()
        try:
            own = threading.get_ident() == self.thread  # a job that queues another one: the lock is its own
            future.set_result(task[0].run(job, *args, **kwargs) if own else self._run(*task))
        except BaseException as error:
            future.set_exception(error)
        return future

    def run(self, threads: int, flexible: bool, job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The same, and wait for the result. A job may call this, too; it gets no more threads than it has."""
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

    @property
    def waited_for(self) -> bool:
        """Whether a job is queued behind the present one, or a fork waits for its end."""
        if pools._shutdown:  # the end of the queue is in it
            return False
        return _forking or not self._pool._work_queue.empty()

    def _run(self, context: contextvars.Context, threads: int, flexible: bool, job: Any, args: Any, kwargs: Any) -> Any:
        if _forking:
            with _lock:  # the fork comes first
                pass
        with self.idle:
            self.thread, self.limit = threading.get_ident(), threads
            before = self._take(self._available(threads) if flexible else threads)
            try:
                return context.run(job, *args, **kwargs)
            finally:
                self.thread = None
                native.restore_threads(before)

    def _take(self, threads: int) -> int | None:
        """Use so many threads from now on. The count of CPU time continues from that of the team before."""
        if threads != self.threads:
            self._earlier += native.thread_seconds(max(self.threads, 1)) - native.thread_seconds(threads)
            self.threads = threads
        return native.set_threads(threads)

    def _available(self, most: int) -> int:
        """The number of threads for the free cores: ``most``, or else a power of two below it."""
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
        return found  # asked by a job: do not take the lock, as a fork that holds it waits for this very job
    with _lock:
        if device not in _workers:
            _workers[device] = Worker(device)
        return _workers[device]


# -- Forking waits for jobs and for locks of sessions: locks held at a fork would never be released in the child.

_guarded: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[Any] = []  # locks that the fork in progress has acquired
_forking = False  # whether there is one
_interrupted: list[bool] = []


def hold_over_fork(lock: Any) -> None:
    """Make forks wait for a lock that threads hold only for moments and outside of jobs."""
    with _lock:
        _guarded.add(lock)


def _acquire(lock: Any) -> None:
    """Acquire a lock; an interrupt (Ctrl-C) is deferred until the fork is over, so that no lock is left out."""
    while True:
        try:
            lock.acquire()
            return
        except KeyboardInterrupt:
            _interrupted.append(True)


def _before_fork() -> None:
    global _forking
    _acquire(_lock)
    _forking = True
    running = [one.idle for one in _workers.values() if one.thread != threading.get_ident()]
    for lock in (*running, *_guarded):
        _acquire(lock)
        _held.append(lock)


def _after_fork(child: bool) -> None:
    global _forking
    _forking = False
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
