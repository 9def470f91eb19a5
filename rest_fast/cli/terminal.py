"""What the command line shows and hears: text, notes of the library, a progress bar, Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from rest_fast.errors import RestFastError, RestFastWarning


class InputError(RestFastError, ValueError):
    """Something that the user gave cannot be used."""


def open_streams() -> None:
    """A standard stream that was closed (``2>&-``) gets the null device, or else the video could get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def say(text: str, stream: TextIO | None) -> None:
    """Print, unless the stream is closed (None); a reader that went away (``... | head -1``) is no error."""
    if stream is None:
        return
    try:
        print(text, file=stream, flush=True)
    except OSError as e:  # what is still buffered must not fail once more when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(e, BrokenPipeError) and stream is not sys.stderr:
            raise OSError(e.errno, e.strerror, "standard output") from e


def one_line(text: object) -> str:
    return " ".join(str(text).split())


class Stopped(KeyboardInterrupt):
    """Not KeyboardInterrupt itself: after one of those has passed an ``exec``, which dataclasses call during imports,
    CPython ends the process by SIGINT and not with the exit code, even if it was caught."""


class Signals(contextlib.AbstractContextManager["Signals"]):
    """Ctrl-C and SIGTERM both stop by KeyboardInterrupt; ``received`` tells which one came, 0 if none did.

    A library may turn the exception into one of its own, so ``received`` and not the exception's type says why a run
    ended. ``last``: the process ends with this block, so that afterwards both are ignored and cannot tear its exit.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.received = 0
        self._last = last
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup and background jobs of scripts
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def _stop(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a forked worker: it ends as if this handler were not there
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        raise Stopped

    def ignore(self) -> None:
        """The run is about to end by itself: an impatient second Ctrl-C must not tear its last message."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        if self._last:
            return self.ignore()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def notes(level: int) -> Iterator[None]:
    """Log records of the library from ``level`` on, as one line each on stderr."""
    logger, handler = logging.getLogger("rest_fast"), _Notes(level)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:
            return
        from tqdm import tqdm  # here and below: a quarter of the time that --help takes

        word = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        with tqdm.external_write_mode(sys.stderr):  # takes a bar away and draws it anew below the line
            say(f"{word}: {one_line(record.getMessage())}", sys.stderr)
            if record.exc_info and record.exc_info[0]:  # of a server, which goes on: nobody else would ever show it
                say("".join(traceback.format_exception(*record.exc_info)).rstrip(), sys.stderr)


@contextlib.contextmanager
def warnings_as_lines(others: bool) -> Iterator[None]:
    """Warnings of this package as log records, which :func:`notes` shows.

    Those of others speak to programmers: they are shown as Python does, and only with ``others``. Where ``-W`` or
    ``PYTHONWARNINGS`` says what becomes of warnings, that holds.
    """
    with warnings.catch_warnings():
        if not sys.warnoptions:
            if not others:
                warnings.simplefilter("ignore")
            warnings.simplefilter("always", RestFastWarning)
        show = warnings.showwarning

        def log(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RestFastWarning):
                logging.getLogger("rest_fast").warning("%s", message)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = log
        yield


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Counts what is done, and draws a bar where stderr is a terminal: ``progress(done, total)``.

    With ``rate`` (units per second of playing time) it also shows the speed against real time.
    """

    def __init__(self, unit: str, *, quiet: bool = False, rate: float | None = None) -> None:
        self.done = self.total = 0
        self._unit, self._rate = unit, rate
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._start = time.perf_counter()
        return self

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self._shown and self._bar is None:
            from tqdm import tqdm

            form = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} " + self._unit + "{postfix}, {remaining} left"
            columns, lines = (
                shutil.get_terminal_size()
            )  # some pseudo-terminals say 0 x 0, where tqdm would show nothing
            self._bar = tqdm(total=total, bar_format=form, ncols=columns, nrows=lines, leave=False)
        if self._bar is not None:
            if self._rate and done:
                self._bar.set_postfix_str(f"{self.speed:.1f}x real time", refresh=False)
            self._bar.update(done - self._bar.n)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    @property
    def speed(self) -> float:
        """Playing time made per second so far."""
        return self.done / (self._rate or 1) / max(self.seconds, 1e-9)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
