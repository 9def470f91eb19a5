"""Tables of what ``rest_fast.evaluation.demo_report`` measured (docs/demo_model.json). Only the standard library."""

from __future__ import annotations

from typing import Any

from stored import table

VIDEOS = {
    "truth": "truth",
    "through_vae": "through the VAE",
    "generated": "generated",
    "wrong_sound": "generated, another clip's sound",
}
COLUMNS = {
    "opening r, pixels": "opening_r",
    "amplitude / truth": "amplitude",
    "latent border / inner change": "border_ratio",
    "chunk / latent border": "chunk_border_ratio",
}
STREAMS = {"streams": "with the sink", "without_sink": "without"}
MOMENTS = ("10", "30", "60")  # seconds
TIMES = "one chunk"  # of that machine on that day: a page has one place for it, and that is not here


def _spread(group: dict[str, Any], key: str) -> str:
    return f"{group[key]['mean']:.2f} ± {group[key]['std']:.2f}" if key in group else "-"


def video_table(report: dict[str, Any]) -> str:
    lines = [["video", *COLUMNS, "best lag"]]
    for video, words in VIDEOS.items():
        row = report["clips"][video]
        lines.append([words, *(_spread(row, key) for key in COLUMNS.values()), str(row["best_lag"])])
    return table(lines)


def stream_table(report: dict[str, Any]) -> str:
    colour = f"mean colour change after {' / '.join(MOMENTS)} s, levels of 255"
    drift = "identity drift (1 - SSIM of the upper face), first / last 10 s"
    lines = [[f"{report['streams']['seconds']} s", colour, "opening r, first / last 10 s", drift]]
    for name, words in STREAMS.items():
        row = {key: value["mean"] for key, value in report[name].items() if isinstance(value, dict)}
        changes = " / ".join(f"{row[f'colour_change_{moment}']:.1f}" for moment in MOMENTS)
        ends = (f"{row[f'{key}_first']:.2f} / {row[f'{key}_last']:.2f}" for key in ("opening_r", "identity_drift"))
        lines.append([words, changes, *ends])
    return table(lines)


def distance_table(report: dict[str, Any]) -> str:
    """How far pose and expression go from the photo's."""
    lines = [["60 s", "pose, first / last 10 s", "expression, first / last 10 s"]]
    for name, row in report["photo_distance"].items():
        ends = (
            f"{row[f'{part}_first']['mean']:.2f} / {row[f'{part}_last']['mean']:.2f}" for part in ("pose", "expression")
        )
        lines.append([name.replace("_", " ").replace("with ", "with the ").replace("without ", "without the "), *ends])
    return table(lines)


def bar_table(report: dict[str, Any]) -> str:
    lines = [["bar", "value", "from", "to", "passed"]]
    for bar in report["bars"]:
        if not bar["name"].startswith(TIMES):
            name = f"{bar['name']} ({bar['note']})" if bar["note"] else bar["name"]
            ends = ["" if end is None else f"{end:g}" for end in (bar["low"], bar["high"])]
            lines.append([name, f"{bar['value']:.4g}", *ends, "yes" if bar["passed"] else "NO"])
    return table(lines)


def guidance_table(report: dict[str, Any]) -> str:
    lines = [["guidance (12 clips)", "opening r, pixels", "amplitude / truth"]]
    for guidance, row in report["guidance_sweep"].items():
        lines.append([guidance, _spread(row, "opening_r"), _spread(row, "amplitude")])
    return table(lines)
