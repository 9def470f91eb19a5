"""The demo model's page: ``evaluate`` on identities, voices and words that were never trained on, and figures.

    python -m rest_fast.evaluation.demo_report --train build/demo/train --test build/demo/test --model demo \\
        --out docs/demo_model.json --figures docs

Beside what ``rest-fast evaluate`` measures: the same streams without the sink, a session's memory, streaming and
decoding in pieces against the whole, other guidances, and the bars that the model was made to meet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rest_fast
from rest_fast.errors import ArgumentError
from rest_fast.evaluation import batched, figures, measures, streams, tables
from rest_fast.evaluation.batched import StreamMeasures, StreamRecord
from rest_fast.evaluation.clips import ClipStudy
from rest_fast.evaluation.evaluate import evaluate
from rest_fast.evaluation.instruments import READER, Instruments
from rest_fast.evaluation.measures import Bar
from rest_fast.evaluation.readers import PixelReader
from rest_fast.evaluation.sources import Examples
from rest_fast.evaluation.streams import Talk
from rest_fast.model import ASSETS, Model

log = logging.getLogger("rest_fast.evaluation")

LEAST = 20  # clips that the bars are judged on
SWEEP = (1.0, 1.5, 2.0)  # guidances
SWEPT = 12  # clips
MOMENTS = (0, 10, 20, 30, 60)  # seconds of the long streams that are shown
SHOWN = 2  # clips in the comparison


def without_sink(model: Model, talks: list[Talk], reader: PixelReader) -> tuple[dict[str, Any], list[StreamRecord]]:
    """Measures of the streams that ``evaluate`` makes, without the sink; and the first stream with it and without."""
    with streams.no_sink(model):
        records = batched.record_streams(model, talks, reader, seeds=range(len(talks)))
    chunk = model.config.stream.chunk
    found = [dataclasses.asdict(StreamMeasures.of(r, talk, chunk)) for r, talk in zip(records, talks)]
    kept = batched.record_streams(model, talks[:1], reader, seeds=[0])
    return {name: measures.summary([each[name] for each in found]) for name in found[0]}, [*kept, records[0]]


def sweep_guidance(model: Model, test: Path, clips: int, reader: Path) -> dict[str, Any]:
    """What ``evaluate`` says of the generated clips at several guidances."""
    found = {}
    for guidance in SWEEP:
        with tempfile.TemporaryDirectory() as folder:
            each = evaluate(model, test, Path(folder), clips=clips, streams=0, reader=reader, guidance=guidance)
        found[f"{guidance:g}"] = each["clips"]["generated"]
        log.info("guidance %g", guidance)
    return found


def bars(result: dict[str, Any]) -> list[Bar]:
    """The acceptance bars; those on lip sync hold at the preset's guidance."""
    vae, clips, kept, lost = result["vae"], result["clips"], result["streams"], result["without_sink"]
    session, errors = result["session"], result["errors"]

    def mean(row: dict[str, Any], key: str) -> float:
        value = row[key]["mean"]
        return float("nan") if value is None else float(value)

    truth, through, generated, wrong = (clips[n] for n in ("truth", "through_vae", "generated", "wrong_sound"))
    pixels, latents = mean(generated, "opening_r"), mean(generated, "opening_r_latents")
    last, still = "colour_change_60", f"the still photo {mean(vae, 'psnr_db_of_still_photo'):.1f}"
    change = mean(kept, "opening_r_last") - mean(kept, "opening_r_first")
    return [
        Bar("VAE PSNR, dB", mean(vae, "psnr_db"), low=29, note=still),
        Bar("VAE PSNR of the mouth box, dB", mean(vae, "mouth_psnr_db"), low=27),
        Bar("latent border / inner change, through the VAE", mean(through, "border_ratio"), high=2),
        Bar("opening r, latents", latents, low=0.80),
        Bar("the same / that of the truth's latents", latents / mean(truth, "opening_r_latents"), low=0.95),
        Bar("opening r, pixels", pixels, low=0.75),
        Bar("the same / that through the VAE", pixels / mean(through, "opening_r"), low=0.95),
        Bar("best lag, frames", generated["best_lag"], -1, 1),
        Bar("opening r with a wrong sound, pixels", mean(wrong, "opening_r"), high=0.15),
        Bar("opening r with a wrong sound, latents", mean(wrong, "opening_r_latents"), high=0.15),
        Bar("amplitude / truth, pixels", mean(generated, "amplitude"), 0.8, 1.3),
        Bar("chunk border / latent border change", mean(generated, "chunk_border_ratio"), high=1.15),
        Bar("mean colour change at the end, levels", mean(kept, last), high=3),
        Bar("the same without the sink / with it", mean(lost, last) / mean(kept, last), low=10),
        Bar("opening r, last minus first 10 s", change, low=-0.05),
        Bar("memory growth between second 10 and the end, MB", session["memory_growth_mb"], high=8),
        Bar("streaming against one masked pass", errors["streaming"], high=1e-4),
        Bar("decoding in pieces against whole", errors["decoding"], high=1e-4),
        Bar("one chunk of 0.96 s, ms", session["chunk_ms"], high=250),
    ]


def bar_table(result: dict[str, Any]) -> str:
    lines = ["| bar | value | from | to | passed |", "|---|---|---|---|---|"]
    for bar in result["bars"]:
        low, high = ("" if end is None else f"{end:g}" for end in (bar["low"], bar["high"]))
        name = f"{bar['name']} ({bar['note']})" if bar["note"] else bar["name"]
        lines.append(f"| {name} | {bar['value']:.4g} | {low} | {high} | {'yes' if bar['passed'] else 'NO'} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"cpu": name or platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def draw(model: Model, examples: Examples, records: list[StreamRecord], assets: Path, out: Path) -> None:
    """``demo.png``, ``demo_comparison.png`` and ``demo_sink.png``."""
    out.mkdir(parents=True, exist_ok=True)
    figures.strip(model, assets / "portrait.png", assets / "speech.wav", out / "demo.png")
    study = ClipStudy(model, examples, Instruments(), videos=None, guidance=None)
    shown = [study.show(n, (n + 1) % len(examples))[0] for n in range(SHOWN)]
    gaps = [examples[n].gap for n in range(SHOWN)]
    figures.comparison(shown, [gap[1:] for gap in gaps if gap is not None], out / "demo_comparison.png")
    seconds = len(records[0].seconds)
    moments = [m for m in MOMENTS if m <= seconds]
    picks = [min(m, seconds - 1) for m in moments]  # the last one is of the stream's last second
    frames = {n: list(r.seconds[picks]) for n, r in zip(("with_sink", "without_sink"), records)}
    figures.sink(frames, moments, out / "demo_sink.png")


def report(args: argparse.Namespace, *, least: int = LEAST) -> dict[str, Any]:
    """Everything that ``main`` writes; draws the figures on the way. Fewer clips than ``least`` are refused."""
    start = time.time()
    model, train, test = rest_fast.load(args.model, device="cpu"), Examples(args.train), Examples(args.test)
    for examples, split in ((train, "train"), (test, "test")):
        if examples.split != split:
            raise ArgumentError(f"report: --{split}: expected clips of that split, got {examples.split!r}")
    count = min(args.clips, len(test))
    if count < least:
        raise ArgumentError(f"report: --clips: expected at least {least}, got {args.clips} of {len(test)}")
    with tempfile.TemporaryDirectory() as folder:
        out = args.evaluation or Path(folder)
        long = {"streams": args.stream_identities, "seconds": args.stream_seconds}
        result = evaluate(model, args.test, out, clips=count, reader=args.train, **long)
        del result["curves"]  # evaluate has drawn them
        log.info("report: evaluated")
        reader = PixelReader.load(out / READER)
        if args.sweep:
            result["guidance_sweep"] = sweep_guidance(model, args.test, min(SWEPT, count), out / READER)
    talks = test.talks(args.stream_identities, args.stream_seconds)
    result["without_sink"], records = without_sink(model, talks, reader)
    log.info("report: streams without the sink")
    playback = streams.play(model, talks[0].photo, talks[0].samples)
    result["session"] = {"memory_growth_mb": playback.memory_growth_mb, "chunk_ms": playback.chunk_ms}
    result["errors"] = {
        "streaming": streams.streaming_error(model),
        "decoding": streams.decoding_error(model, test[0].frames[0]),
    }
    if args.figures:
        draw(model, test, records, args.assets or ASSETS / "demo", args.figures)
    result |= {"bars": [bar.report() for bar in bars(result)], "machine": machine(), "versions": versions()}
    result["seconds"] = round(time.time() - start)
    log.info("report: %d s in all", result["seconds"])
    return result


def versions() -> dict[str, str]:
    found = {"rest_fast": rest_fast.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return found | {"python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="drawn clips that fit the readers")
    parser.add_argument("--test", type=Path, required=True, help="drawn clips of the split test")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True, help="json")
    parser.add_argument("--evaluation", type=Path, help="folder that keeps what evaluate writes")
    parser.add_argument("--figures", type=Path, help="folder of demo.png, demo_comparison.png, demo_sink.png")
    parser.add_argument("--assets", type=Path, help="folder of portrait.png and speech.wav; those shipped by default")
    parser.add_argument("--clips", type=int, default=24, help=f"of the split test, at least {LEAST}")
    parser.add_argument("--stream-seconds", type=int, default=60)
    parser.add_argument("--stream-identities", type=int, default=4)
    parser.add_argument("--sweep", action="store_true", help=f"also guidance 1, 1.5 and 2 on {SWEPT} clips")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    result = report(args)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(tables.markdown(result) + "\n" + bar_table(result))


if __name__ == "__main__":
    main()
