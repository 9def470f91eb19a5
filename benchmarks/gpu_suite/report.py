"""The JSON and the log of a part. The JSON is also the state from which the next call goes on."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NO_TIME = "no time left in this call: run the same command again"
SHOWN = 25  # last lines of a failed step that are printed
EXIT_FAILED, EXIT_LEFT = 1, 3


@dataclass(frozen=True)
class Outcome:
    """The verdict on a step."""

    status: str  # passed, failed or skipped
    reason: str = ""
    results: dict[str, Any] | None = None


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class Report:
    """``OUT/PART.json`` and ``OUT/PART.log``.

    ``identity`` is what results depend on (source, GPU, libraries). Results of another identity are moved to
    ``PART-SOURCE.json`` and not continued.
    """

    def __init__(self, out: Path, part: str, environment: dict[str, Any], identity: dict[str, Any]) -> None:
        self.path, self.log = out / f"{part}.json", out / f"{part}.log"
        self.part, self.environment, self.identity = part, environment, identity
        self.steps: dict[str, dict[str, Any]] = {}  # in the order in which they ended
        self._temporary = tempfile.TemporaryDirectory(prefix="gpu-suite-")
        self._scratch = Path(self._temporary.name)
        out.mkdir(parents=True, exist_ok=True)
        self._before = self._earlier()
        self._write_log(f"\n##### {part}, {now()}\n{json.dumps(environment, indent=1)}\n")
        self.save()

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """Records of earlier calls by step, if they were made of the same source on the same machine."""
        try:
            found = json.loads(self.path.read_text())
            same, key = found["identity"] == self.identity, str(found["identity"]["source"])
            records = {record["name"]: record for record in found["steps"]}
        except FileNotFoundError:
            return {}
        except (ValueError, LookupError, TypeError) as e:
            raise ValueError(f"{self.path}: expected the JSON of an earlier run, got {type(e).__name__}: {e}") from e
        if same:
            return records
        os.replace(self.path, self.path.with_name(f"{self.part}-{key[:16]}.json"))
        return {}

    # --- steps ---

    def passed(self, name: str) -> bool:
        """Whether an earlier call has done this step."""
        return self._before.get(name, {}).get("status") == PASSED

    def keep(self, name: str) -> None:
        """Take the record of an earlier call over."""
        self.steps[name] = self._before[name]
        print(f"{name:44} {PASSED:8}          (done before)", flush=True)
        self.save()

    def add(self, name: str, outcome: Outcome, seconds: float, text: str = "") -> None:
        """Record a verdict, and put what the step printed into the log."""
        self.steps[name] = {
            "name": name,
            "status": outcome.status,
            "reason": outcome.reason,
            "seconds": round(seconds, 2),
            "at": now(),
            "results": outcome.results,
        }
        head = f"{name:44} {outcome.status:8} {seconds:6.1f} s {outcome.reason}".rstrip()
        self._write_log(f"\n=== {head}\n{text}")
        print(head, flush=True)
        if outcome.status == FAILED:
            for line in text.strip().splitlines()[-SHOWN:]:
                print(f"    | {line}", flush=True)
        self.save()

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
        return {status: states.count(status) for status in (PASSED, FAILED, SKIPPED)}

    def complete(self) -> bool:
        """Whether no step was left for want of time."""
        return not any(record["reason"] == NO_TIME for record in self.steps.values())

    def save(self, *, finished: bool = False) -> None:
        """Write the JSON in one move. Records of steps that this call has not reached yet stay in it."""
        later = [record for name, record in self._before.items() if name not in self.steps and not finished]
        content = {
            "part": self.part,
            "complete": finished and self.complete(),
            "gpu_used": "gpu" in self.environment,
            "counts": self.counts(),
            "identity": self.identity,
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
