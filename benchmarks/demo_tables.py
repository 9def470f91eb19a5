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
    "opening r, pixels": "opening_r.pixel",
    "opening r, latents": "opening_r.latent",
    "amplitude / truth": "amplitude_over_truth_reading.pixel",
    "latent border / inner change": "border_ratio",
    "chunk / latent border": "chunk_border_ratio",
}
STREAMS = {"with_sink": "with the sink", "without_sink": "without"}
TIMES = "one chunk"  # of that machine on that day: a page has one place for it, and that is not here


def _spread(group: dict[str, Any], key: str) -> str:
    return f"{group[key]['mean']:.2f} ± {group[key]['std']:.2f}" if key in group else "-"


def video_table(report: dict[str, Any]) -> str:
    clips = report["clips"]
    lines = [["video", *COLUMNS, "best lag"]]
    for video, words in VIDEOS.items():
        cells = [_spread(clips, f"{key}.{video}") for key in COLUMNS.values()]
        lines.append([words, *cells, str(clips["best_lag"][video])])
    return table(lines)


def stream_table(report: dict[str, Any]) -> str:
    streams = report["streams"]
    moments = [key for key in streams["with_sink"] if key.startswith("colour_change")]
    after = " / ".join(key.partition(".")[2].removesuffix("s") for key in moments)
    colour = f"mean colour change after {after} s, levels of 255"
    lines = [[f"{report['stream_seconds']} s", colour, "opening r, first / last 10 s", "memory growth"]]
    for name, words in STREAMS.items():
        row = {key: value["mean"] for key, value in streams[name].items()}
        ends = f"{row['opening_r_first']:.2f} / {row['opening_r_last']:.2f}"
        changes = " / ".join(f"{row[moment]:.1f}" for moment in moments)
        lines.append([words, changes, ends, f"{row['memory_growth_mb']:.1f} MB"])
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
        lines.append([guidance, _spread(row, "opening_r"), _spread(row, "amplitude_over_truth_reading")])
    return table(lines)
