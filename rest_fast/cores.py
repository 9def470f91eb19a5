"""How many cores this process may use, and how many of them other processes leave free.

Both are known on Linux. Elsewhere the limit is the number of cores, and nothing is known of other processes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS, OWN_GROUPS, STAT = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/stat")


def affinity() -> int:
    """Cores that this process is allowed to run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allowed() -> int:
    """Threads that can run at once: the cores of the affinity, but no more than a container's CPU quota allows."""
    limit = quota()
    return affinity() if limit is None else max(1, min(affinity(), math.floor(limit.cores)))


@dataclass(frozen=True)
class Quota:
    """CPU time a control group may use."""

    cores: float  # seconds of CPU time a second
    usage: Path  # file with the CPU time used so far

    def used(self) -> float:
        """Seconds of CPU time that all processes of the group have used so far."""
        for line in _lines(self.usage):
            if self.usage.name != "cpu.stat":
                return int(line) / 1e9
            if line.startswith("usage_usec"):
                return int(line.split()[1]) / 1e6
        return 0.0


def quota() -> Quota | None:
    """The tightest CPU quota of the control groups this process is in (version 2 or 1), or None."""
    return min(_quotas(), key=lambda found: found.cores, default=None)


def _quotas() -> Iterator[Quota]:
    for line in _lines(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _unified(path.lstrip("/"))
        elif "cpu" in controllers.split(","):
            yield from _version_1(controllers, path.lstrip("/"))


def _unified(path: str) -> Iterator[Quota]:
    """Quotas of a version 2 group and of the groups that contain it, which limit it, too."""
    for root in (CGROUPS, CGROUPS / "unified"):
        for folder in _upwards(root, path):
            limit, *period = " ".join(_lines(folder / "cpu.max")).split() or ["max"]
            if limit != "max":
                yield Quota(int(limit) / int(period[0]), folder / "cpu.stat")


def _version_1(controllers: str, path: str) -> Iterator[Quota]:
    for folder in _upwards(CGROUPS / controllers, path):
        limit, *period = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")] or ["-1"]
        if int(limit) > 0:
            usage = folder / "cpuacct.usage"
            if not usage.exists():  # the controller cpuacct is mounted separately
                usage = CGROUPS / "cpuacct" / folder.relative_to(CGROUPS / controllers) / "cpuacct.usage"
            yield Quota(int(limit) / int(period[0]), usage)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder ``path`` below ``root``, and its parents up to ``root``."""
    folder = root / path
    yield folder
    while folder != root:
        folder = folder.parent
        yield folder


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


class FreeCores:
    """The cores that this process could have used since the last look: idle ones, and those that it used."""

    def __init__(self) -> None:
        self.quota = quota()
        self._last: tuple[float, float, float, float] | None = None

    def look(self, own: float) -> float:
        """Number of cores, given the CPU seconds ``own`` that the caller's threads have used so far.

        Infinity at the first look, and where the system does not tell.
        """
        idle = _idle_seconds()
        if idle is None:
            return math.inf
        used = self.quota.used() if self.quota else 0.0
        now = time.monotonic(), idle, used, own
        before, self._last = self._last, now
        if before is None:
            return math.inf
        seconds, idle, used, own = (b - a for a, b in zip(before, now, strict=True))
        free = (idle + own) / max(seconds, 1e-3)
        return free if self.quota is None else min(free, self.quota.cores - (used - own) / max(seconds, 1e-3))


def _idle_seconds() -> float | None:
    """Idle seconds of all cores of the affinity together."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    names = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    fields = [line.split() for line in _lines(STAT) if line.startswith("cpu")]
    lines = [line for line in fields if line[0] in names]
    # fields 4 and 5: idle, and idle while waiting for a disk
    ticks = sum(int(line[4]) + int(line[5]) for line in lines)
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None  # a sandbox may show a file of zeros
