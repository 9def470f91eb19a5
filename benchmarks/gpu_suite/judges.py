"""Verdicts on what a step's command left: pytest's counts, a benchmark's results, a sanitizer's findings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from . import machine
from .report import FAILED, PASSED, SKIPPED, Outcome
from .steps import Ended, by_exit_code

FOUND_ERRORS = 99  # what compute-sanitizer is told to exit with, if the program itself ends well
REFUSED = ("Device not supported", "not supported on this", "Unable to launch", "insufficient permissions")
NOTHING_COLLECTED = 5  # pytest's exit code


def tests(junit: Path) -> Callable[[Ended], Outcome]:
    """Counts, failures and reasons of skips from pytest's JUnit file. What ran not at all is skipped, not passed."""

    def judge(ended: Ended) -> Outcome:
        if ended.code == NOTHING_COLLECTED:
            return Outcome(SKIPPED, "no test was collected")
        cases = ElementTree.parse(junit).getroot().findall(".//testcase")
        red = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        skips = [skip.get("message", "") for case in cases if (skip := case.find("skipped")) is not None]
        results: dict[str, Any] = {
            "passed": len(cases) - len(red) - len(skips),
            "failed": [f"{case.get('classname')}::{case.get('name')}" for case in red],
            "skipped": {reason: skips.count(reason) for reason in sorted(set(skips))},
        }
        if ended.code or red:
            return Outcome(FAILED, f"{len(red)} of {len(cases)} tests failed (exit code {ended.code})", results)
        if not results["passed"]:
            return Outcome(
                SKIPPED, f"every test was skipped: {'; '.join(results['skipped']) or 'there is none'}", results
            )
        return Outcome(PASSED, f"{results['passed']} tests", results)

    return judge


def benchmarks(stored: Path) -> Callable[[Ended], Outcome]:
    """The JSON of pytest-benchmark, and the GPU's clocks right after it."""

    def judge(ended: Ended) -> Outcome:
        if ended.code == NOTHING_COLLECTED:
            return Outcome(SKIPPED, "no benchmark was collected")
        if ended.code:
            return by_exit_code(ended)
        found = json.loads(stored.read_text())
        count = len(found["benchmarks"])
        if not count:
            return Outcome(SKIPPED, "no benchmark ran here")
        return Outcome(PASSED, f"{count} benchmarks", found | {"after": machine.graphics()})

    return judge


def found(ended: Ended) -> Outcome:
    """A program that leaves evidence: passed if all of its jobs are there and none failed."""
    evidence = ended.evidence
    results = evidence.results()
    for name, why in evidence.failed.items():
        return Outcome(FAILED, f"{len(evidence.failed)} of {evidence.jobs} failed, first {name}: {why}", results)
    if ended.code or evidence.jobs is None or len(evidence.found) < evidence.jobs:
        return Outcome(FAILED, f"{by_exit_code(ended).reason or 'ended early'}; {evidence} done", results)
    return Outcome(PASSED, f"{evidence.jobs} done", results)


def printed(ended: Ended) -> Outcome:
    """Passed with exit code 0; the last line printed is JSON and the result."""
    if ended.code:
        return by_exit_code(ended)
    return Outcome(PASSED, "", json.loads(ended.output.strip().splitlines()[-1]))


def clean(ended: Ended) -> Outcome:
    """A program under compute-sanitizer: no errors and no hazards, by its summary."""
    errors = _errors(ended.output)
    if ended.code == 0 and errors == 0:
        return Outcome(PASSED, "no errors")
    if errors:
        said = (line.strip("= ") for line in ended.output.splitlines() if line.startswith("========="))
        first = next((text for text in said if text and not text.startswith("COMPUTE-SANITIZER")), "")
        return Outcome(FAILED, f"{errors} errors, first: {first}", {"errors": errors})
    if errors is None:
        return Outcome(FAILED, f"no summary of compute-sanitizer; {by_exit_code(ended).reason}")
    return by_exit_code(ended)


def caught(ended: Ended) -> Outcome:
    """A program with a planted error: only a sanitizer that reports it can be believed when it reports nothing."""
    if ended.code and _errors(ended.output):
        return Outcome(PASSED, "the planted error was found")
    said = next((line.strip("= ") for line in ended.output.splitlines() if any(word in line for word in REFUSED)), "")
    if said:
        return Outcome(SKIPPED, f"compute-sanitizer is refused here: {said}")
    return Outcome(SKIPPED, f"compute-sanitizer did not find a planted error (exit code {ended.code})")


def _errors(text: str) -> int | None:
    """What the summaries of memcheck ("ERROR SUMMARY: 2 errors") or racecheck ("3 hazards displayed") add up to."""
    numbers = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    return sum(int(a or b) for a, b in numbers) if numbers else None
