"""What was measured, as a document for JSON, as text, as curves; and two of them side by side."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rest_fast.errors import ArgumentError
from rest_fast.latency.measures import EXCLUDED, Options, percentiles
from rest_fast.latency.where import commit_info, environment
from rest_fast.model import Model

WAITS = ("count", "p50_ms", "p95_ms", "p99_ms", "jitter_ms")
VIEWERS = {  # column -> its title
    "way": "way",
    "sessions": "sessions",
    "deadlines_met": "deadlines met",
    "unserved": "unserved",
    "underruns": "underruns",
    "stalled_s": "stalled, s",
    "p50_ms": "p50, ms",
    "p95_ms": "p95, ms",
    "p99_ms": "p99, ms",
    "jitter_ms": "jitter, ms",
    "chunk_gap_ms": "gaps, ms",
    "made_ms": "chunk, ms",
    "capacity": "capacity",
}
CHOSEN = ("sessions", "seconds", "count")  # numbers that are no result
KIND = "rest_fast latency"  # of a document
Document = dict[str, Any]


def document(model: Model, options: Options, measured: Mapping[str, Any]) -> Document:
    """With where it comes from; lists of seconds become percentiles."""
    about = {"model": model.config.name, "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
    return {
        "kind": KIND,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(commit_info()),
        "about": about | {"threads": model.team()[0], "options": dataclasses.asdict(options)},
        "excluded": EXCLUDED,
        "measured": summarised(measured),
    }


def summarised(value: Any) -> Any:
    """Lists of seconds as percentiles, at whatever depth."""
    if isinstance(value, Mapping):
        return {key: summarised(one) for key, one in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, float) for one in value):
        return percentiles(value)
    return [summarised(one) for one in value] if isinstance(value, list) else value


def write(found: Document, path: Path) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Document:
    """Raises: :class:`rest_fast.ArgumentError` for anything but what :func:`write` wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("kind") != KIND or not isinstance(found.get("measured"), dict):
        raise ArgumentError(f"{path}: expected a file that rest-fast bench --json has written, got another")
    return found


# -- text


def text(found: Document) -> str:
    """Where it was measured, what is not in it, waits of one session, and viewers by number."""
    measured = dict(found["measured"])
    viewers = measured.pop("viewers", [])
    parts = [heading(found), f"not counted: {found['excluded']}"]
    waits = [(name, row) for name, row in _rows(measured) if "p50_ms" in row]
    numbers = [(name, row) for name, row in _rows(measured) if "p50_ms" not in row]
    if waits:
        titles = ["milliseconds", "count", "p50", "p95", "p99", "jitter"]
        parts.append(table([titles, *([name, *(_shown(row[key]) for key in WAITS)] for name, row in waits)]))
    if numbers:
        parts.append("\n".join(f"{name}: {_words(row)}" for name, row in numbers))
    if viewers:
        columns = [key for key in VIEWERS if any(key in row for row in viewers)]
        lines = [
            [_shown(row.get(key)) if key != "deadlines_met" else f"{row[key]:.0%}" for key in columns]
            for row in viewers
        ]
        parts.append(
            f"viewers, {viewers[0]['seconds']:g} s each\n" + table([[VIEWERS[key] for key in columns], *lines])
        )
    return "\n\n".join(parts)


def heading(found: Document) -> str:
    """Model, device and machine in a line."""
    where, about = found["environment"], found["about"]
    gpu = [f"{where['gpu']} (driver {where['driver']}), triton {where['triton']}"] if where.get("gpu") else []
    commit = (
        [f"commit {where['commit'][:7]}" + " with changes" * bool(where["uncommitted_changes"])]
        if where.get("commit")
        else []
    )
    words = [
        f"{about['model']} in {about['dtype']} on {about['device']}, {_threads(about['threads'])}",
        *gpu,
        where["cpu"],
        f"torch {where['torch']}",
        f"rest_fast {where['rest_fast']}",
        *commit,
        found["date"],
    ]
    return ", ".join(words)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def comparison(a: Document, b: Document) -> str:
    """Every number that both have, and the second over the first."""
    left, right = (dict(_numbers(one["measured"])) for one in (a, b))
    rows = [["", "A", "B", "B / A"]]
    for name, value in left.items():
        if name in right:
            rows.append([name, _shown(value), _shown(right[name]), f"{right[name] / value:.2f}" if value else "-"])
    only = [
        f"only in {label}: {', '.join(names)}"
        for label, names in (("A", [n for n in left if n not in right]), ("B", [n for n in right if n not in left]))
        if names
    ]
    return "\n\n".join([f"A: {heading(a)}\nB: {heading(b)}", table(rows), *only])


def table(lines: list[list[str]]) -> str:
    """Columns as wide as they need; the first one is text, the others are numbers."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _rows(value: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object with numbers in it, by the names that lead to it."""
    numbers = {key: one for key, one in value.items() if not isinstance(one, Mapping)}
    if numbers:
        yield name, numbers
    for key, one in value.items():
        if isinstance(one, Mapping):
            yield from _rows(one, f"{name}, {key}" if name else key)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every result, by the names that lead to it; viewers by their way and how many they were."""
    if isinstance(value, list):
        value = {f"{one['way']} x {one['sessions']}": one for one in value}
    if isinstance(value, Mapping):
        for key, one in ((key, one) for key, one in value.items() if key not in CHOSEN):
            yield from _numbers(one, f"{name}, {key}" if name else key)
    elif isinstance(value, (int, float)):
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _words(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in row.items())


# -- curves


def plot(found: Document, path: Path) -> Path:
    """Underruns and the p95 of responses over the number of sessions, as a PNG."""
    from rest_fast.evaluation import charts

    viewers = found["measured"]["viewers"]
    counts = sorted({row["sessions"] for row in viewers})
    by = {(row["way"], row["sessions"]): row for row in viewers}
    ways: list[str] = list(dict.fromkeys(row["way"] for row in viewers))

    def panel(title: str, key: str) -> charts.Panel:
        curves: dict[str, Any] = {way: [by.get((way, n), {}).get(key, math.nan) for n in counts] for way in ways}
        return charts.Panel(title, "sessions", counts, curves, marks=counts)

    seconds = f"{viewers[0]['seconds']:g} s"
    return charts.plot([panel(f"underruns in {seconds}", "underruns"), panel("p95 of responses, ms", "p95_ms")], path)
