"""The command line: one part, or all of them, within the seconds of a call."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import machine, parts
from .place import Place, environment
from .report import EXIT_FAILED, EXIT_LEFT, FAILED, PASSED, Outcome, Report
from .steps import Runner, check

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 560.0  # a call, so that ten minutes are never full


def run_part(name: str, chosen: argparse.Namespace, found: dict[str, Any], *, seconds: float) -> int:
    """One part in at most so many seconds; the exit code. ``found`` is what ``machine.record`` gave."""
    report = Report(chosen.out.resolve(), name, found)
    problem = found["problem"]
    report.add("environment", Outcome(FAILED if problem else PASSED, problem), found.get("seconds", 0.0))
    if not problem:
        place = Place(
            ROOT, chosen.work.resolve(), chosen.out.resolve(), found, ungated=chosen.ungated, rehearse=chosen.rehearse
        )
        variables = environment(place)
        runner = Runner(report, ROOT, seconds=seconds, workers=place.workers, environment=variables)
        steps = parts.listed(name, place)
        check(steps)
        runner.run(steps)
    return report.close()


def main(words: list[str] | None = None) -> int:
    """0: passed, or skipped for a reason; 1: a step failed; 2: wrong arguments; 3: run again, steps are left."""
    parser = argparse.ArgumentParser(
        prog="gpu_suite", description="Build, parity, memory checks and op benchmarks on a GPU."
    )
    parser.add_argument("--part", default="short", choices=[*parts.PARTS, "all"])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="for PART.json and PART.log")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-work", help="for what is built")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for this call (%(default)s)")
    parser.add_argument("--ungated", action="store_true", help="measure although parity tests failed; the JSON says so")
    parser.add_argument("--rehearse", action="store_true", help="the short part's steps at tiny sizes, on the CPU")
    chosen = parser.parse_args(words)
    if chosen.rehearse:
        chosen.part, chosen.out, chosen.work = "short", chosen.out / "rehearsal", chosen.work / "rehearsal"
    started = time.monotonic()
    found = machine.record(ROOT)
    if chosen.rehearse:
        found.pop("gpu", None)
    found |= {"seconds": round(time.monotonic() - started, 2), "ungated": chosen.ungated}
    names = list(parts.PARTS) if chosen.part == "all" else [chosen.part]
    codes = set()
    try:
        with ended_by_exit():
            for name in names:
                left = chosen.seconds - (time.monotonic() - started)
                codes.add(run_part(name, chosen, found, seconds=left))
    except ValueError as e:
        print(f"gpu_suite: {e}", file=sys.stderr)
        return 2
    return next((code for code in (EXIT_FAILED, EXIT_LEFT) if code in codes), 0)


@contextlib.contextmanager
def ended_by_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit, once, so that what runs is ended and recorded."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
