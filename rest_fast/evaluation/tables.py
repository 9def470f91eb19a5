"""The evaluation as Markdown."""

from __future__ import annotations

from typing import Any

CLIPS = {
    "opening_r": "opening r",
    "opening_r_latents": "opening r, latents",
    "best_lag": "best lag, frames",
    "amplitude": "amplitude / truth",
    "sync_c": "Sync-C",
    "sync_d": "Sync-D",
    "border_ratio": "latent border / inner",
    "chunk_border_ratio": "chunk / latent border",
    "identity_drift": "identity drift",
    "colour_change": "colour change",
}
STREAMS = {
    "opening_r": "opening r",
    "opening_r_first": "opening r, first 10 s",
    "opening_r_last": "opening r, last 10 s",
    "lag": "best lag, frames",
    "amplitude_over_gap": "amplitude / true gap",
    "colour_change_10": "colour change after 10 s, levels of 255",
    "colour_change_30": "after 30 s",
    "colour_change_60": "after 60 s",
    "identity_drift_first": "identity drift (1 - SSIM of the upper face), first 10 s",
    "identity_drift_last": "last 10 s",
    "embedding_distance_first": "1 - cosine of the embedder, first 10 s",
    "embedding_distance_last": "last 10 s",
    "border_ratio": "pixel change, latent border / inner",
    "chunk_border_ratio": "pixel change, chunk / latent border",
    "latent_chunk_ratio": "latent change, chunk / latent border",
    "motion_chunk_ratio": "bend of the head's path, chunk / latent border",
    "head_range": "deviation of the head's place, pixels",
}


def markdown(result: dict[str, Any]) -> str:
    """Tables of what :func:`rest_fast.evaluation.evaluate.evaluate` found."""
    about, data = result["model"], result["data"]
    kind = "drawn" if data["drawn"] else "filmed"
    sampling = f"{about['sampling']['steps']} steps, guidance {about['sampling']['guidance']:g}"
    lines = [
        f"# {about['name']} ({about['fingerprint'][:12]})",
        "",
        f"{data['clips']} {kind} clips of `{data['folder']}`; {sampling}. Mean ± deviation over clips or streams.",
        "",
        "| VAE | through the VAE | the still photo instead |",
        "|---|---|---|",
    ]
    for key, name in (("psnr_db", "PSNR, dB"), ("mouth_psnr_db", "PSNR of the mouth box, dB"), ("ssim", "SSIM")):
        cells = [_cell(result["vae"][f"{key}{of}"]) for of in ("", "_of_still_photo")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    shown = [key for key in CLIPS if any(key in row for row in result["clips"].values())]
    lines += ["", "| video | " + " | ".join(CLIPS[key] for key in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for video, row in result["clips"].items():
        lines.append(f"| {video.replace('_', ' ')} | " + " | ".join(_cell(row.get(key)) for key in shown) + " |")
    if "streams" in result:
        long = result["streams"]
        lines += ["", f"| {long['count']} streams of {long['seconds']} s | |", "|---|---|"]
        lines += [f"| {name} | {_cell(long[key])} |" for key, name in STREAMS.items() if key in long]
    if result["distances"]:
        lines += ["", "| distance of generated frames to true ones | |", "|---|---|"]
        lines += [f"| {name.upper()} | {value:.2f} |" for name, value in result["distances"].items()]
    if result["not_measured"]:
        lines += ["", "| not measured | why, and how to get it |", "|---|---|"]
        lines += [f"| {name} | {why.replace('|', '/')} |" for name, why in result["not_measured"].items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    """A summary, a number, or a dash where there is none."""
    if value is None or (isinstance(value, dict) and value["mean"] is None):
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.3g} ± {value['std']:.2g}"
    return f"{value:g}"
