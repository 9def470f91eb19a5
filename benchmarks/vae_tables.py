"""Tables of what the benchmarks of the VAE and its two studies stored, and the choice of a backend for every layer.
Only the standard library.

python benchmarks/vae_tables.py vae.json                 # every table, to the screen, and last all of it as JSON
python benchmarks/vae_tables.py vae.json --layers FILE   # the layers' choices as JSON, too
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import stored
from stored import table

CHEAPEST = "the fastest peer"
MODES = {  # name in vae_modes.json: what a table calls it, and how a number is written
    "psnr_whole": ("PSNR to the whole, dB", ".1f"),
    "relative_rms": ("relative RMS", ".3f"),
    "seam": ("chunk borders", ".2f"),
    "chunk_seam": ("chunk / other latent borders", ".2f"),
    "latent_seam": ("latent borders", ".2f"),
    "psnr_truth": ("PSNR to the video, dB", ".1f"),
    "motion": ("motion", ".2f"),
}


def stage_table(info: dict[str, Any]) -> str:
    """Markdown from a stored result's ``extra_info``. Milliseconds from a GPU alone: of a CPU shares and ratios."""
    base, rows = info["base"], info["stages"]
    others = [name for name in rows[-1]["us"] if name != base]
    absolute = info["device"] != "cpu"
    measured = ["ideal ms", f"{base}, ms"] if absolute else [f"share of {base}"]
    titles = ["stage", "convolutions", "H x W x T", "GFLOP", *measured, "of the roofline"]
    lines = [[*titles, *(f"{name} / {base}" for name in others)]]
    whole = rows[-1]["us"][base]
    for row in rows:
        us = row["us"][base]
        times = [f"{row['ideal_us'] / 1e3:.3f}", f"{us / 1e3:.3f}"] if absolute else [f"{us / whole:.0%}"]
        cells = [row["stage"], str(row["convolutions"]), " x ".join(map(str, row["shape"])), f"{row['gflop']:.3g}"]
        lines.append([*cells, *times, f"{row['of_roof']:.0%}", *(f"{row['us'][n] / us:.2f}" for n in others)])
    return table(lines)


def chunk_table(results: list[dict[str, Any]]) -> str:
    """Markdown: each case of a chunk, the median of ours (from a GPU), the fastest peer over it, then all others."""
    base = results[0]["base"]
    names = dict.fromkeys(name for info in results for name in info["variants"] if name != base)
    names = sorted(names, key=lambda name: (ours(name), "oneDNN" not in name))
    absolute = results[0]["device"] != "cpu"
    time = [f"{base}, ms"] if absolute else []
    lines = [["case", "dtype", "rounds", *time, f"{CHEAPEST} / {base}", *(f"{name} / {base}" for name in names)]]
    for info in results:
        us = {name: variant["median_us"] for name, variant in info["variants"].items()}
        time = [f"{us[base] / 1e3:.3g}"] if absolute else []
        ratios = [f"{us[name] / us[base]:.2f}" if name in us else "" for name in names]
        fastest = fastest_peer(info)
        first = f"{us[fastest] / us[base]:.2f}: {fastest}" if fastest else ""
        lines.append([case(info), info["dtype"], str(info["rounds"]), *time, first, *ratios])
    return table(lines)


def case(info: dict[str, Any]) -> str:
    width = "" if info["shrink"] == 1 else f", width / {info['shrink']}"
    batch = "" if info.get("batch", 1) == 1 else f", batch {info['batch']}"
    return f"{info['release']} {info['mode']}{width}, {info['side']}{batch}"


def ours(name: str) -> bool:
    return name.partition(",")[0] in ("ours", "forward")


def fastest_peer(info: dict[str, Any]) -> str | None:
    us = {name: variant["median_us"] for name, variant in info["variants"].items() if not ours(name)}
    return min(us, key=lambda name: us[name]) if us else None


def fairest(results: list[dict[str, Any]]) -> str:
    """The range of the fastest peer over ours, in words."""
    found = [info["variants"][peer]["median_us"] / info["variants"][info["base"]]["median_us"]
             for info in results if (peer := fastest_peer(info))]  # fmt: skip
    return f"{min(found):.1f} to {max(found):.1f}"


def memory_table(info: dict[str, Any]) -> str:
    """Markdown: megabytes at the peak beyond the weights, and what of it is ours to keep."""
    lines = [["", "MB"]]
    lines += [[f"{name}, peak beyond the weights", f"{size:.0f}"] for name, size in info["peak_mb"].items()]
    lines += [[f"of ours: {name}", f"{size:.0f}"] for name, size in info["ours_mb"].items()]
    return table(lines)


def layer_table(chosen: list[dict[str, Any]]) -> str:
    """Markdown: each layer, the share of the roofline of the fastest backend, and the others over it."""
    names = sorted({name for entry in chosen for name in entry["us"]})
    lines = [["layer", "dtype", "latents", "fastest", "of the roofline", *names]]
    for entry in chosen:
        best = entry["us"][entry["fastest"]]
        ratios = [f"{entry['us'][n] / best:.2f}" if n in entry["us"] else "" for n in names]
        size = f"{entry['channels']} to {entry['outputs']} at {entry['rows']} x {entry['columns']}"
        cells = [f"{size}, {entry['ends']}", entry["dtype"], str(entry["latents"]), entry["fastest"]]
        lines.append([*cells, f"{entry['of_roof']:.0%}", *ratios])
    return table(lines)


def choices(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each measured layer the backend with the smallest median: what a table of the dispatcher is filled from."""
    found = []
    for info in results:
        us = {name: variant["median_us"] for name, variant in info["variants"].items()}
        fastest = min(us, key=lambda name: us[name])
        entry = {**info["layer"], "dtype": info["dtype"], "latents": info["latents"], "us": us, "fastest": fastest}
        found.append(entry | {"of_roof": round(info["ideal_us"] / us[fastest], 3), "device": info["device"]})
    return found


# -- the two studies


def mode_table(result: dict[str, Any], causal: bool) -> str:
    """``vae_modes.json``: ways to decode as a released decoder can, or those of a causal one; mean and deviation."""

    def cell(numbers: dict[str, Any], key: str, form: str) -> str:
        return f"{numbers[key]['mean']:{form}} ± {numbers[key]['std']:{form}}" if key in numbers else "-"

    lines = [["decode", "delay", "time of a call", *(title for title, _ in MODES.values())]]
    for name, numbers in result["modes"].items():
        if name.startswith("causal") != causal:
            continue
        delay = (
            "the clip" if name == "whole" else f"{numbers.get('delay_ms', 0):g}" + " ms" * bool(numbers.get("delay_ms"))
        )
        spent = result["cost"].get("causal" if causal else name)
        cells = [cell(numbers, key, form) for key, (_, form) in MODES.items()]
        lines.append([name, delay, f"{spent['relative']:.2f}" if spent else "-", *cells])
    return table(lines)


def lookahead(result: dict[str, Any], key: str) -> str:
    """A number of lookahead(0), (1), ... in words: ``psnr_whole``, or the ``cost`` of a call from (1) on."""
    names = [name for name in result["modes"] if name.startswith("lookahead")]
    if key == "cost":
        return ", ".join(f"{result['cost'][name]['relative']:.2f}" for name in names[1:])
    return ", ".join(f"{result['modes'][name][key]['mean']:.0f}" for name in names)


# -- all of them


def markdown(results: list[dict[str, Any]]) -> str:
    """Every table that the results allow, each under its name."""
    parts, chunks = [], [info for info in results if info["name"].startswith("chunk")]
    if chunks:
        parts.append(f"a chunk of three latents\n\n{chunk_table(chunks)}")
    for info in results:
        if "peak_mb" in info:
            parts.append(f"{info['name']}\n\n{memory_table(info)}")
        if "stages" in info:
            parts.append(f"{info['name']}\n\n{stage_table(info)}")
    measured = [info for info in results if "layer" in info]
    if measured:
        parts.append(f"layers\n\n{layer_table(choices(measured))}")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="what pytest-benchmark stored of bench_vae.py")
    parser.add_argument("--layers", type=Path, help="write the fastest backend of every layer here, as JSON")
    chosen = parser.parse_args()
    results = [info for path in chosen.results if path.exists() for info in stored.read(path)]
    picked = choices([info for info in results if "layer" in info])
    if chosen.layers:
        chosen.layers.write_text(json.dumps(picked, indent=1), encoding="utf-8")
    print(markdown(results))
    print(json.dumps({"layers": picked, "stages": {i["name"]: i["stages"] for i in results if "stages" in i}}))


if __name__ == "__main__":
    main()
