"""Tables of what ``flashhead.py`` stored. Only the standard library."""

from __future__ import annotations

from typing import Any

import stored


def of_chunk(stages: dict[str, dict[str, float]], which: str) -> float:
    """Milliseconds of a chunk: all stages but the last, which is for comparison."""
    return sum(row.get(which, row["ours"]) for name, row in stages.items() if not name.endswith("stream"))


def stage_table(found: dict[str, Any]) -> str:
    """A chunk's stages, ours and the published arithmetic's."""
    stages = found["stages"]
    ours, plain = (of_chunk(stages, which) for which in ("ours", "plain"))
    lines = [["stage", "ours", "share", "plain", "plain / ours"]]
    for name, row in stages.items():
        if name.endswith("stream"):
            continue
        share, other = f"{row['ours'] / ours:.0%}", row.get("plain")
        cells = ["the same", ""] if other is None else [_ms(other), f"{other / row['ours']:.2f}"]
        lines.append([name, _ms(row["ours"]), share, *cells])
    return stored.table([*lines, ["chunk", _ms(ours), "100%", _ms(plain), f"{plain / ours:.2f}"]])


def cache_table(found: dict[str, Any]) -> str:
    """What a chunk pays because nothing is kept from one to the next."""
    stages = found["stages"]
    ms = {name.partition(",")[0] if "stream" not in name else "stream": row["ours"] for name, row in stages.items()}
    parts = {
        "encoding 9 frames back": ms["encode back"],
        "colour match, since what was shown comes back": ms["colour match"],
        "decoding 9 frames that were shown before": ms["decode"] - ms["stream"],
    }
    whole, lines = of_chunk(stages, "ours"), [["paid in every chunk", "time", "share of the chunk"]]
    rows = [*parts.items(), ("together", sum(parts.values()))]
    return stored.table([*lines, *([name, _ms(value), f"{value / whole:.0%}"] for name, value in rows)])


def _ms(value: float) -> str:
    return stored.duration(1e3 * value)
