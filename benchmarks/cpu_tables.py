"""Tables of what the benchmarks stored of this machine's CPU: the demo's stream, start, block, attention, ops. Only the
standard library."""

from __future__ import annotations

from typing import Any

from stored import Info, duration, table

CACHES = ("roll", "clone", "concatenate", "write")  # what peers do to the cache (peers.py)
STYLES = {"roll": "clone, roll, concatenate", "clone": "clone, concatenate", "write": "write in place, slice"}
STEPS = {  # startup.py
    "import torch": "`import torch`",
    "import rest_fast": "`import rest_fast` and its `load`, beyond torch",
    "load": '`rest_fast.load("demo")`',
    "prepare": "`model.prepare` of the shipped portrait, the face finder's import included",
    "--help": "`rest-fast --help`, the whole process",
    "demo": "`rest-fast demo`, the whole process, encoding included",
}


def stream_table(info: Info) -> str:
    """A chunk of the demo, sound to frames, by how it is sampled."""
    titles = ["sampling", "chunk p50 / p95 / p99, ms", "over the preset's", "of real time"]
    lines = [[*titles, "features, denoising, decoding a chunk (p50, ms)"]]
    base = info["variants"][info["base"]]["median_us"]
    for name, times in info["variants"].items():
        ms = [times[key] / 1e3 for key in ("median_us", "p95_us", "p99_us")]
        stages = [info["stages"][name][stage]["p50_ms"] for stage in ("features", "denoise", "decode")]
        cells = [" / ".join(f"{t:.0f}" for t in ms), f"{times['median_us'] / base:.2f}"]
        cells.append(f"{times['median_us'] / (40e3 * info['frames']):.0%}")
        lines.append([name, *cells, ", ".join(f"{t:.3g}" for t in stages)])
    return table(lines)


def startup_table(found: dict[str, Any]) -> str:
    """``startup.json``."""
    lines = [["step", "median, s", "least", "most", "processes"]]
    for name, words in STEPS.items():
        seconds = sorted(found["seconds"].get(name, []))
        if seconds:
            middle = seconds[len(seconds) // 2]
            lines.append([words, *(f"{s:.2f}" for s in (middle, seconds[0], seconds[-1])), str(len(seconds))])
    return table(lines)


def block_table(results: list[Info]) -> str:
    """A DiT block, and in brackets what is outside of linear layers, GELU and attention."""
    styles = ["roll", "clone", "concatenate", "write", "roll, compiled", "write, compiled"]
    titles = [_title(style) for style in styles]
    lines = [["block", "rounds", "ours", *titles]]
    for info in results:
        cells = []
        for style in styles:
            whole, outside = (info[key].get(f"{style}_over_ours") for key in ("ratios", "outside_ratios"))
            cells.append("" if whole is None else f"{whole:.2f}" + (f" ({outside:.1f})" if outside else ""))
        ours = duration(info["variants"]["ours"]["median_us"])
        lines.append([f"{info['preset']}, {info['dtype']}", str(info["rounds"]), ours, *cells])
    return table(lines)


def step_table(results: list[Info]) -> str:
    """A whole denoising evaluation, over ours; its host's part."""
    names = list(dict.fromkeys(name for info in results for name in info["variants"] if name != info["base"]))
    titles = [_title(name) for name in names]
    lines = [["lanes", "calls", "rounds", "ours", *titles, "the host's own part of ours"]]
    for info in results:
        ratios = [info["ratios"].get(f"{name}_over_ours") for name in names]
        ours, shape = duration(info["variants"]["ours"]["median_us"]), info["shape"]
        cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        about = [str(shape["lanes"]), str(shape["calls"]), str(info["rounds"]), ours]
        lines.append([*about, *cells, duration(info["host_us"])])
    return table(lines)


def step_parts_table(results: list[Info]) -> str:
    """Where the time of that evaluation goes: shares of the whole, with the parts measured inside."""
    parts = list(dict.fromkeys(part for info in results for part, us in info["inside_us"].items() if us))
    lines = [["lanes", *parts]]
    for info in results:
        inside = info["inside_us"]
        shares = [f"{inside[part] / inside['whole']:.0%}" for part in parts if part != "whole"]
        lines.append([str(info["shape"]["lanes"]), duration(inside["whole"]), *shares])
    return table(lines)


def _title(variant: str) -> str:
    """A style of the cache in words, and what was done to it."""
    style, comma, rest = variant.partition(",")
    return STYLES.get(style, style) + comma + rest


def attention_table(results: list[Info]) -> str:
    """The cheapest and the dearest of the peers that keep a cache, and SDPA where nothing has to be moved."""
    titles = ["cheapest cache + SDPA", "dearest cache + SDPA", "SDPA on the dense range", "SDPA with a mask"]
    lines = [["case", "rounds", "ours", *titles, "flex_attention"]]
    for info in results:
        shape, ratios = info["shape"], {k.removesuffix("_over_op"): v for k, v in info["ratios"].items()}
        caches = sorted((ratios[style], style) for style in CACHES if style in ratios)
        cells = [f"{ratio:.2f}: {STYLES.get(style, style)}" for ratio, style in (caches[0], caches[-1])]
        cells += [f"{ratios[name]:.2f}" if name in ratios else "" for name in ("dense", "mask", "flex")]
        name = f"{shape['lanes']} x {shape['queries']} queries of {shape['heads']} heads, {shape['slots']} slots"
        ours = duration(info["variants"]["op"]["median_us"])
        lines.append([f"{name}, {info['dtype']}", str(info["rounds"]), ours, *cells])
    return table(lines)


def ops_table(results: list[Info]) -> str:
    """Eager PyTorch and torch.compile of it over each op, by preset and precision."""
    columns = [(preset, dtype) for preset in ("demo", "rest-512") for dtype in ("fp32", "bf16")]
    found = {(info["op"], info["preset"], info["dtype"]): info for info in results}
    lines = [["op", *(" ".join(column) for column in columns), "of the roofline at rest-512, fp32 / bf16"]]
    for op in dict.fromkeys(info["op"] for info in results):
        cells = [_over(found.get((op, *column))) for column in columns]
        shares = [found.get((op, *column), {}).get("of_roof") for column in columns[2:]]
        roof = " / ".join("-" if share is None else f"{share:.0%}" for share in shares)
        lines.append([f"`{op}`", *cells, roof if any(shares) else ""])
    return table(lines)


def _over(info: Info | None) -> str:
    if info is None:
        return ""
    ratios = [info["ratios"].get(f"{peer}_over_op") for peer in ("eager", "compiled")]
    return " / ".join("-" if r is None else f"{r:.1f}" for r in ratios)
