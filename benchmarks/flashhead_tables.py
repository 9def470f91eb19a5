"""Tables of what ``flashhead.py`` stored. Only the standard library."""

from __future__ import annotations

from typing import Any

import stored


def of_chunk(stages: dict[str, dict[str, float]], which: str) -> float:
    """Milliseconds of a chunk: all stages but the last, which is for comparison. A stage that was not made in this way
    counts as the one that is nearest to it."""
    return sum(
        row.get(which, row.get("plain", row["ours"])) for name, row in stages.items() if not name.endswith("stream")
    )


def stage_table(found: dict[str, Any]) -> str:
    """A chunk's stages, ours and the published arithmetic's, compiled where that was measured."""
    stages, ours = found["stages"], of_chunk(found["stages"], "ours")
    others = [way for way in ("plain", "compiled") if any(way in row for row in stages.values())]
    lines = [["stage", "ours", "share", *(cell for way in others for cell in (way, f"{way} / ours"))]]
    chunk = {"ours": ours} | {way: of_chunk(stages, way) for way in others}
    for name, row in [*stages.items(), ("chunk", chunk)]:
        if name.endswith("stream"):
            continue
        cells = [name, _ms(row["ours"]), f"{row['ours'] / ours:.0%}"]
        for way in others:
            cells += [_ms(row[way]), f"{row[way] / row['ours']:.2f}"] if way in row else ["", ""]
        lines.append(cells)
    return stored.table(lines)


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
