"""The tables of the pages, from what is stored: every number in them is one of a file.

    python benchmarks/tables.py            # rewrites what stands between the marks, in docs/ and README.md
    python benchmarks/tables.py --check    # exit code 1 where a page says something else

The marks are ``<!-- table: NAME -->`` and ``<!-- end -->``, around a table or words within a line. NAME is one of
:data:`TABLES`, or a file of ``benchmarks/results`` without its ending, of which everything is shown.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation_report
import busy
import cpu_tables
import decoder_dtype
import demo_tables
import engine_tables
import flashhead_tables
import photo_tables
import stored
import vae_tables

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->).*?(<!-- end -->)", re.DOTALL)


class Results:
    """What is stored under ``root``, each file read once."""

    def __init__(self, root: Path = ROOT):
        self.root, self.folder = root, root / "benchmarks" / "results"

    def script(self, name: str) -> dict[str, Any]:
        """What a script stored."""
        return stored.load(self.folder / f"{name}.json")

    def bench(self, file: str, start: str = "") -> list[stored.Info]:
        """Results of a benchmark whose names begin so."""
        return [info for info in stored.read(self.folder / f"{file}.json") if info["name"].startswith(start)]

    def report(self) -> dict[str, Any]:
        return stored.load(self.root / "docs" / "demo_model.json")

    def ablation(self, folder: str = "ablation") -> ablation_report.Table:
        return ablation_report.read(self.folder / folder)


def under(text: str, about: list[dict[str, Any]], note: str = "") -> str:
    """A table, and below it where it comes from; several lines where its rows come from several runs."""
    lines = dict.fromkeys(f"{stored.source(one)}." for one in about)
    return f"{text}\n{' '.join(lines)}{note}\n"


def bench(make: Callable[[Any], str], file: str, start: str = "") -> Callable[[Results], str]:
    """The table of a benchmark's results, with their source."""

    def made(results: Results) -> str:
        found = results.bench(file, start)
        if not found:
            return f"(not measured: no {start or 'result'} in {file}.json)"
        notes = dict.fromkeys(f" {info['note'].capitalize()}." for info in found if "note" in info)
        return under(make(found), [info["environment"] for info in found], "".join(notes))

    return made


def machines(make: Callable[[Any], str], name: str) -> Callable[[Results], str]:
    """One table for each machine that was measured: the last of the usual kind, and the AMD EPYC."""
    made = [bench(make, f"{name}_{machine}") for machine in ("cpu", "epyc")]
    return lambda results: "\n".join(table(results) for table in made)


def one(make: Callable[[Any], str]) -> Callable[[list[stored.Info]], str]:
    """Of the only result."""
    return lambda found: make(found[0])


def chunk_time(found: list[stored.Info]) -> str:
    """The one place for a chunk's time, in words."""
    times = found[0]["variants"][found[0]["base"]]
    return f"{times['median_us'] / 1e3:.0f} ms (p95 {times['p95_us'] / 1e3:.0f}) on {where(found[0])}"


def where(found: dict[str, Any]) -> str:
    """Machine and commit, in words."""
    about = found["environment"]
    return f"{about['cpu']}, commit {about['commit'][:7]}" if about.get("commit") else str(about["cpu"])


def startup(results: Results) -> str:
    found = results.script("startup")
    return under(cpu_tables.startup_table(found), [found["environment"]])


def demo_command(results: Results) -> str:
    """How long ``rest-fast demo`` takes, in words."""
    found = results.script("startup")
    return f"{statistics.median(found['seconds']['demo']):.1f} s on {where(found)}"


def overload_table(results: Results) -> str:
    found = results.script("overload_cpu")
    return under(engine_tables.overload_table(found), [found["environment"]])


def serving_table(results: Results) -> str:
    found = results.script("serving_cpu")
    return under(engine_tables.serving_table(found), [found["environment"]])


def busy_table(results: Results) -> str:
    found = results.script("busy_cpu")
    return under(stored.table(busy.table(found)), [found["environment"]])


def decoder_dtypes(results: Results) -> str:
    """One table for each machine."""
    found = [results.script(name) for name in ("decoder_dtype_cpu", "decoder_dtype_epyc")]
    parts = [under(stored.table(decoder_dtype.table(one)), [one["environment"]]) for one in found]
    return "\n".join(parts)


def script_table(make: Callable[[Any], str], name: str) -> Callable[[Results], str]:
    """The table of what one script stored, with its source."""

    def made(results: Results) -> str:
        found = results.script(name)
        return under(make(found), [found["environment"]])

    return made


def gpu(results: Results) -> str:
    """What ``make gpu-suite`` left on a GPU, in words."""
    found = []
    for path in sorted((results.folder / "gpu").glob("*.json")):
        part = stored.load(path)
        if part["gpu_used"]:
            counts = ", ".join(f"{n} {status}" for status, n in part["counts"].items())
            found.append(f"{path.stem}: {counts} ({stored.source(part['environment'])})")
    return "; ".join(found) or "none yet"


def environments(found: Any) -> list[dict[str, Any]]:
    """Of a stored file, at whatever depth."""
    if isinstance(found, list):
        return [one for value in found for one in environments(value)]
    if not isinstance(found, dict):
        return []
    if "environment" in found:
        return [found["environment"]]
    return [one for value in found.values() for one in environments(value)]


def measured(results: Results) -> str:
    """Each stored file and where it comes from."""
    rows = []
    for path in sorted(results.folder.glob("*.json")):
        whole = stored.load(path)
        sources = dict.fromkeys(map(stored.source, environments(whole)))
        rows.append([f"`{path.name}`", "; ".join(sources) or "see [VAE](vae.md)"])
    return stored.table([["file in `benchmarks/results`", "measured on"], *rows])


def memory(results: Results) -> str:
    (info,) = results.bench("vae_cpu", "memory")
    return under(vae_tables.memory_table(info), [info["environment"]])


# Name -> what stands there. Words within a line have no line break.
TABLES: dict[str, Callable[[Results], str]] = {
    "demo-stream": bench(one(cpu_tables.stream_table), "demo_stream_cpu"),
    "demo-chunk": lambda r: chunk_time(r.bench("demo_stream_cpu")),
    "engine-waits": bench(engine_tables.waits_table, "engine_cpu"),
    "engine-turns": bench(engine_tables.turns_table, "engine_cpu"),
    "engine-crowd": bench(engine_tables.crowd_table, "engine_cpu", "crowd"),
    "engine-viewers": bench(engine_tables.viewers_table, "engine_cpu", "viewers"),
    "engine-memory": lambda r: engine_tables.memory(r.bench("engine_cpu", "memory")),
    "startup": startup,
    "gpu": gpu,
    "measured": measured,
    "demo-command": demo_command,
    "busy": busy_table,
    "engine-overload": overload_table,
    "serving-load": serving_table,
    "decoder-dtype": decoder_dtypes,
    "flashhead": script_table(flashhead_tables.stage_table, "flashhead_cpu"),
    "flashhead-cache": script_table(flashhead_tables.cache_table, "flashhead_cpu"),
    "block": machines(cpu_tables.block_table, "block"),
    "step": bench(cpu_tables.step_table, "step_cpu"),
    "step-parts": bench(cpu_tables.step_parts_table, "step_cpu"),
    "attention": machines(cpu_tables.attention_table, "attention"),
    "ops": machines(cpu_tables.ops_table, "ops"),
    "conv3x3": bench(stored.ratio_table, "conv3x3_epyc"),
    "linear": bench(stored.ratio_table, "linear_epyc"),
    "audio-and-paint": bench(stored.ratio_table, "audio_and_paint_cpu"),
    "vae-fairest": lambda r: vae_tables.fairest(r.bench("vae_cpu", "chunk")),
    "vae-chunk": bench(vae_tables.chunk_table, "vae_cpu", "chunk"),
    "vae-stages": bench(one(vae_tables.stage_table), "vae_cpu", "stages[0.9.5"),
    "vae-memory": memory,
    "vae-demo": bench(stored.ratio_table, "vae_demo_cpu", "demo"),
    "vae-modes": lambda r: vae_tables.mode_table(r.script("vae_modes"), causal=False),
    "vae-modes-causal": lambda r: vae_tables.mode_table(r.script("vae_modes"), causal=True),
    "vae-lookahead-psnr": lambda r: vae_tables.lookahead(r.script("vae_modes"), "psnr_whole"),
    "vae-lookahead-cost": lambda r: vae_tables.lookahead(r.script("vae_modes"), "cost"),
    "demo-videos": lambda r: demo_tables.video_table(r.report()),
    "demo-streams": lambda r: demo_tables.stream_table(r.report()),
    "demo-distance": lambda r: demo_tables.distance_table(r.report()),
    "demo-bars": lambda r: demo_tables.bar_table(r.report()),
    "demo-guidance": lambda r: demo_tables.guidance_table(r.report()),
    "photos": script_table(photo_tables.video_table, "photos_demo"),
    "photos-floor": script_table(photo_tables.floor_table, "photos_demo"),
    "photos-means": lambda r: photo_tables.means(r.script("photos_demo")),
    "photo-instruments": script_table(photo_tables.instrument_table, "photo_instruments"),
    "motion-decoder": script_table(photo_tables.known_motion_table, "motion_decoder"),
    "motion-encoder": script_table(photo_tables.reading_table, "motion_decoder"),
    "motion-decoder-speed": script_table(photo_tables.decoder_speed_table, "motion_decoder"),
    "ablation": lambda r: ablation_report.numbers(r.ablation()),
    "ablation-claims": lambda r: ablation_report.comparison(r.ablation()),
    "ablation-demo": lambda r: ablation_report.numbers(r.ablation("ablation_demo")),
    "ablation-demo-claims": lambda r: ablation_report.comparison(r.ablation("ablation_demo")),
    "ablation-demo-velocity": script_table(ablation_report.velocities, "ablation_demo/velocity"),
}


def content(name: str, results: Results) -> str:
    """What stands between the marks of that name. ValueError: there is no such table, or nothing stored for it."""
    file = results.folder / f"{name}.json"
    if name not in TABLES and not file.exists():
        raise ValueError(
            f"table {name}: expected one of {', '.join(TABLES)} or a file of {results.folder}, got neither"
        )
    try:
        text = TABLES[name](results) if name in TABLES else stored.markdown(file)
    except FileNotFoundError as e:
        return f"(not measured: no {Path(e.filename).name})"
    return f"\n\n{text.strip()}\n\n" if "\n" in text.strip() else text.strip()


def rewritten(text: str, results: Results) -> str:
    """A page with everything between its marks made anew."""
    if text.count("<!-- table: ") != len(MARKED.findall(text)):
        raise ValueError("page: expected <!-- end --> after every <!-- table: NAME -->, got one without")
    return MARKED.sub(lambda found: found[1] + content(found["name"], results) + found[3], text)


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which pages would change")
    check, results, changed = parser.parse_args().check, Results(), []
    for page in pages(ROOT):
        text = page.read_text(encoding="utf-8")
        wanted = rewritten(text, results)
        if wanted != text:
            changed.append(page.relative_to(ROOT))
            if not check:
                page.write_text(wanted, encoding="utf-8")
    for page in changed:
        print(f"{page}: {'differs from what is stored: run python benchmarks/tables.py' if check else 'rewritten'}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
