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

from .evidence import Evidence, Progress, read
from .report import CUT, FAILED, NO_TIME, PASSED, SKIPPED, Outcome, Report

POLL = 0.05  # seconds
GRACE = 3.0  # seconds between asking a command to end and killing it


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    output: str  # stdout and stderr
    evidence: Progress = field(default_factory=Progress)


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
    expected: float | None = None  # seconds that must be left for it to begin; None: the limit
    needs: tuple[str, ...] = ()  # steps before this one that must have passed
    skip: str = ""  # why it cannot run here
    judge: Callable[[Ended], Outcome] = by_exit_code
    product: Path | None = None  # done only while this is there
    again: bool = False  # run in every call, although it has passed
    digest: str = ""  # of all that its result depends on: once it has passed, it is not repeated until that changes
    beside: bool = False  # may run at the same time as its neighbours that may, too
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def least(self) -> float:
        """Seconds without which it does not begin."""
        return self.limit if self.expected is None else self.expected


@dataclass
class Running:
    step: Step
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    started: float

    def stop(self) -> None:
        """End the command and what it has started: ask first, so that it may write what it has, then kill."""
        try:
            if self.process.poll() is None:
                self._signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(GRACE)
        finally:  # whoever presses Ctrl-C twice does not wait
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def check(steps: list[Step]) -> None:
    """Raise ``ValueError`` for steps that cannot be run in this order."""
    seen: set[str] = set()
    for step in steps:
        if step.name in seen:
            raise ValueError(f"steps: expected every name once, got {step.name} again")
        if not seen.issuperset(step.needs):
            raise ValueError(f"step {step.name}: expected needs among the steps before it, got {step.needs}")
        if step.least > step.limit:
            raise ValueError(f"step {step.name}: expected a limit of at least {step.least:g} s, got {step.limit:g} s")
        seen.add(step.name)


class Runner:
    """Runs steps in order within ``seconds``; what is done is in the report after every step.

    A step that passed before, by the report, is not repeated. One begins if its expected time is left; else it is
    skipped with the reason :data:`NO_TIME`. What still runs at the end of the call is cut off, and its evidence kept.
    So a call never outlasts ``seconds``, and the next one goes on from there.
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
            for left in list(self.running):  # Ctrl-C, or somebody ends this process
                self._finish(left, CUT)

    def _may_start(self, step: Step) -> bool:
        if not self.running:
            return True
        names = {r.step.name for r in self.running}
        together = step.beside and all(r.step.beside for r in self.running) and len(self.running) < self.workers
        return together and not names.intersection(step.needs)

    def _start(self, step: Step) -> None:
        done = self.report.passed(step.name, step.digest) and not step.again
        if done and (step.product is None or step.product.exists()):
            self.report.keep(step.name)
            return
        reason = step.skip or self._missing(step)
        left = max(self.deadline - time.monotonic() - GRACE, 0)
        if not reason and step.least > left:
            reason = f"{NO_TIME}: {left:.0f} s of about {step.least:.0f}"
        if reason:
            self.report.add(step.name, Outcome(SKIPPED, reason), 0.0, digest=step.digest)
            return
        output = self.report.scratch(step.name)
        try:
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment | self._evidence(step).environment() | dict(step.environment),
                start_new_session=True,
            )
        except OSError as e:
            output.close()
            self.report.add(step.name, Outcome(FAILED, f"cannot be started: {e}"), 0.0, digest=step.digest)
            return
        self.running.append(Running(step, process, output, time.monotonic()))

    def _evidence(self, step: Step) -> Evidence:
        return Evidence(self.report.evidence.resolve(), step.name, step.digest)

    def _missing(self, step: Step) -> str:
        """Which needed step stands in the way, or an empty string."""
        for name in step.needs:
            status, reason = self.report.verdict(name)
            if status == CUT or reason.startswith(NO_TIME):
                return f"{NO_TIME}: needs {name}"
            if status != PASSED:
                return f"needs {name}, which {'failed' if status == FAILED else f'was skipped ({reason})'}"
        return ""

    def _collect(self) -> None:
        for one in list(self.running):
            if one.process.poll() is not None:
                self._finish(one)
            elif time.monotonic() - one.started > one.step.limit:
                self._finish(one, FAILED)
            elif time.monotonic() + GRACE >= self.deadline:
                self._finish(one, CUT)

    def _finish(self, one: Running, stopped: str = "") -> None:
        """Record what a step has left; ``stopped``: the verdict on one that had not ended."""
        seconds, step = time.monotonic() - one.started, one.step
        self.running.remove(one)
        one.stop()
        one.output.close()
        text, evidence = self.report.printed(step.name), read(self.report.evidence, step.name, step.digest)
        if stopped:
            done = f", {evidence} done" if evidence.jobs else ""
            words = f"stopped after {step.limit:g} s" if stopped == FAILED else f"after {seconds:.0f} s"
            outcome = Outcome(stopped, words + done, evidence.results())
        else:
            outcome = self._judged(step, Ended(one.process.returncode, text, evidence))
        self.report.add(step.name, outcome, seconds, text, step.digest)

    def _judged(self, step: Step, ended: Ended) -> Outcome:
        try:
            return step.judge(ended)
        except (OSError, ValueError, LookupError, TypeError) as e:  # a result file that is missing or cut
            return Outcome(FAILED, f"exit code {ended.code}, and its result cannot be read: {type(e).__name__}: {e}")
