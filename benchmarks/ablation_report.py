"""Tables and a picture of what ``benchmarks/ablation.py`` measured, compared line by line with the paper.

    python benchmarks/ablation_report.py --figure docs/ablation.png

``tables.py`` puts the tables into docs/ablation.md; the words around them are written by hand.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ORDER = (
    "full",
    "without sink",
    "without context",
    "without ASD",
    "without contrastive",
    "without smooth",
    "absolute positions",
    "context clean",
    "context per_step",
)
METRICS = {  # name in the results: what a table calls it
    "identity_drift": "identity drift",
    "colour_change_60": "colour change at 60 s",
    "opening_r": "opening r",
    "amplitude_over_gap": "amplitude",
    "frechet_latents": "Fréchet, latents",
    "frechet_changes": "Fréchet, changes",
    "velocity_error": "velocity error",
    "chunk_border_ratio": "chunk border, pixels",
    "latent_chunk_ratio": "chunk border, latents",
    "motion_chunk_ratio": "chunk border, head",
}
POLICIES = ("context clean", "context per_step")  # of inference: a pass over a clip knows nothing of them


@dataclass(frozen=True)
class Claim:
    """What the paper says, and which of our numbers should show it: ``sign`` +1 is more than ``full``."""

    variant: str
    says: str
    metric: str
    sign: int


CLAIMS = (
    Claim("without sink", "FID 14.6 -> 19.4: identity and colour drift", "identity_drift", 1),
    Claim("without sink", "the same", "colour_change_60", 1),
    Claim("without sink", "the same, against true clips of 4 s", "frechet_latents", 1),
    Claim("without sink", "FVD 220 -> 295", "frechet_changes", 1),
    Claim("without sink", "Sync-C unchanged (8.34 -> 8.35)", "opening_r", 0),
    Claim("without context", "FID 14.6 -> 19.7", "frechet_latents", 1),
    Claim("without context", "FVD 220 -> 272: motion jumps at chunk borders", "frechet_changes", 1),
    Claim("without context", "the same", "latent_chunk_ratio", 1),
    Claim("without context", "the same, of the head", "motion_chunk_ratio", 1),
    Claim("without context", "Sync-C 8.34 -> 6.91", "opening_r", -1),
    Claim("without ASD", "FID 14.6 -> 16.0", "frechet_latents", 1),
    Claim("without ASD", "FVD 220 -> 229", "frechet_changes", 1),
    Claim("without ASD", "Sync-C 8.34 -> 7.97", "opening_r", -1),
    Claim("without contrastive", "FID 14.6 -> 15.3", "frechet_latents", 1),
    Claim("without contrastive", "FVD unchanged", "frechet_changes", 0),
    Claim("without contrastive", "Sync-C 8.34 -> 8.19", "opening_r", -1),
    Claim("without smooth", "FID unchanged (14.60 -> 14.65)", "frechet_latents", 0),
    Claim("without smooth", "FVD 219.9 -> 221.5", "frechet_changes", 1),
    Claim("without smooth", "Sync-C 8.34 -> 8.26", "opening_r", -1),
)

Table = dict[str, dict[int, dict[str, float]]]  # variant, seed, metric


def read(results: Path) -> Table:
    """Means over the streams of each run."""
    table: Table = {}
    for path in sorted(results.glob("seed_*.json")):
        run: dict[str, Any] = json.loads(path.read_text())
        streams = run["streams"]
        values = {k: float(np.nanmean([s[k] for s in streams])) for k in METRICS if k in streams[0]}
        table.setdefault(run["variant"], {})[run["seed"]] = values | run["clips"]
    return table


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = np.mean(values)
    digits = 3 if abs(mean) < 2 else 2 if abs(mean) < 100 else 1
    return f"{mean:.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def differences(table: Table, variant: str, metric: str) -> list[float]:
    """Of a variant to ``full``, seed by seed: both have the same teacher, people, voices, words and noise."""
    seeds = sorted(set(table.get(variant, {})) & set(table["full"]))
    return [table[variant][s][metric] - table["full"][s][metric] for s in seeds]


def verdict(claim: Claim, found: list[float], scale: float) -> str:
    """Seeds that agree, not a test of significance: three are too few for one."""
    if not found:
        return "not run"
    if claim.sign == 0:
        changes = len(set(np.sign(found))) == 1 and abs(np.mean(found)) > 0.5 * scale
        return "no: it changes" if changes else "yes"
    if abs(np.mean(found)) < 0.1 * scale:
        return "too small to tell"
    agree = sum(np.sign(d) == claim.sign for d in found)
    return {len(found): "yes", 0: "no: the opposite"}.get(agree, f"unclear ({agree} of {len(found)} seeds)")


def numbers(table: Table) -> str:
    variants = [v for v in ORDER if v in table]
    lines = ["| variant | seeds | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for variant in variants:
        runs = table[variant]
        blind = {"velocity_error"} if variant in POLICIES else set()
        cells = ["-" if m in blind else spread([run[m] for run in runs.values()]) for m in METRICS]
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison(table: Table) -> str:
    lines = ["| variant | the paper | our number | full | difference, seed by seed | shows |", "|---" * 6 + "|"]
    for claim in (claim for claim in CLAIMS if claim.variant in table):
        found = differences(table, claim.variant, claim.metric)
        base = [run[claim.metric] for run in table["full"].values()]
        scale = float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
        shown = ", ".join(f"{d:+.3f}" for d in found)
        cells = [claim.variant, claim.says, METRICS[claim.metric], spread(base), shown, verdict(claim, found, scale)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def velocities(found: dict[str, Any]) -> str:
    """What ``candidates.py --velocity`` stored of weights called "seed, stage": a row a stage, over the seeds."""
    stages: dict[str, dict[str, list[float]]] = {}
    for name, row in found["candidates"].items():
        for layout, error in row.items():
            stages.setdefault(name.partition(", ")[2], {}).setdefault(layout, []).append(error)
    lines = ["| weights | velocity error, streaming | velocity error, all frames at once |", "|---|---|---|"]
    lines += [f"| {stage} | {spread(row['streaming'])} | {spread(row['teacher'])} |" for stage, row in stages.items()]
    return "\n".join(lines)


def picture(table: Table, path: Path, panel: tuple[int, int] = (300, 230), columns: int = 5) -> None:
    """A panel for each metric: a row for each variant, a dot for each seed, a bar at the mean."""
    from PIL import Image, ImageDraw, ImageFont

    variants = [v for v in ORDER if v in table]
    rows = -(-len(METRICS) // columns)
    label, fine = 130, 2
    size = (label + columns * panel[0], rows * panel[1])
    sheet = Image.new("RGB", (size[0] * fine, size[1] * fine), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12 * fine)
    for n, (metric, title) in enumerate(METRICS.items()):
        left, top = label + n % columns * panel[0], n // columns * panel[1]
        values = {v: [run[metric] for run in table[v].values()] for v in variants}
        everything = [x for xs in values.values() for x in xs]
        low, high = min(everything), max(everything)
        span = (high - low) or 1.0
        pen.text(
            ((left + panel[0] / 2) * fine, (top + 14) * fine), title.replace("é", "e"), (40, 48, 60), font, anchor="mm"
        )
        for text, x in ((f"{low:.3g}", left + 18), (f"{high:.3g}", left + panel[0] - 22)):
            pen.text((x * fine, (top + panel[1] - 10) * fine), text, (120, 128, 140), font, anchor="mm")
        for i, variant in enumerate(variants):
            y = top + 34 + i * (panel[1] - 60) / max(len(variants) - 1, 1)
            if n % columns == 0:
                pen.text(((label - 8) * fine, y * fine), variant, (40, 48, 60), font, anchor="rm")
            pen.line([((left + 14) * fine, y * fine), ((left + panel[0] - 14) * fine, y * fine)], (228, 232, 238), fine)
            colour = (47, 93, 160) if variant == "full" else (201, 120, 40)
            places = [left + 18 + (x - low) / span * (panel[0] - 40) for x in values[variant]]
            mean = float(np.mean(places))
            pen.line([(mean * fine, (y - 6) * fine), (mean * fine, (y + 6) * fine)], colour, 3 * fine)
            for x in places:
                pen.ellipse([((x - 3) * fine, (y - 3) * fine), ((x + 3) * fine, (y + 3) * fine)], outline=colour)
    sheet.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/ablation"))
    parser.add_argument("--figure", type=Path, help="PNG with a panel for each measure")
    args = parser.parse_args()
    table = read(args.results)
    if "full" not in table:
        raise SystemExit(f"{args.results}: expected results of the variant full, found {sorted(table)}")
    if args.figure:
        picture(table, args.figure)
    print(f"{numbers(table)}\n\n{comparison(table)}")


if __name__ == "__main__":
    main()
