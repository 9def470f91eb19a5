"""Computes pieces in the model's worker for as long as there are any, and lets other jobs come between."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable

from rest_fast.models.network import Network
from rest_fast.worker import WINDOW, hold_over_fork


class Pump:
    """There is at most one job in the worker for it, which queues itself again behind the jobs of others.

    Args:
        piece: computes one; False where there is none.
        context: the settings under which pieces are computed; None: those of whoever kicks.
    """

    def __init__(self, model: Network, piece: Callable[[], bool], context: contextvars.Context | None):
        self.model, self.piece, self.context = model, piece, context
        self._lock = threading.Lock()
        hold_over_fork(self._lock)
        self.running = 0  # the process in which there is a job: a forked child has none
        self._again = False  # whether something has come since the job looked

    def kick(self) -> None:
        """Something has come: see that it is computed."""
        with self._lock:
            self._again = True
            if self.running == os.getpid():
                return
            self.running = os.getpid()
        context = contextvars.copy_context() if self.context is None else self.context.copy()
        try:
            context.run(self.model.submit, self._run)
        except BaseException:  # such as no room for a thread: the next one tries again
            self.running = 0
            raise

    def _run(self) -> None:
        start = time.monotonic()
        try:
            while self.piece() or self._kicked():
                # A session that is opened and other engines come between. The worker looks before each job, and only
                # there, how many cores are free.
                if self.model.worker.waited_for or time.monotonic() - start > WINDOW:
                    self.model.submit(self._run)
                    return
        except BaseException:
            self.running = 0
            raise

    def _kicked(self) -> bool:
        with self._lock:
            again, self._again = self._again, False
            if not again:
                self.running = 0
            return again
