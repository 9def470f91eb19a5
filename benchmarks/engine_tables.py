"""Tables of what viewers wait for (``bench_engine.py``). Only the standard library."""

from __future__ import annotations

from typing import Any

from stored import Info, table

WAITS = {  # bench -> what is waited for
    "chunk_cold": "a fresh session's first chunk, from its sound",
    "chunk": "a chunk, from its sound",
    "first_frame": "first frame of a fresh session",
    "onset": "speech after silence, to its first block",
    "interrupt": "first new frame after an interrupt",
}
VIEWERS = {
    "deadlines_met": "deadlines met",
    "unserved": "never served",
    "underruns": "underruns",
    "stalled_s": "stalled, s",
    "p50_ms": "response p50",
    "p95_ms": "p95",
    "p99_ms": "p99, ms",
    "capacity": "capacity",
}


def waits_table(results: list[Info]) -> str:
    """One session."""
    found = {info["name"]: info for info in results}
    lines = [["what", "times", "p50", "p95", "p99", "p95 - p50, ms"]]
    for name, words in WAITS.items():
        for way, row in found.get(name, {}).get("variants", {}).items():
            what = words if way == "engine" else f"{words}, {way}"
            lines.append([what, str(found[name]["rounds"]), *_waits(row), _ms(row["p95_us"] - row["median_us"])])
    return table(lines)


def turns_table(results: list[Info]) -> str:
    """A chunk of one session by all ways in turn, and the parts of one."""
    found = {info["name"]: info for info in results}
    lines = [["a chunk of one session", "times", "p50", "p95", "p99, ms"]]
    for name, words in (("chunk_by_turns", ""), ("parts", "of it: ")):
        for way, row in found.get(name, {}).get("variants", {}).items():
            lines.append([words + way, str(found[name]["rounds"]), *_waits(row)])
    return table(lines)


def crowd_table(results: list[Info]) -> str:
    """Sessions whose sound is all there."""
    lines = [["sessions", "way", "chunks per second", "p50", "p95", "p99, ms", "chunks"]]
    for info in results:
        for way, row in info["variants"].items():
            rate = f"{info['chunks_per_second'][way]:.1f}"
            lines.append([str(info["sessions"]), way, rate, *_waits(row), str(info["rounds"])])
    return table(lines)


def _waits(row: dict[str, float]) -> list[str]:
    """p50, p95 and p99 in milliseconds."""
    return [_ms(row[key]) for key in ("median_us", "p95_us", "p99_us")]


def _ms(us: float) -> str:
    return f"{us / 1e3:.0f}"


def viewers_table(results: list[Info]) -> str:
    """Viewers in real time, by number and way."""
    rows = [row for info in results for row in info["viewers"]]
    lines = [["viewers", "way", *VIEWERS.values()]]
    for row in rows:
        cells = [
            "-" if row.get(key) is None else f"{round(row[key], 1 if row[key] < 10 else None):g}" for key in VIEWERS
        ]
        cells[0] = f"{row['deadlines_met']:.1%}"
        lines.append([str(row["sessions"]), row["way"], *cells])
    return table(lines)


def memory(results: list[Info]) -> str:
    """Of one more session, in words."""
    found = results[0]["memory"]
    gpu = "" if found["cuda_mib"] is None else f", {found['cuda_mib']:.0f} MiB of the GPU"
    return f"{found['rss_anon_mib']:.0f} MiB{gpu}"


def overload_table(stored: dict[str, Any]) -> str:
    """A line a scenario: least and most of what viewers saw."""
    lines = [
        ["asked for", "let in", "refused", "a chunk", "blocks of speech", "frames held", "underruns", "memory grew"]
    ]
    for run in stored["runs"]:
        viewers = run["viewers"]
        asked = run["asked"] + ("" if run["admission"] else ", without admission")
        asked += ", beside a busy process" if run["busy neighbour"] else ""
        spans = [_span([v["blocks"] - v["silence"] for v in viewers])]
        spans += [_span([v[name] for v in viewers]) for name in ("held", "underruns")]
        grew = f"{run['memory_mb'][-1] - run['memory_mb'][0]:.1f} MB" if run["memory_mb"] else "unknown"
        lines.append([asked, str(run["sessions"]), str(run["refused"]), f"{run['chunk_ms']:.0f} ms", *spans, grew])
    return table(lines)


def serving_table(stored: dict[str, Any]) -> str:
    """A line for each number of viewers of a server: least and most of what they saw."""
    lines = [["viewers", "frames in time", "held", "first frame", "jitter p95", "p99, ms", "kB/s each", "cores"]]
    for run in stored["runs"]:
        clients = run["clients"]
        first = [c["first_frame_ms"] for c in clients if c["first_frame_ms"] is not None]
        lines.append(
            [
                str(run["viewers"]),
                f"{min(c['in_time'] for c in clients):.1%}",
                _span([c["held"] for c in clients]),
                f"{_span(first)} ms",
                *(f"{max(c[key] for c in clients):.0f}" for key in ("jitter_p95_ms", "jitter_p99_ms")),
                f"{max(c['kbytes_per_second'] for c in clients):.0f}",
                f"{run['cores']:.2f}",
            ]
        )
    return table(lines)


def _span(values: list[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return str(low) if low == high else f"{low} to {high}"
