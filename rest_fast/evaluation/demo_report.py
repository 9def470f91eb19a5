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
from rest_fast.evaluation.batched import EDGE, StreamMeasures, StreamRecord
from rest_fast.evaluation.clips import ClipStudy
from rest_fast.evaluation.evaluate import evaluate
from rest_fast.evaluation.instruments import READER, Instruments
from rest_fast.evaluation.measures import Bar
from rest_fast.evaluation.photos.known_motion import denormalised, labels_of
from rest_fast.evaluation.readers import PixelReader
from rest_fast.evaluation.sources import Examples
from rest_fast.evaluation.streams import Talk
from rest_fast.model import ASSETS, Model
from rest_fast.models.vae import to_latents
from rest_fast.models.vae.motion import to_codes
from rest_fast.training.motion_clips import POSE
from rest_fast.training.motion_pairs import scales
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.units import FPS

log = logging.getLogger("rest_fast.evaluation")

LEAST = 20  # clips that the bars are judged on
SWEEP = (1.0, 1.5, 2.0)  # guidances
SWEPT = 12  # clips
MOMENTS = (0, 10, 20, 30, 60)  # seconds of the long streams that are shown
SHOWN = 2  # clips in the comparison
POSE_LABELS = [HEAD_MOTION.index(name) for name in POSE]
EXPRESSION_LABELS = [n for n in range(len(HEAD_MOTION)) if n not in POSE_LABELS]


def sink_and_none(model: Model, talks: list[Talk], reader: PixelReader) -> tuple[dict[str, Any], list[StreamRecord]]:
    """``without_sink``: measures of the streams that ``evaluate`` makes, without it; ``photo_distance`` of latents of
    motion, with and without; and the first stream with it and without."""
    seeds, chunk = range(len(talks)), model.config.stream.chunk
    kept = batched.record_streams(model, talks, reader, seeds=seeds)
    with streams.no_sink(model):
        lost = batched.record_streams(model, talks, reader, seeds=seeds)
    found = [dataclasses.asdict(StreamMeasures.of(r, talk, chunk)) for r, talk in zip(lost, talks)]
    result: dict[str, Any] = {"without_sink": {n: measures.summary([one[n] for one in found]) for n in found[0]}}
    if model.config.vae.kind == "motion":
        both = {"with_sink": kept, "without_sink": lost}
        result["photo_distance"] = {name: photo_distance(model, talks, records) for name, records in both.items()}
    return result, [kept[0], lost[0]]


def sweep_guidance(model: Model, test: Path, clips: int, reader: Path) -> dict[str, Any]:
    """What ``evaluate`` says of the generated clips at several guidances."""
    found = {}
    for guidance in SWEEP:
        with tempfile.TemporaryDirectory() as folder:
            each = evaluate(model, test, Path(folder), clips=clips, streams=0, reader=reader, guidance=guidance)
        found[f"{guidance:g}"] = each["clips"]["generated"]
        log.info("guidance %g", guidance)
    return found


def photo_distance(model: Model, talks: list[Talk], records: list[StreamRecord]) -> dict[str, Any]:
    """How far pose and expression are from the photo's, in deviations of the training's labels: mean over labels and
    streams in the first and the last ten seconds. Of latents of motion alone."""
    found: dict[str, list[float]] = {}
    for talk, record in zip(talks, records):
        latents = to_latents(torch.from_numpy(record.latents).flatten(0, 1)[None], model.config.grid)
        photo = model.vae.encode(model.pixels(model.prepare(talk.photo, crop="center").picture)).cpu()
        labels, own = (labels_of(to_codes(denormalised(model.vae, z))[0]) for z in (latents, photo))
        away = (labels - own[-1:]).abs() * scales()
        for name, columns in {"pose": POSE_LABELS, "expression": EXPRESSION_LABELS}.items():
            for moment, part in (("first", slice(EDGE * FPS)), ("last", slice(-EDGE * FPS, None))):
                found.setdefault(f"{name}_{moment}", []).append(float(away[part, columns].mean()))
    return {name: measures.summary(values) for name, values in found.items()}


def bars(result: dict[str, Any]) -> list[Bar]:
    """The acceptance bars of drawn portraits, at the preset's guidance; photographs have theirs in docs/photos.md."""
    clips, kept, session, errors = result["clips"], result["streams"], result["session"], result["errors"]

    def mean(row: dict[str, Any], key: str) -> float:
        value = row[key]["mean"]
        return float("nan") if value is None else float(value)

    generated, wrong = clips["generated"], clips["wrong_sound"]
    return [
        Bar("opening r, pixels", mean(generated, "opening_r"), low=0.85),
        Bar("best lag, frames", generated["best_lag"], -1, 1),
        Bar("opening r with a wrong sound", mean(wrong, "opening_r"), high=0.15),
        Bar("amplitude / truth, pixels", mean(generated, "amplitude"), 0.8, 1.3),
        Bar("chunk border / latent border change", mean(generated, "chunk_border_ratio"), high=1.15),
        Bar("mean colour change at the end, levels", mean(kept, "colour_change_60"), high=3),
        Bar(
            "opening r, last minus first 10 s", mean(kept, "opening_r_last") - mean(kept, "opening_r_first"), low=-0.05
        ),
        Bar("memory growth between second 10 and the end, MB", session["memory_growth_mb"], high=8),
        Bar("streaming against one masked pass", errors["streaming"], high=1e-4),
        Bar("decoding in pieces against whole", errors["decoding"], high=1e-4),
        Bar("one chunk of 0.96 s, ms", session["chunk_ms"], high=240),
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
    compared, records = sink_and_none(model, talks, reader)
    result |= compared
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
