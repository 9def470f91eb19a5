"""What each way to decode piece by piece costs, against the decode of the whole clip: error, seams, delay, time.

    python benchmarks/vae_modes.py --vae build/vae_narrow/run/vae --data build/vae_narrow/test \\
        --causal folded=build/vae_narrow/folded/causal-decoder --out benchmarks/results/vae_modes.json

``--vae`` is a VAE whose decoder is not causal, ``--causal`` what ``rest-fast train causal-decoder`` made of it. Clips
of 97 frames are encoded, then decoded whole and in the plan of a session: the reference and three latents, then three
at a time. Errors are those of frames 1 to 48, which no call makes that has seen the end of the clip: there a decode in
pieces knows all that the whole one does, and a live stream has no end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rest_fast.config import TEMPORAL
from rest_fast.evaluation import charts
from rest_fast.evaluation.demo_report import machine
from rest_fast.evaluation.measures import mouth_box, psnr
from rest_fast.models.vae import DecodeStream, TemporalVAE
from rest_fast.training.causal_decoder import causal_copy
from rest_fast.training.reports import read_log
from rest_fast.training.shards import FRAMES, Shards

NEW = 3  # latents of a chunk
PLAN = (1 + NEW, NEW, NEW, NEW)
PERIOD = TEMPORAL * NEW  # frames of a chunk
LIVE = slice(1, 1 + 2 * PERIOD)
AHEAD = (0, 1, 2, 3)
MS = 40  # of a frame
ROUNDS = 15
LATENT_BORDERS = range(1 + TEMPORAL, FRAMES, TEMPORAL)


@dataclass(frozen=True)
class Shown:
    """A decoded clip [3, n, H, W] in -1..1: ``places`` [n] are those of its frames in the clip, ``borders`` the indices
    of frames with which a new call begins, where the call before had to guess what follows."""

    video: torch.Tensor
    places: Sequence[int]
    borders: Sequence[int]


Way = Callable[[torch.Tensor], Shown]


# -- ways to decode, each of latents [1, C, 13, h, w]


def borders(ahead: int = 0) -> list[int]:
    """Where pictures of a new call begin, in a session with so many latents of look-ahead."""
    return [1 + PERIOD * i - TEMPORAL * ahead for i in range(1, len(PLAN))]


def in_one(vae: TemporalVAE, mode: str, ahead: int = 0) -> Way:
    """:meth:`TemporalVAE.decode`, which has the plan of a session where the mode is a streaming one."""

    def decode(latents: torch.Tensor) -> Shown:
        return Shown(vae.decode(latents, mode=mode)[0].clamp(-1, 1), range(FRAMES), borders(ahead))

    return decode


def in_pieces(vae: TemporalVAE) -> Way:
    """A causal decoder, call by call."""

    def decode(latents: torch.Tensor) -> Shown:
        stream = vae.stream(mode="causal")
        video = torch.cat([stream.decode(piece) for piece in latents.split(PLAN, 2)], 2)
        return Shown(video[0].clamp(-1, 1), range(FRAMES), borders())

    return decode


def naive(vae: TemporalVAE) -> Way:
    """Every chunk a clip of its own: its first latent gives one frame, the last of the eight that it stands for."""

    def decode(latents: torch.Tensor) -> Shown:
        videos = [vae.decode(piece, mode="exact")[0].clamp(-1, 1) for piece in latents.split(PLAN, 2)]
        places: list[int] = []
        joins: list[int] = []
        latent = 0
        for piece, video in zip(PLAN, videos):
            joins.append(len(places))
            places += range(TEMPORAL * latent, TEMPORAL * latent + video.shape[1])
            latent += piece
        return Shown(torch.cat(videos, 1), places, joins[1:])

    return decode


# -- measures


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    """RMS of the difference over the RMS of what it should be."""
    return rms(got - want) / rms(want)


def changes(video: torch.Tensor) -> np.ndarray:
    """Mean absolute change from each frame of [3, n, H, W] to the next, [n - 1]."""
    return video.diff(dim=1).abs().mean((0, 2, 3)).double().numpy()


def seam_ratio(video: torch.Tensor, borders: Sequence[int], among: Sequence[int] | None = None) -> float:
    """Mean change into the frames ``borders`` over the mean change into all others, or the others of ``among``."""
    change = changes(video)
    others = set(range(1, len(change) + 1) if among is None else among) - set(borders)
    at, elsewhere = ([frame - 1 for frame in frames] for frames in (borders, sorted(others)))
    return float(change[at].mean() / change[elsewhere].mean())


def by_position(values: np.ndarray, places: Sequence[int], border: int) -> np.ndarray:
    """Mean of values [n] by how many frames after a border their places are, [PERIOD]; NaN where there is none."""
    position = (np.asarray(places) - border) % PERIOD
    return np.array([values[position == p].mean() if (position == p).any() else np.nan for p in range(PERIOD)])


def held(shown: Shown) -> torch.Tensor:
    """The clip at its own speed, frames that are lost being the last one before them: [3, 97, H, W]."""
    last = np.searchsorted(np.asarray(shown.places), np.arange(FRAMES), side="right") - 1
    return shown.video[:, torch.from_numpy(last)]


def measure(shown: Shown, whole: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """The numbers of one clip; ``whole`` and ``truth`` [3, 97, H, W]."""
    kept, places = live(shown)
    got, teacher, video = shown.video[:, kept], whole[:, places], truth[:, places]
    mouth = (..., *mouth_box(*got.shape[2:]))
    before = [shown.places[b - 1] + 1 for b in shown.borders]  # where they would be, were no frames lost
    numbers = {
        "psnr_truth": psnr(rms(got - video) ** 2),
        "psnr_truth_mouth": psnr(rms(got[mouth] - video[mouth]) ** 2),
        "psnr_truth_held": psnr(rms((held(shown) - truth)[:, LIVE]) ** 2),
        "seam": seam_ratio(shown.video, shown.borders) / seam_ratio(whole, before),
    }
    if len(shown.places) == FRAMES:
        numbers["latent_seam"] = seam_ratio(shown.video, LATENT_BORDERS) / seam_ratio(whole, LATENT_BORDERS)
        chunks = [seam_ratio(x, shown.borders, LATENT_BORDERS) for x in (shown.video, whole)]
        numbers["chunk_seam"] = chunks[0] / chunks[1]
        numbers["motion"] = float(changes(got).mean() / changes(video).mean())
    if not torch.equal(got, teacher):
        numbers |= {
            "psnr_whole": psnr(rms(got - teacher) ** 2),
            "psnr_whole_mouth": psnr(rms(got[mouth] - teacher[mouth]) ** 2),
            "relative_rms": relative_rms(got, teacher),
        }
    return numbers


def live(shown: Shown) -> tuple[list[int], list[int]]:
    """Which of the frames are live ones, and their places."""
    kept = [i for i, place in enumerate(shown.places) if LIVE.start <= place < LIVE.stop]
    return kept, [shown.places[i] for i in kept]


def profiles(shown: Shown, whole: torch.Tensor) -> dict[str, np.ndarray]:
    """By place in the chunk [PERIOD]: squared error against the whole decode; the change into a frame, of both."""
    kept, places = live(shown)
    squares = (shown.video[:, kept] - whole[:, places]).square().mean((0, 2, 3)).double().numpy()
    border = shown.places[shown.borders[0] - 1] + 1
    found = {"squares": by_position(squares, places, border)}
    if len(shown.places) == FRAMES:
        into = range(LIVE.start + 1, LIVE.stop + 1)  # all places in a chunk as often, and none is the first frame's
        for name, video in (("change", shown.video), ("change_whole", whole)):
            found[name] = by_position(changes(video)[LIVE], into, border)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, and standard deviation over clips."""
    return {"mean": round(float(np.mean(values)), 4), "std": round(float(np.std(values, ddof=1)), 4)}


def rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 3) for v in values]


# -- the run


@torch.no_grad()
def compare(vae: TemporalVAE, ways: dict[str, Way], clips: Shards, count: int) -> dict[str, Any]:
    """Numbers of each way to decode over the first ``count`` clips."""
    numbers: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    curves: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in ways}
    lost: dict[str, int] = {}
    for clip in range(count):
        truth = clips.pixels(clip)
        latents = vae.encode(truth[None])
        whole = vae.decode(latents, mode="exact")[0].clamp(-1, 1)
        for name, way in ways.items():
            shown = way(latents)
            lost[name] = FRAMES - len(shown.places)
            numbers[name].append(measure(shown, whole, truth))
            curves[name].append(profiles(shown, whole))
    return {name: summary(numbers[name], curves[name]) | {"frames_lost": lost[name]} for name in ways}


def summary(numbers: list[dict[str, float]], curves: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Over clips: means and deviations; curves by place in the chunk, in levels of 255 and as a ratio."""
    result: dict[str, Any] = {key: spread([clip[key] for clip in numbers]) for key in numbers[0]}
    mean = {key: np.mean([clip[key] for clip in curves], 0) for key in curves[0]}
    result["error_by_position"] = rounded(127.5 * np.sqrt(mean["squares"]))
    if "change" in mean:
        result["change_by_position"] = rounded(mean["change"] / mean["change_whole"])
    return result


@torch.no_grad()
def call_times(streams: dict[str, DecodeStream], latents: torch.Tensor, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """CPU milliseconds of calls with three new latents, the modes taking turns; latents [1, C, 13, h, w]."""
    times: dict[str, list[float]] = {name: [] for name in streams}
    pieces = latents.split(PLAN, 2)
    for stream in streams.values():
        for piece in pieces:
            stream.decode(piece)
    for i in range(rounds):
        for name, stream in streams.items():
            start = time.process_time()
            stream.decode(pieces[1 + i % NEW])
            times[name].append(1e3 * (time.process_time() - start))
    return times


def cost(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median of each mode in milliseconds, and its ratio to that of ``base``."""
    medians = {name: float(np.median(t)) for name, t in times.items()}
    return {name: {"call_ms": round(m, 2), "relative": round(m / medians[base], 3)} for name, m in medians.items()}


def trained(folder: Path) -> dict[str, Any]:
    """Steps and seconds of the training that left its log in a folder."""
    lines = [line for line in read_log(folder) if "step_seconds" in line]
    seconds = sum(b["step_seconds"] * (b["step"] - a) for a, b in zip([0, *(x["step"] for x in lines)], lines))
    return {"steps": lines[-1]["step"], "seconds": round(seconds)} if lines else {}


def figure(modes: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """Error, and change of pixels over that of the whole decode, by place in the chunk."""
    places = list(range(PERIOD))
    titles = {
        "error_by_position": "RMS error against the whole, levels",
        "change_by_position": "change into the frame / the whole's",
    }
    panels = []
    for key, title in titles.items():
        lines = {name.partition(",")[0]: modes[name][key] for name in names}
        panels.append(charts.Panel(title, "frames after the chunk's first", places, lines, zero=key[0] == "e"))
    charts.plot(panels, path)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is stored."""
    vae, clips = TemporalVAE.from_pretrained(args.vae), Shards(args.data, "test")
    folders = dict(pair.split("=", 1) for pair in args.causal)
    tuned = {name: TemporalVAE.from_pretrained(folder) for name, folder in folders.items()}
    ways: dict[str, Way] = {"whole": in_one(vae, "exact")}
    ways |= {f"lookahead({n})": in_one(vae, f"lookahead({n})", n) for n in AHEAD}
    ways |= {"naive": naive(vae)}
    ways |= {f"causal, {start}, not trained": in_pieces(causal_copy(vae, start)) for start in ("unchanged", "folded")}
    ways |= {f"causal, {name}": in_pieces(student) for name, student in tuned.items()}
    count = min(args.clips, len(clips))
    modes = compare(vae, ways, clips, count)
    streams = {f"lookahead({n})": vae.stream(mode=f"lookahead({n})") for n in AHEAD}
    streams["causal"] = causal_copy(vae, "unchanged").stream()
    times = call_times(streams, vae.encode(clips.pixels(0)[None]))
    for n in AHEAD:
        modes[f"lookahead({n})"] |= {"delay_frames": TEMPORAL * n, "delay_ms": TEMPORAL * n * MS}
    about = {"clips": count, "frames": FRAMES, "live_frames": [LIVE.start, LIVE.stop - 1], "plan": PLAN}
    about |= {"size": [clips.manifest.height, clips.manifest.width], "vae": dataclasses.asdict(vae.config)}
    about |= {"decoder_parameters": sum(p.numel() for p in vae.decoder.parameters()), "machine": machine()}
    about["training"] = {"whole": trained(args.vae)} | {n: trained(Path(f)) for n, f in folders.items()}
    pieces = {name: pieces_error(student, clips) for name, student in tuned.items()}
    return {"about": about, "modes": modes, "pieces_error": pieces, "cost": cost(times, "lookahead(0)")}


@torch.no_grad()
def pieces_error(vae: TemporalVAE, clips: Shards) -> float:
    """Largest difference of pixels in -1..1: a causal decode in pieces, and the same in one call."""
    latents = vae.encode(clips.pixels(0)[None])
    return float((in_pieces(vae)(latents).video - in_one(vae, "causal")(latents).video).abs().max())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="checkpoint whose decoder is not causal")
    parser.add_argument("--data", type=Path, required=True, help="prepared clips of the split test, with pictures")
    parser.add_argument("--causal", action="append", default=[], metavar="NAME=DIR", help="a fine-tuned decoder")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, help="PNG with the curves of the look-aheads and the last --causal")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    result = run(args)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if args.figure:
        shown = [f"lookahead({n})" for n in AHEAD] + [f"causal, {pair.split('=')[0]}" for pair in args.causal[-1:]]
        figure(result["modes"], shown, args.figure)


COLUMNS = {
    "psnr_whole": ("PSNR to the whole decode, dB", ".1f"),
    "relative_rms": ("relative RMS error", ".3f"),
    "seam": ("change at chunk borders", ".2f"),
    "latent_seam": ("at latent borders", ".2f"),
    "chunk_seam": ("chunk / other latent borders", ".2f"),
    "psnr_truth": ("PSNR to the video, dB", ".1f"),
    "psnr_truth_mouth": ("mouth, dB", ".1f"),
    "motion": ("change / video's", ".2f"),
}


def table(result: dict[str, Any]) -> str:
    """Markdown, a line for each way to decode: mean and deviation over clips."""

    def cell(numbers: dict[str, Any], key: str, form: str) -> str:
        return f"{numbers[key]['mean']:{form}} ± {numbers[key]['std']:{form}}" if key in numbers else "-"

    lines = [["decode", *(title for title, _ in COLUMNS.values()), "frames lost"]]
    lines.append(["---"] * len(lines[0]))
    for name, numbers in result["modes"].items():
        cells = [cell(numbers, key, form) for key, (_, form) in COLUMNS.items()]
        lines.append([name, *cells, str(numbers["frames_lost"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
