"""Steps of a part: what one is, and how a list of them is run, timed, cut off, resumed and reported."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .report import FAILED, NO_TIME, PASSED, SKIPPED, Outcome, Report

POLL = 0.05  # seconds


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    output: str  # stdout and stderr


def by_exit_code(ended: Ended) -> Outcome:
    """Passed with exit code 0; else the last line it printed is the reason."""
    if ended.code == 0:
        return Outcome(PASSED)
    lines = ended.output.strip().splitlines()
    return Outcome(FAILED, f"exit code {ended.code}: {lines[-1].strip() if lines else 'nothing was printed'}")


@dataclass(frozen=True)
class Step:
    """One command with a verdict on it."""

    name: str
    command: tuple[str, ...] = ()
    limit: float = 60.0  # seconds, after which it is stopped
    needs: tuple[str, ...] = ()  # steps before this one that must have passed
    skip: str = ""  # why it cannot run here
    judge: Callable[[Ended], Outcome] = by_exit_code
    product: Path | None = None  # done only while this is there
    beside: bool = False  # may run at the same time as its neighbours that may, too
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Running:
    step: Step
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    started: float

    def stop(self) -> None:
        """Kill the command and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def check(steps: list[Step], seconds: float) -> None:
    """Raise ``ValueError`` for steps that cannot be run in any call of this length, or in this order."""
    seen: set[str] = set()
    for step in steps:
        if step.name in seen:
            raise ValueError(f"steps: expected every name once, got {step.name} again")
        if not seen.issuperset(step.needs):
            raise ValueError(f"step {step.name}: expected needs among the steps before it, got {step.needs}")
        if step.limit > seconds:
            raise ValueError(f"limit: expected at least {step.limit:.0f} s, for step {step.name}, got {seconds:.0f} s")
        seen.add(step.name)


class Runner:
    """Runs steps in order within ``seconds``; what is done is in the report after every step.

    A step that passed before, by the report, is not repeated. One whose limit does not fit in the time left is skipped
    with the reason :data:`NO_TIME`, so that a call never outlasts ``seconds`` and the next call goes on from there.
    """

    def __init__(
        self,
        report: Report,
        folder: Path,
        *,
        seconds: float,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.report = report
        self.folder = folder  # where the commands run
        self.workers = workers
        self.environment = dict(os.environ if environment is None else environment)
        self.seconds = seconds
        self.running: list[Running] = []

    def run(self, steps: list[Step]) -> None:
        self.deadline = time.monotonic() + self.seconds
        waiting = list(steps)
        try:
            while waiting or self.running:
                while waiting and self._may_start(waiting[0]):
                    self._start(waiting.pop(0))
                self._collect()
                if self.running:
                    time.sleep(POLL)
        finally:
            for left in self.running:  # Ctrl-C
                left.stop()
                left.output.close()

    def _may_start(self, step: Step) -> bool:
        if not self.running:
            return True
        names = {r.step.name for r in self.running}
        together = step.beside and all(r.step.beside for r in self.running) and len(self.running) < self.workers
        return together and not names.intersection(step.needs)

    def _start(self, step: Step) -> None:
        if self.report.passed(step.name) and (step.product is None or step.product.exists()):
            self.report.keep(step.name)
            return
        reason = step.skip or self._missing(step)
        if not reason and time.monotonic() + step.limit > self.deadline:
            reason = NO_TIME
        if reason:
            self.report.add(step.name, Outcome(SKIPPED, reason), 0.0)
            return
        output = self.report.scratch(step.name)
        try:
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment | dict(step.environment),
                start_new_session=True,
            )
        except OSError as e:
            output.close()
            self.report.add(step.name, Outcome(FAILED, f"cannot be started: {e}"), 0.0)
            return
        self.running.append(Running(step, process, output, time.monotonic()))

    def _missing(self, step: Step) -> str:
        """Which needed step stands in the way, or an empty string."""
        for name in step.needs:
            status, reason = self.report.verdict(name)
            if status == SKIPPED and reason == NO_TIME:
                return NO_TIME
            if status != PASSED:
                return f"needs {name}, which {'failed' if status == FAILED else f'was skipped ({reason})'}"
        return ""

    def _collect(self) -> None:
        for one in list(self.running):
            seconds = time.monotonic() - one.started
            ended = one.process.poll() is not None
            if not ended and seconds <= one.step.limit:
                continue
            self.running.remove(one)
            one.stop()
            one.output.close()
            text = self.report.printed(one.step.name)
            if ended:
                outcome = self._judged(one.step, Ended(one.process.returncode, text))
            else:
                outcome = Outcome(FAILED, f"stopped after {one.step.limit:g} s")
            self.report.add(one.step.name, outcome, seconds, text)

    def _judged(self, step: Step, ended: Ended) -> Outcome:
        try:
            return step.judge(ended)
        except (OSError, ValueError, LookupError, TypeError) as e:  # a result file that is missing or cut
            return Outcome(FAILED, f"exit code {ended.code}, and its result cannot be read: {type(e).__name__}: {e}")
