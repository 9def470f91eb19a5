"""Prepared clips for a motion VAE: sound, and the latents of the motion that belongs to it. No picture is drawn.

    python -m rest_fast.training.motion_clips --vae build/motion/vae --out build/motion/data --count 6000
    rest-fast train all --config build/motion/data/train.json --data build/motion/data --vae build/motion/vae \\
        --out build/motion/run

A motion VAE's latents are codes of motion labels (:func:`~rest_fast.training.motion_pairs.labels_to_codes`), so those
of a clip follow from its phonemes and from how a head moves. Each clip begins with a photo of its own: any expression
and any pose, read by an encoder that errs, from which the person begins to speak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rest_fast import checkpoint
from rest_fast.config import ModelConfig
from rest_fast.errors import ArgumentError, DataError, RestFastError
from rest_fast.models.vae import TemporalVAE, motion, to_tokens
from rest_fast.training.config import training_preset
from rest_fast.training.motion_decoder import NOISE, SHARED
from rest_fast.training.motion_pairs import POSE, labels_to_codes, scales
from rest_fast.training.preparation.film import Sound
from rest_fast.training.preparation.work import clip_features, load_features, load_vae
from rest_fast.training.shards import FRAMES, LEAD, MANIFEST, TAIL, Manifest, encoder_fingerprint, write_shard
from rest_fast.training.synthetic import flite
from rest_fast.training.synthetic.clips import LIPS, generator
from rest_fast.training.synthetic.heads.clip import smile_track
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.heads.pairs import random_motion, spread
from rest_fast.training.synthetic.motion import head_motion
from rest_fast.training.synthetic.speech import Voices, utterance
from rest_fast.training.synthetic.visemes import mouth_track
from rest_fast.units import FPS, FRAME, RATE

CHUNK = 25  # clips of a shard
SETTINGS = "train.json"
BEGIN = 8  # frames in which the photo goes over into the motion
MODEST = 0.6  # of the drawn faces' sway: a photograph cannot be turned as far
BREATH = 0.5  # pixels of 128 by which a head rises with each breath
Array = np.ndarray


def from_photo(own: Array, known: Array) -> Array:
    """Motion [n, 14] that begins at a photo's own motion [14] and goes over into the known one [n, 14], whose poses are
    counted from the photo's, and whose smile is the share of the photo's that stays."""
    pose, smile = [HEAD_MOTION.index(name) for name in POSE], HEAD_MOTION.index("smile")
    target = known.copy()
    target[:, pose] += own[pose]
    target[:, smile] *= own[smile].clip(0, 1)
    share = (np.arange(1, len(known) + 1) / BEGIN).clip(max=1)[:, None]
    made: Array = (own + share * (target - own)).astype(np.float32)
    return made


def modest(rows: Array) -> Array:
    """Motion [n, 13 or 14] with less sway."""
    made = rows.copy()
    for name in POSE:
        made[:, HEAD_MOTION.index(name)] *= MODEST
    return made


def make_clip(split: str, index: int, voices: Voices = "mixed") -> tuple[Array, Array, dict[str, Any]]:
    """``samples`` float32 [LEAD + 97 x 640 + TAIL], ``motion`` float32 [97, 14] (row 0: the photo), text and voice."""
    rng = generator(split, index)
    said = utterance(rng, split, (LEAD + FRAMES * FRAME + TAIL) / RATE, voices)
    mouth = mouth_track(said.phonemes, said.samples, FRAMES, offset=LEAD)
    rows = head_motion(rng, mouth, said.samples[LEAD : LEAD + FRAMES * FRAME], from_rest=False)
    breaths = rng.uniform(0.2, 0.35) * np.arange(FRAMES) / FPS + rng.random()
    rows[:, HEAD_MOTION.index("dy")] += BREATH / MODEST * np.sin(2 * np.pi * breaths)
    stays = smile_track(rng, said.phonemes, FRAMES, LEAD / RATE, own=1.0)
    known = np.concatenate([modest(rows), stays[:, None]], 1).astype(np.float32)
    own = random_motion(rng, photo=True)
    whole = np.concatenate([own[None], from_photo(own, known[1:])])
    return said.samples, whole, {"clip": f"{split}_{index:06d}", "text": said.text, "voice": said.voice}


def clip_latents(motion_rows: Array, channels: int, g: torch.Generator) -> torch.Tensor:
    """fp32 [F T, C], not normalised: codes of motion [97, 14], all misread in the same way, as the decoder learned to
    bear it (:mod:`~rest_fast.training.motion_decoder`), and the photo's with an encoder's noise."""
    basis = labels_to_codes(channels)
    labels = torch.from_numpy(motion_rows) * scales()
    labels = labels + SHARED * torch.rand(1, generator=g) * torch.randn(len(HEAD_MOTION), generator=g)
    codes = (labels @ basis.T).unflatten(1, (channels, motion.CELLS, motion.CELLS))
    codes[0] += NOISE * torch.rand(1, generator=g) * torch.randn(codes.shape[1:], generator=g)
    whole = torch.cat([codes[:1].expand(motion.TEMPORAL - 1, -1, -1, -1), codes])
    return to_tokens(motion.from_codes(whole[None]))[0]


def write_motion_clips(
    out: Path,
    vae: Path,
    config: ModelConfig,
    count: int,
    *,
    split: str = "train",
    voices: Voices = "mixed",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write clips ``0 .. count - 1`` of a split for ``rest-fast train``, with its settings.

    A call that was stopped goes on where it was.

    Args:
        vae: checkpoint of the motion VAE, whose statistics normalise the latents.
    """
    if count < 1:
        raise ArgumentError(f"motion clips: expected a count of at least 1, got {count}")
    generator(split, 0)
    if voices != "espeak":
        flite.program()
    loaded = load_vae(vae, "cpu")
    if loaded.config != config.vae:
        raise ArgumentError(f"{vae}: expected the motion VAE of this model, got {loaded.config}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{out}: expected a folder to write clips to, got {e.strerror}") from None
    (out / SETTINGS).write_text(dataclasses.replace(training_preset("demo"), model=config).to_json() + "\n")
    spans = [(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    todo = [span for span in spans if not _entry(out, split, span).is_file()]
    done = count - sum(end - first for first, end in todo)
    for first, end in spread(partial(_write_chunk, out, vae, config, split, voices), todo, workers):
        done += end - first
        if progress is not None:
            progress(done, count)
    others = [e for e in Manifest.load(out).shards if e["split"] != split] if (out / MANIFEST).is_file() else []
    manifest = Manifest(config.height, config.width, dataclasses.asdict(config.speech), encoder_fingerprint(loaded))
    manifest.shards = others + [json.loads(_entry(out, split, span).read_text()) for span in spans]
    manifest.save(out)


def _entry(out: Path, split: str, span: tuple[int, int]) -> Path:
    """Where a finished shard's entry in the manifest lies."""
    return out / f"{split}_{span[0]:06d}_{span[1]:06d}.json"


def _write_chunk(
    out: Path, vae: Path, config: ModelConfig, split: str, voices: Voices, span: tuple[int, int]
) -> tuple[int, int]:
    torch.set_num_threads(1)
    loaded, extract = load_vae(vae, "cpu"), load_features(config, None, "cpu")
    clips = [_tensors(make_clip(split, index, voices), index, loaded, extract, config) for index in range(*span)]
    tensors = {name: torch.stack([clip[name] for clip, _ in clips]) for name in clips[0][0]}
    path = _entry(out, split, span)
    entry = write_shard(out, path.with_suffix(".safetensors").name, tensors)
    entry |= {"split": split, "sources": [about for _, about in clips]}
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(entry))
    partial_path.replace(path)
    return span


def _tensors(
    clip: tuple[Array, Array, dict[str, Any]], index: int, vae: TemporalVAE, extract: Any, config: ModelConfig
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    samples, rows, about = clip
    g = torch.Generator().manual_seed(index)
    latents = clip_latents(rows, config.vae.latent_channels // motion.TEMPORAL, g)
    mean, std = (x.flatten() for x in (vae.latents_mean, vae.latents_std))
    tensors = {
        "samples": torch.from_numpy(samples),
        "features": clip_features(Sound(samples, -LEAD).window, extract, config.stream.chunk),
        "latents": ((latents - mean) / std).half(),
        "labels": torch.from_numpy(rows[:, LIPS].copy()),
    }
    return tensors, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="checkpoint of ``motion_vae join``")
    parser.add_argument("--out", type=Path, required=True, help="folder of prepared clips")
    parser.add_argument("--count", type=int, default=6000, help="clips")
    parser.add_argument("--split", default="train")
    parser.add_argument("--voices", choices=["espeak", "flite", "mixed"], default="mixed")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each core")
    args = parser.parse_args()
    try:
        config = checkpoint.read_config(args.vae)
        write_motion_clips(
            args.out,
            args.vae,
            config,
            args.count,
            split=args.split,
            voices=args.voices,
            workers=args.workers,
            progress=lambda done, of: print(f"{done} of {of}", flush=True),
        )
    except (RestFastError, OSError, ImportError) as e:
        parser.exit(2, f"{parser.prog}: error: {e}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: stopped; the same call goes on from what is kept\n")


if __name__ == "__main__":
    main()
