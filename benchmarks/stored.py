"""What a stored result holds, and tables of any of them. Only the standard library.

    python benchmarks/stored.py benchmarks/results/*.json     # so does benchmarks/kit.py

A file is what pytest-benchmark wrote (``conftest.py`` says what is kept of that; ``pytest-benchmark compare`` reads it,
too) or the JSON of a script.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OF_ROOF = "of the roofline"  # title of a column
BESIDE = {"environment", "machine", "versions", "roof", "stats", "params", "about", "shape", "plan", "size", "box"}
NAMES = ("stage", "name", "variant")  # what an entry of a list is called by

Info = dict[str, Any]


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read(path: Path) -> list[Info]:
    """``name``, ``extra_info`` and ``stats`` of every result of a file of pytest-benchmark; none of another."""
    found = load(path)
    results = found.get("benchmarks", []) if isinstance(found, dict) else []
    return [
        {"name": r["name"].removeprefix("test_"), "stats": r.get("stats", {}), **r.get("extra_info", {})}
        for r in results
    ]


def table(lines: list[list[str]]) -> str:
    """Markdown; the first line has the titles."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def duration(us: float) -> str:
    unit, size = next((u, s) for u, s in (("us", 1.0), ("ms", 1e3), ("s", 1e6)) if us < 999.5 * s or u == "s")
    return f"{us / size:.3g} {unit}"


def source(about: Info) -> str:
    """Where a number comes from, in words: ``environment`` of a result of pytest-benchmark, or a script's."""
    words = [about["cpu"], f"{about['threads']} thread{'s' * (about['threads'] != 1)}"]
    if about.get("gpu"):
        words[0] = f"{about['gpu']} beside {about['cpu']}"
    if about.get("torch"):
        words.append(f"torch {about['torch']}")
    if about.get("commit"):
        words.append(f"commit {about['commit'][:7]}" + (" with changes" if about.get("uncommitted_changes") else ""))
    return ", ".join(words)


# -- tables of any file


def markdown(path: Path) -> str:
    """Ratios where a file has them, then every other number, by what stands beside it."""
    found = load(path)
    results = read(path)
    parts, whole = [], found
    if results:
        if any("ratios" in info for info in results):
            parts.append(ratio_table([info for info in results if "ratios" in info]))
        drop = {"name", "ratios", "outside_ratios", "rounds", "of_roof"} if parts else {"name"}
        whole = {info["name"]: {k: v for k, v in info.items() if k not in drop} for info in results}
    parts += number_tables(whole)
    if not parts and results:
        parts.append(stats_table(results))
    if not parts:
        raise ValueError(f"{path}: expected results, got no number")
    where = [info["environment"] for info in results if "environment" in info]
    return "\n".join([*parts, *(f"{line}.\n" for line in dict.fromkeys(map(source, where)))])


def ratio_table(results: list[Info]) -> str:
    """The base's median and rounds, the others over it, and the share of the roofline if known."""
    rows = {info["name"]: _ratios(info) for info in results}
    titles = ["case", *dict.fromkeys(title for row in rows.values() for title in row)]
    if OF_ROOF in titles:
        titles = [t for t in titles if t != OF_ROOF] + [OF_ROOF]
    return table([titles, *([name, *(row.get(t, "") for t in titles[1:])] for name, row in rows.items())])


def _ratios(info: Info) -> dict[str, str]:
    """Title of a column -> cell."""
    base = info["base"]
    row = {f"median of {base}": duration(info["variants"][base]["median_us"]), "rounds": str(info["rounds"])}
    for key, prefix in (("ratios", ""), ("outside_ratios", "outside: ")):
        for ratio, value in info.get(key, {}).items():
            row[f"{prefix}{ratio.replace('_over_', ' / ')}"] = f"{value:.2f}"
    if info.get("of_roof"):
        row[OF_ROOF] = f"{info['of_roof']:.0%}"
    return row


def stats_table(results: list[Info]) -> str:
    """What pytest-benchmark itself measured, where a bench says nothing more."""
    lines = [["case", "median", "min", "max", "rounds"]]
    for info in results:
        stats = info["stats"]
        cells = [duration(1e6 * stats[key]) for key in ("median", "min", "max")]
        lines.append([info["name"], *cells, str(stats["rounds"])])
    return table(lines)


def number_tables(value: Any) -> list[str]:
    """Everything that is numbers, percentiles and stages for instance: a table for each set of names that occurs."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for place, row in numbers(value):
        groups.setdefault(tuple(row), []).append([", ".join(place), *(f"{v:.4g}" for v in row.values())])
    return [table([["", *titles], *rows]) for titles, rows in groups.items()]


def numbers(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    """Every object with numbers in it: where it is, and they."""
    if isinstance(value, list) and value and all(isinstance(v, (int, float)) for v in value):
        yield place, {"median": statistics.median(value), "least": min(value), "most": max(value), "count": len(value)}
    elif isinstance(value, list):
        entries = [v for v in value if isinstance(v, dict)]
        value = {str(next((v[n] for n in NAMES if n in v), i)): v for i, v in enumerate(entries)}
    if not isinstance(value, dict):
        return
    found = {k: v for k, v in value.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if found:
        yield place, found
    for key, inner in value.items():
        if key not in BESIDE:
            yield from numbers(inner, (*place, key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    for path in parser.parse_args().results:
        print(f"## {path.name}\n\n{markdown(path)}")


if __name__ == "__main__":
    main()
