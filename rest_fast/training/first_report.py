"""What the first demo weights can do, on the clips that were never trained on.

    python -m rest_fast.training.first_report --work build/first --model DIR --out docs/demo_model.json

The instrument is a ridge regression from the VAE's linear latents of a video to the mouth opening of its frames, fitted
on true training clips. Readings of truth, of truth through the VAE and of generated video stand side by side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import rest_fast
from rest_fast import media
from rest_fast.config import TEMPORAL
from rest_fast.model import ASSETS, Model
from rest_fast.models.speech import FRAME
from rest_fast.models.vae import to_tokens
from rest_fast.training.drawn_faces import LEAD, mouth_from_sound
from rest_fast.training.first_weights import FRAMES, MOUTH, TEST_CLIPS, Clips


def to_latents(model: Model, video: torch.Tensor) -> torch.Tensor:
    """[3, 97, H, W] -> what the readout sees, [12, T C]."""
    return to_tokens(model.vae.encode(video[None]))[0].unflatten(0, (13, -1)).flatten(1)[1:]


def fit_readout(model: Model, clips: Clips, count: int = 300, ridge: float = 30.0) -> torch.Tensor:
    """[T C + 1, 8]: latents (and 1) of a latent frame -> opening of its 8 frames."""
    x = torch.cat([to_latents(model, clips.pixels(i, slice(0, FRAMES))) for i in range(count)])
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    y = torch.from_numpy(clips.mouth[:count, 1:].copy()).reshape(-1, TEMPORAL)
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y)


def read_mouth(model: Model, video: torch.Tensor, readout: torch.Tensor) -> np.ndarray:
    """Opening of frames 1..96, [96]."""
    x = to_latents(model, video)
    return (torch.cat([x, torch.ones(len(x), 1)], 1) @ readout).flatten().numpy()


def generate(model: Model, photo: np.ndarray, samples: np.ndarray, seed: int) -> torch.Tensor:
    """A whole stream from a photo [H, W, 3] and 16 kHz sound of 96 frames: [3, 97, H, W] with the photo in front."""
    with model.session(model.prepare(photo), seed=seed) as session:
        session.push_audio(samples)
        session.end_segment()
        video = np.concatenate([photo[None], *(block.video for block in session.blocks())])
    return torch.from_numpy(video).permute(3, 0, 1, 2) / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) / 2).square().mean()))


def border_ratio(video: torch.Tensor) -> float:
    """Frame difference at latent borders over that inside latents."""
    d = video[:, 1:].diff(dim=1).abs().mean((0, 2, 3))  # between generated frames k and k + 1
    border = d[TEMPORAL - 1 :: TEMPORAL].mean()
    inner = torch.cat([d[k::TEMPORAL] for k in range(TEMPORAL - 1)]).mean()
    return float(border / inner)


@torch.no_grad()
def report(model: Model, clips: Clips) -> dict[str, Any]:
    readout = fit_readout(model, clips)
    rows: dict[str, list[float]] = {}
    first = len(clips.video) - TEST_CLIPS
    sound = [clips.samples[i, LEAD + FRAME : LEAD + FRAMES * FRAME] for i in range(first, first + TEST_CLIPS)]

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for n in range(TEST_CLIPS):
        clip, (r, c) = first + n, MOUTH
        truth, mouth = clips.pixels(clip, slice(0, FRAMES)), clips.mouth[clip, 1:]
        through = model.vae.decode(model.vae.encode(truth[None]))[0].clamp(-1, 1)
        add("vae_psnr_db", psnr(truth, through))
        add("vae_mouth_psnr_db", psnr(truth[..., r, c], through[..., r, c]))
        own, other = (generate(model, clips.video[clip, 0], sound[k], seed=n) for k in (n, (n + 1) % TEST_CLIPS))
        videos = {"truth": truth, "truth_through_vae": through, "generated": own, "generated_wrong_sound": other}
        for name, video in videos.items():
            opening = read_mouth(model, video, readout)
            add(f"opening_r.{name}", float(np.corrcoef(opening, mouth)[0, 1]))
            add(f"opening_amplitude.{name}", float(opening.std() / mouth.std()))
            add(f"border_ratio.{name}", border_ratio(video))
    return {name: {"mean": float(np.mean(v)), "std": float(np.std(v))} for name, v in rows.items()}


def figure(model: Model, path: Path, columns: int = 12, size: int = 96) -> None:
    """Frames of the shipped example above the loudness of its sound, both over the whole clip."""
    photo = media.load_image(ASSETS / "demo" / "portrait.png")
    samples = media.load_audio(ASSETS / "demo" / "speech.wav").mono
    video = generate(model, model.prepare(photo).picture, samples, seed=0)[:, 1:]
    level = mouth_from_sound(samples)[0]
    picks = np.linspace(0, len(level) - 1, columns).round().astype(int)
    frames = ((video[:, picks] + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
    width, height = columns * size, 72
    sheet = Image.new("RGB", (width, size + height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (frame, pick) in enumerate(zip(frames, picks, strict=True)):
        sheet.paste(Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS), (i * size, 0))
        x = int((pick + 0.5) / len(level) * width)
        draw.line([(i * size + size // 2, size), (x, size + 12)], fill=(180, 180, 180))
        draw.line([(x, size + 12), (x, size + height)], fill=(180, 180, 180))
    base, scale = size + height - 4, height - 20
    points = [(int((i + 0.5) / len(level) * width), int(base - scale * v)) for i, v in enumerate(level)]
    draw.polygon([(points[0][0], base), *points, (points[-1][0], base)], fill=(120, 150, 200))
    sheet.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, help="also draw frames and loudness of the shipped example")
    args = parser.parse_args()
    model = rest_fast.load(args.model, device="cpu")
    if args.figure:
        figure(model, args.figure)
    result = {"clips": TEST_CLIPS, "sampling": vars(model.config.sampling), **report(model, Clips(args.work))}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(name, value)


if __name__ == "__main__":
    main()
