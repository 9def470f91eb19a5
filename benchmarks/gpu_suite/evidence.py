"""What a step has found so far: lines of JSON in one file of a part, written as they come. A killed step loses none.

A step's program takes :meth:`Evidence.here`, whose place the suite leaves in the environment, and runs its jobs through
it. Lines carry the step and the digest of what it depends on: in the next call the step goes on behind them, and lines
of other sources count for nothing. Only the standard library.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLES = ("GPU_SUITE_EVIDENCE", "GPU_SUITE_STEP", "GPU_SUITE_DIGEST")
REASON = 500  # letters of an error that are kept
Found = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """The last line of each job of a step, and how many jobs there are, if the step has said so."""

    found: Mapping[str, Found] = field(default_factory=dict)
    jobs: int | None = None

    @property
    def failed(self) -> dict[str, str]:
        """Job -> why."""
        return {name: line["failed"] for name, line in self.found.items() if "failed" in line}

    def __str__(self) -> str:
        return f"{len(self.found)} of {self.jobs}"

    def results(self) -> Found | None:
        """For a record; None where there is no line at all."""
        return {"jobs": self.jobs, "found": dict(self.found)} if self.found or self.jobs is not None else None


def read(path: Path, step: str, digest: str) -> Progress:
    """What this step has written under this digest. A line that was cut is left out."""
    found: dict[str, Found] = {}
    jobs = None
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            mine = line.pop("step") == step and line.pop("digest") == digest
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
        if mine and "jobs" in line:
            jobs = line["jobs"]
        elif mine and "name" in line:
            found[line.pop("name")] = line
    return Progress(found, jobs)


class Evidence:
    """The lines of one step. Without a path they are printed and no more."""

    def __init__(self, path: Path | None, step: str = "", digest: str = ""):
        self.path, self.step, self.digest = path, step, digest

    @classmethod
    def here(cls) -> Evidence:
        """That of the step whose program this process is."""
        path, step, digest = (os.environ.get(name, "") for name in VARIABLES)
        return cls(Path(path) if path else None, step, digest)

    def environment(self) -> dict[str, str]:
        """The variables from which :meth:`here` makes it again."""
        return dict(zip(VARIABLES, (str(self.path or ""), self.step, self.digest), strict=True))

    def progress(self) -> Progress:
        return read(self.path, self.step, self.digest) if self.path else Progress()

    def left(self, names: Iterable[str]) -> list[str]:
        """Those of the step's jobs that have no result yet: the new ones, then those that failed.

        A job that breaks the device comes back last, when it can no longer keep others from being done.
        """
        names, before = list(names), self.progress()
        self._write({"jobs": len(names)})
        return [n for n in names if n not in before.found] + [n for n in names if n in before.failed]

    def add(self, name: str, found: Mapping[str, Any]) -> None:
        self._write({"name": name, **found})

    def run(self, jobs: Mapping[str, Callable[[], Mapping[str, Any]]]) -> int:
        """Run those that are left, one after the other. 1 if one failed, else 0."""
        codes = [self.do(name, jobs[name]) for name in self.left(jobs)]
        return max(codes, default=0)

    def do(self, name: str, job: Callable[[], Mapping[str, Any]]) -> int:
        """Run one job. What it returns is its line; so is an error, and 1 is returned."""
        start = time.perf_counter()
        try:
            found = dict(job())
        except Exception as e:
            traceback.print_exc()
            found = {"failed": f"{type(e).__name__}: {e}"[:REASON]}
        self.add(name, {"seconds": round(time.perf_counter() - start, 3)} | found)
        return int("failed" in found)

    def _write(self, line: Found) -> None:
        """In a single write, so that processes side by side do not mix their lines."""
        if self.path is None:
            print(json.dumps(line, default=str), flush=True)
            return
        text = json.dumps({"step": self.step, "digest": self.digest, **line}, default=str) + "\n"
        with self.path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                text = "\n" + text  # behind a line that was cut
            os.write(file.fileno(), text.encode())
