"""What the demo model can do, on identities, voices and words that were never trained on.

    python -m rest_fast.evaluation.demo_report --train build/demo/train --test build/demo/test --model demo \\
        --out docs/demo_model.json --figures docs

Four videos of every clip stand side by side, since an instrument alone proves nothing: the truth, the truth through the
VAE, the generated video, and one generated with another clip's sound. Two instruments read the mouth (``readers``):
one the pixels of all four; one latents, the encoder's of the truth and the DiT's own of what it generated. What went
through the VAE has the truth's latents, hence no such reading of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import rest_fast
from rest_fast.errors import ArgumentError
from rest_fast.evaluation import figures, measures, streams
from rest_fast.evaluation.measures import Bar
from rest_fast.evaluation.readers import LatentReader, PixelReader, fit_pixel_reader, flat, training_crops
from rest_fast.model import ASSETS, Model
from rest_fast.training.synthetic.clips import Clips

log = logging.getLogger("rest_fast.evaluation")

VIDEOS = ("truth", "through_vae", "generated", "wrong_sound")
LEAST = 20  # clips that the bars are judged on
SWEEP = (1.0, 1.5, 2.0)  # guidances
MOMENTS = (0, 10, 20, 30, 60)  # seconds of the long streams
EDGE = 10  # seconds at both ends of a stream whose lip sync is compared
SHOWN = 2  # clips in the comparison
Array = NDArray[Any]
Rows = dict[str, list[float]]


@torch.no_grad()
def four_videos(
    model: Model, clips: Clips, clip: int, other: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """:data:`VIDEOS` of a clip, [3, 97, H, W] in -1..1; latents [12, T C] of all but ``through_vae``; and the video
    through a VAE whose decoder is not given the photo. ``other`` is the clip of the wrong sound."""
    if other == clip:
        raise ArgumentError(f"report: wrong sound: expected that of another clip, got clip {clip}'s own")
    truth, photo = clips.pixels(clip), np.asarray(clips.video[clip, 0])
    z = model.vae.encode(truth[None])
    through, without = (model.vae.decode(z, reference=r)[0].clamp(-1, 1) for r in (truth[None, :, :1], None))
    (own, own_z), (wrong, wrong_z) = (streams.generate(model, photo, clips.sound(i), seed=clip) for i in (clip, other))
    latents = {"truth": flat(z), "generated": own_z, "wrong_sound": wrong_z}
    return dict(zip(VIDEOS, (truth, through, own, wrong))), latents, without


def read_clips(
    model: Model, clips: Clips, count: int, pixel: PixelReader, latent: LatentReader
) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Means and deviations over the first clips, and the videos of the first :data:`SHOWN`."""
    rows: Rows = {}
    lags: dict[str, list[Array]] = {name: [] for name in VIDEOS}
    shown = []
    box = measures.mouth_box(*clips.video.shape[2:4])

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for n in range(count):
        videos, latents, without = four_videos(model, clips, n, (n + 1) % len(clips))
        gap, width = clips.gap(n)[1:], clips.geometry[n, 1:, 1]
        # the decoder is given frame 0, so that is none of its merit
        errors, blind = ((videos["truth"] - v)[:, 1:].square() for v in (videos["through_vae"], without))
        add("vae_mse", float(errors.mean()))
        add("vae_without_photo_mse", float(blind.mean()))
        add("vae_mouth_mse", float(errors[(..., *box)].mean()))
        readings = {name: pixel.read(video)[1:] for name, video in videos.items()}
        for name, video in videos.items():
            both = {"pixel": readings[name][:, 0]}
            if name in latents:
                both["latent"] = latent(latents[name])
            if name == "truth":
                spread = {reader: reading.std() for reader, reading in both.items()}
            for reader, reading in both.items():
                add(f"opening_r.{reader}.{name}", measures.correlation(reading, gap))
                add(f"amplitude_over_truth_reading.{reader}.{name}", float(reading.std() / spread[reader]))
                add(f"amplitude_over_gap.{reader}.{name}", float(reading.std() / gap.std()))
            add(f"width_r.pixel.{name}", measures.correlation(readings[name][:, 1], width))
            add(f"border_ratio.{name}", measures.border_ratio(video))
            add(f"chunk_border_ratio.{name}", measures.chunk_border_ratio(video, model.config.stream.chunk))
            lags[name].append(measures.lag_correlations(both["pixel"], gap))
        if n < SHOWN:
            shown.append(videos)
        log.info("clip %d of %d", n + 1, count)
    result: dict[str, Any] = {name: measures.summary(v) for name, v in rows.items() if not name.endswith("mse")}
    for part, key in (("vae", ""), ("vae_mouth", ""), ("vae", "_without_photo")):
        each = rows[f"{part}{key}_mse"]
        db = measures.summary([measures.psnr(mse) for mse in each])
        result[f"{part}_psnr{key}_db"] = {"pooled": measures.psnr(float(np.mean(each))), **db}
    result["best_lag"] = {name: measures.best_lag(np.mean(curves, 0)) for name, curves in lags.items()}
    return result, shown


def sweep_guidance(model: Model, clips: Clips, count: int, pixel: PixelReader) -> dict[str, Any]:
    """Lip sync and amplitude of generated video at several guidances."""
    result = {}
    for guidance in SWEEP:
        rows: Rows = {"opening_r": [], "amplitude_over_truth_reading": []}
        for n in range(count):
            video, _ = streams.generate(model, np.asarray(clips.video[n, 0]), clips.sound(n), seed=n, guidance=guidance)
            reading, true = (pixel.read(v)[1:, 0] for v in (video, clips.pixels(n)))
            rows["opening_r"].append(measures.correlation(reading, clips.gap(n)[1:]))
            rows["amplitude_over_truth_reading"].append(float(reading.std() / true.std()))
            log.info("guidance %g: clip %d of %d", guidance, n + 1, count)
        result[f"{guidance:g}"] = {name: measures.summary(values) for name, values in rows.items()}
    return result


def read_streams(
    model: Model, identities: int, seconds: int, pixel: PixelReader
) -> tuple[dict[str, Any], dict[str, list[Array]]]:
    """Long streams with the sink and without it; and frames of the first one at :data:`MOMENTS`."""
    moments = [m for m in MOMENTS if m <= seconds]
    rows: dict[str, dict[str, list[Any]]] = {"with_sink": {}, "without_sink": {}}
    frames: dict[str, list[Array]] = {}
    for n in range(identities):
        talk = streams.Talk.random(n, seconds)
        run: dict[str, Any] = {"seed": n, "reader": pixel, "keep": moments}
        records = {"with_sink": streams.play(model, talk.photo, talk.samples, **run)}
        with streams.no_sink(model):
            records["without_sink"] = streams.play(model, talk.photo, talk.samples, **run)
        for name, record in records.items():
            row, edge = rows[name], EDGE * streams.FPS
            first, last = (measures.correlation(record.gap[s], talk.gap[s]) for s in (slice(edge), slice(-edge, None)))
            values = {"opening_r_first": first, "opening_r_last": last, "opening_r_change": last - first}
            values |= {"memory_growth_mb": record.memory_growth_mb, "chunk_ms": record.chunk_ms}
            for moment in moments:
                start = min(moment, seconds - 1) * streams.FPS  # the last window ends with the stream
                window = record.colour[start : start + streams.FPS]
                values[f"colour_change.{moment}s"] = measures.colour_change(window, talk.photo)
            for key, value in values.items():
                row.setdefault(key, []).append(value)
            frames.setdefault(name, record.frames)
        log.info("stream %d of %d", n + 1, identities)
    return {name: {key: measures.summary(v) for key, v in row.items()} for name, row in rows.items()}, frames


def bars(clips: dict[str, Any], long: dict[str, Any], seconds: int, errors: dict[str, float]) -> list[Bar]:
    """The acceptance bars; those on lip sync hold at the preset's guidance."""
    kept, lost = long["with_sink"], long["without_sink"]
    last = f"colour_change.{max(m for m in MOMENTS if m <= seconds)}s"

    def r(reader: str, video: str) -> float:
        return float(clips[f"opening_r.{reader}.{video}"]["mean"])

    blind = f"without the photo {clips['vae_psnr_without_photo_db']['pooled']:.1f}"
    return [
        Bar("VAE PSNR, dB", clips["vae_psnr_db"]["pooled"], low=29, note=blind),
        Bar("VAE PSNR of the mouth box, dB", clips["vae_mouth_psnr_db"]["pooled"], low=27),
        Bar("latent border / inner change, through the VAE", clips["border_ratio.through_vae"]["mean"], high=2),
        Bar("opening r, latents", r("latent", "generated"), low=0.80),
        Bar("the same / that of the truth's latents", r("latent", "generated") / r("latent", "truth"), low=0.95),
        Bar("opening r, pixels", r("pixel", "generated"), low=0.75),
        Bar("the same / that through the VAE", r("pixel", "generated") / r("pixel", "through_vae"), low=0.95),
        Bar("best lag, frames", clips["best_lag"]["generated"], -1, 1),
        Bar("opening r with a wrong sound, pixels", r("pixel", "wrong_sound"), high=0.15),
        Bar("opening r with a wrong sound, latents", r("latent", "wrong_sound"), high=0.15),
        Bar("amplitude / truth, pixels", clips["amplitude_over_truth_reading.pixel.generated"]["mean"], 0.8, 1.3),
        Bar("chunk border / latent border change", clips["chunk_border_ratio.generated"]["mean"], high=1.15),
        Bar("mean colour change at the end, levels", kept[last]["mean"], high=3),
        Bar("the same without the sink / with it", lost[last]["mean"] / kept[last]["mean"], low=10),
        Bar("opening r, last minus first 10 s", kept["opening_r_change"]["mean"], low=-0.05),
        Bar("memory growth between second 10 and the end, MB", kept["memory_growth_mb"]["mean"], high=8),
        Bar("streaming against one masked pass", errors["streaming"], high=1e-4),
        Bar("decoding in pieces against whole", errors["decoding"], high=1e-4),
        Bar("one chunk of 0.96 s, ms", kept["chunk_ms"]["mean"], high=250),
    ]


def pixel_reader(path: Path, clips: Clips) -> PixelReader:
    """The reader of that file, fitted and written first where there is none."""
    if not path.exists():
        log.info("reader: fitting %s", path)
        fit_pixel_reader(*training_crops(clips)).save(path)
    return PixelReader.load(path)


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"cpu": name or platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def table(result: dict[str, Any]) -> str:
    """Markdown of what matters most: the four videos, the streams, the bars."""

    def cell(group: dict[str, Any], key: str) -> str:
        return f"{group[key]['mean']:.2f} ± {group[key]['std']:.2f}" if key in group else "-"

    clips, long = result["clips"], result["streams"]
    columns = {
        "opening r, pixels": "opening_r.pixel",
        "latents": "opening_r.latent",
        "amplitude / truth": "amplitude_over_truth_reading.pixel",
        "latent border / inner": "border_ratio",
        "chunk / latent border": "chunk_border_ratio",
    }
    lines = ["| video | " + " | ".join(columns) + " | best lag |", "|---" * (len(columns) + 2) + "|"]
    for video in VIDEOS:
        cells = [cell(clips, f"{key}.{video}") for key in columns.values()]
        lines.append(f"| {video} | " + " | ".join(cells) + f" | {clips['best_lag'][video]} |")
    keys = list(long["with_sink"])
    lines += ["", "| stream | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(row, key) for key in keys) + " |" for name, row in long.items()]
    lines += ["", "| bar | value | from | to | passed |", "|---|---|---|---|---|"]
    for bar in result["bars"]:
        low, high = ("" if end is None else f"{end:g}" for end in (bar["low"], bar["high"]))
        name = f"{bar['name']} ({bar['note']})" if bar["note"] else bar["name"]
        lines.append(f"| {name} | {bar['value']:.4g} | {low} | {high} | {'yes' if bar['passed'] else 'NO'} |")
    return "\n".join(lines)


def report(args: argparse.Namespace, *, least: int = LEAST) -> dict[str, Any]:
    """Everything that ``main`` writes; draws the figures on the way. Fewer clips than ``least`` are refused."""
    start = time.time()
    model, train, test = rest_fast.load(args.model, device="cpu"), Clips(args.train), Clips(args.test)
    for clips, split in ((train, "train"), (test, "test")):
        if clips.about["split"] != split:
            raise ArgumentError(f"report: --{split}: expected clips of that split, got {clips.about['split']!r}")
    count = min(args.clips, len(test))
    if count < least:
        raise ArgumentError(f"report: --clips: expected at least {least}, got {args.clips} of {len(test)}")
    pixel = pixel_reader(args.reader or args.train.parent / "reader.safetensors", train)
    read, shown = read_clips(model, test, count, pixel, LatentReader.fit(model, train))
    long, frames = read_streams(model, args.stream_identities, args.stream_seconds, pixel)
    errors = {
        "streaming": streams.streaming_error(model),
        "decoding": streams.decoding_error(model, np.asarray(test.video[0, 0])),
    }
    result: dict[str, Any] = {
        "model": str(args.model),
        "fingerprint": model.fingerprint,
        "sampling": vars(model.config.sampling),
        "test_clips": count,
        "stream_identities": args.stream_identities,
        "stream_seconds": args.stream_seconds,
        "seeds": {"readers": 0, "clip n": "n", "stream n": "n", "person of stream n": streams.FIRST_IDENTITY},
        "versions": {
            "rest_fast": rest_fast.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": machine(),
        "clips": read,
        "streams": long,
        "errors": errors,
        "bars": [bar.report() for bar in bars(read, long, args.stream_seconds, errors)],
    }
    if args.sweep:
        result["guidance_sweep"] = sweep_guidance(model, test, min(12, count), pixel)
    if args.figures:
        args.figures.mkdir(parents=True, exist_ok=True)
        assets = args.assets or ASSETS / "demo"
        figures.strip(model, assets / "portrait.png", assets / "speech.wav", args.figures / "demo.png")
        gaps = [test.gap(n) for n in range(len(shown))]
        figures.comparison(shown, gaps, args.figures / "demo_comparison.png")
        moments = [m for m in MOMENTS if m <= args.stream_seconds]
        figures.sink(frames, moments, args.figures / "demo_sink.png")
    result["seconds"] = round(time.time() - start)
    log.info("report: %d s in all", result["seconds"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="clips that fit the readers")
    parser.add_argument("--test", type=Path, required=True, help="clips of the split test")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True, help="json")
    parser.add_argument("--figures", type=Path, help="folder of demo.png, demo_comparison.png, demo_sink.png")
    parser.add_argument("--assets", type=Path, help="folder of portrait.png and speech.wav; those shipped by default")
    parser.add_argument("--reader", type=Path, help="the pixel reader, fitted where missing (reader.safetensors)")
    parser.add_argument("--clips", type=int, default=24, help=f"of the split test, at least {LEAST}")
    parser.add_argument("--stream-seconds", type=int, default=60)
    parser.add_argument("--stream-identities", type=int, default=4)
    parser.add_argument("--sweep", action="store_true", help="also guidance 1, 1.5 and 2 on 12 clips")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    result = report(args)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
