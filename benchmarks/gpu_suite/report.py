"""The JSON and the log of a part. The JSON is also the state from which the next call goes on."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PASSED, FAILED, SKIPPED, CUT = "passed", "failed", "skipped", "cut off"
NO_TIME = "no time left in this call"
SHOWN = 25  # last lines of a failed step that are printed
EXIT_FAILED, EXIT_LEFT = 1, 3


@dataclass(frozen=True)
class Outcome:
    """The verdict on a step."""

    status: str  # passed, failed, skipped, or cut off by the end of the call
    reason: str = ""
    results: dict[str, Any] | None = None


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class Report:
    """``OUT/PART.json``, ``OUT/PART.log``, and ``OUT/PART.jsonl`` with what steps find as they go (``evidence.py``).

    A record stands as long as the digest of its step is the same. One that is replaced, with results in it, goes to
    ``PART-earlier.jsonl``.
    """

    def __init__(self, out: Path, part: str, environment: dict[str, Any]) -> None:
        self.path, self.log, self.evidence = (out / f"{part}.{end}" for end in ("json", "log", "jsonl"))
        self.part, self.environment = part, environment
        self.steps: dict[str, dict[str, Any]] = {}  # in the order in which they ended
        self._temporary = tempfile.TemporaryDirectory(prefix="gpu-suite-")
        self._scratch = Path(self._temporary.name)
        out.mkdir(parents=True, exist_ok=True)
        self._before = self._earlier()
        self._write_log(f"\n##### {part}, {now()}\n{json.dumps(environment, indent=1)}\n")
        self.save()

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """Records of earlier calls by step."""
        try:
            return {record["name"]: {"digest": "", **record} for record in json.loads(self.path.read_text())["steps"]}
        except FileNotFoundError:
            return {}
        except (ValueError, LookupError, TypeError) as e:
            raise ValueError(f"{self.path}: expected the JSON of an earlier run, got {type(e).__name__}: {e}") from e

    # --- steps ---

    def passed(self, name: str, digest: str) -> bool:
        """Whether an earlier call has done this step, on the same sources and machine."""
        before = self._before.get(name, {})
        return before.get("status") == PASSED and before["digest"] == digest

    def keep(self, name: str) -> None:
        """Take the record of an earlier call over."""
        self.steps[name] = self._before[name]
        print(f"{name:44} {PASSED:8}          (done before)", flush=True)
        self.save()

    def add(self, name: str, outcome: Outcome, seconds: float, text: str = "", digest: str = "") -> None:
        """Record a verdict, and put what the step printed into the log."""
        self.steps[name] = {
            "name": name,
            "status": outcome.status,
            "reason": outcome.reason,
            "seconds": round(seconds, 2),
            "at": now(),
            "commit": self.environment["source"]["commit"],
            "digest": digest,
            "results": outcome.results,
        }
        before = self._before.pop(name, None)
        if before and before["results"]:
            self._replace(before, self.steps[name])
        head = f"{name:44} {outcome.status:8} {seconds:6.1f} s {outcome.reason}".rstrip()
        self._write_log(f"\n=== {head}\n{text}")
        print(head, flush=True)
        if outcome.status in (FAILED, CUT):
            for line in text.strip().splitlines()[-SHOWN:]:
                print(f"    | {line}", flush=True)
        self.save()

    def _replace(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Keep what an earlier record found: in the new one if that has nothing to say yet, else beside."""
        if now["results"] is None and now["digest"] == before["digest"]:
            now["results"] = before["results"]
            return
        with self.path.with_name(f"{self.part}-earlier.jsonl").open("a") as file:
            file.write(json.dumps(before) + "\n")

    def verdict(self, name: str) -> tuple[str, str]:
        return self.steps[name]["status"], self.steps[name]["reason"]

    # --- what a step prints while it runs ---

    def _file(self, name: str) -> Path:
        return self._scratch / f"{name.replace('/', '.')}.txt"

    def scratch(self, name: str) -> IO[bytes]:
        return self._file(name).open("wb")

    def printed(self, name: str) -> str:
        return self._file(name).read_text(errors="replace")

    def _write_log(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text if text.endswith("\n") else text + "\n")

    # --- the JSON ---

    def counts(self) -> dict[str, int]:
        states = [record["status"] for record in self.steps.values()]
        return {status: states.count(status) for status in (PASSED, FAILED, SKIPPED, CUT)}

    def complete(self) -> bool:
        """Whether no step was left, or cut off, for want of time."""
        return not any(r["status"] == CUT or r["reason"].startswith(NO_TIME) for r in self.steps.values())

    def save(self, *, finished: bool = False) -> None:
        """Write the JSON in one move. Records of steps that this call has not reached yet stay in it."""
        later = [record for name, record in self._before.items() if name not in self.steps and not finished]
        content = {
            "part": self.part,
            "complete": finished and self.complete(),
            "gpu_used": "gpu" in self.environment,
            "counts": self.counts(),
            "environment": self.environment,
            "steps": [*self.steps.values(), *later],
        }
        partial = self.path.with_suffix(".json.partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, self.path)

    def close(self) -> int:
        """Write the end, print a summary; 0, or 1 if a step failed, or 3 if steps are left for another call."""
        self.save(finished=True)
        self._temporary.cleanup()
        gpu = self.environment.get("gpu", {}).get("name")
        said = ", ".join(f"{number} {status}" for status, number in self.counts().items())
        lines = [f"GPU: {gpu or 'NOT RUN, no CUDA device'}", f"{self.part}: {said}; {self.path} and {self.log.name}"]
        if not self.complete():
            lines.append("not complete: run the same command again, it goes on from here")
        print("\n".join(lines), flush=True)
        self._write_log("\n" + "\n".join(lines))
        return EXIT_FAILED if self.counts()[FAILED] else 0 if self.complete() else EXIT_LEFT
