"""Makes shards of one source: reads it, applies the rules clip by clip, and encodes the clips that pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rest_fast.config import TEMPORAL, ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.media.sources import Float32, UInt8
from rest_fast.models.speech import SpeechFeatures, speech_features, speech_window
from rest_fast.models.vae import TemporalVAE, to_tokens
from rest_fast.training.preparation import detectors
from rest_fast.training.preparation.crops import Box, Square, face_crop, given_crop
from rest_fast.training.preparation.film import Film, Sound, frames_25, survey
from rest_fast.training.preparation.rules import CUT, MAX_AWAY, MIN_HEARD, SILENT, Dropped
from rest_fast.training.preparation.units import Unit, open_clips
from rest_fast.training.shards import FRAMES, write_shard
from rest_fast.training.synthetic.clips import LEAD, TAIL
from rest_fast.units import FPS, FRAME, from_levels

SHARD_CLIPS, SHARD_BYTES = 25, 1 << 29  # of one shard at most: a process holds one in memory

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """What all sources of one preparation have in common; every process gets a copy."""

    out: Path
    config: ModelConfig
    weights: Path | None
    whisper: str | None
    video: bool
    boxes: dict[str, list[float]] | None
    detector: str | None  # None: only given boxes
    least: int  # smallest side of a crop in pixels
    device: str


def load_vae(folder: Path, device: str) -> TemporalVAE:
    """The VAE of a model's checkpoint or of a folder of its own. Raises: CheckpointError."""
    return TemporalVAE.from_pretrained(folder, device=device)


def load_features(config: ModelConfig, whisper: str | None, device: str) -> SpeechFeatures:
    """The extractor. ``whisper``: folder or hub id for transformers. Raises: ValueError if missing or another one."""
    if (config.speech.features == "whisper") != (whisper is not None):
        need = "--whisper MODEL (a folder or hub id; extra whisper)" if whisper is None else "no Whisper model"
        raise ArgumentError(f"whisper: expected {need} for speech.features {config.speech.features!r}, got {whisper}")
    if whisper is None:
        return speech_features(config.speech)
    from transformers import WhisperModel  # the 'whisper' extra

    model = WhisperModel.from_pretrained(whisper, use_safetensors=True).to(device)
    channels = (model.config.encoder_layers + 1) * model.config.d_model
    if channels != config.speech.channels:
        raise ArgumentError(f"whisper {whisper}: expected {config.speech.channels} channels, got {channels}")
    return speech_features(config.speech, model)


def clip_features(sound: Callable[[int, int], Float32], extract: SpeechFeatures, chunk: int) -> torch.Tensor:
    """fp16 [96, positions, channels] of frames 1..96; ``sound(a, b)`` are the 16 kHz positions a..b from frame 0 on.

    It extracts chunk by chunk, from the samples that a session would use: those of the chunk's frames and of 8 before.
    """
    pieces = []
    for first in range(1, FRAMES, TEMPORAL * chunk):
        last = min(first + TEMPORAL * chunk, FRAMES)
        window = speech_window(extract, first, last - first)
        samples = sound(window.start, window.end)
        pieces.append(extract(torch.from_numpy(samples)[None])[0, TEMPORAL:])
    return torch.cat(pieces).cpu().half()


class ShardMaker:
    """Makes shards of one unit after the other; holds the models and the detector."""

    def __init__(self, job: Job):
        self.job = job
        self.vae = None if job.weights is None else load_vae(job.weights, job.device)
        self.features = load_features(job.config, job.whisper, job.device)
        self.detector: detectors.Detector | None = None

    def close(self) -> None:
        if self.detector is not None:
            self.detector.close()

    def run(self, unit: Unit) -> dict[str, Any]:
        """Returns: the unit's entry in the journal, with its shards as the manifest lists them, its ``drops`` as (start
        in seconds or None, rule, message) and its ``rest`` in seconds."""
        return self._drawn(unit) if unit.count else self._film(unit)

    # -- clips of rest-fast synth

    def _drawn(self, unit: Unit) -> dict[str, Any]:
        clips, shard = open_clips(unit.path), _Shard(self.job, unit)
        for i in range(unit.first, unit.first + unit.count):
            sound = Sound(np.array(clips.samples[i]), -LEAD)
            tensors = self._encode(np.array(clips.video[i]), sound.window)
            tensors |= {
                "labels": torch.from_numpy(clips.lips(i)),
                "geometry": torch.from_numpy(np.array(clips.geometry[i])),
            }
            about = clips.about["clips"][i]
            shard.add(tensors, {"clip": f"{unit.split}_{about['index']:06d}", **about})
        return {"source": unit.name, "shards": shard.close(), "drops": [], "rest": 0.0}

    # -- videos

    def _film(self, unit: Unit) -> dict[str, Any]:
        entry: dict[str, Any] = {"source": unit.name, "shards": [], "drops": [], "rest": 0.0}
        try:
            film, given = self._survey(unit)
            crops, entry["drops"] = self._choose(film, given)
            entry["rest"] = round(len(film) % FRAMES / FPS, 2)
            entry["shards"] = self._cut_out(unit, film.sound, crops) if crops else []
        except Dropped as dropped:
            entry |= {"shards": [], "drops": [(None, dropped.rule, dropped.message)], "rest": 0.0}
        return entry

    def _survey(self, unit: Unit) -> tuple[Film, Square | None]:
        """The contents of the file, and the crop of its given box. Raises: Dropped, by a rule about files."""
        box = (self.job.boxes or {}).get(unit.name)
        if box is None and self.job.detector is None:
            raise Dropped("no_box", "expected a box among those given, got none")
        film = survey(unit.path, FRAMES, self._look if box is None else None)
        if len(film) < FRAMES:
            raise Dropped("short", f"expected at least {FRAMES} frames at 25 a second, got {len(film)}")
        return film, None if box is None else given_crop(box, *film.size, self.job.least)

    def _look(self, picture: UInt8) -> list[Box]:
        assert self.job.detector is not None
        if self.detector is None:
            self.detector = detectors.open_detector(self.job.detector)
        try:
            return self.detector.faces(picture)
        except detectors.DetectorError as error:  # a new one for the next file; if that fails, all ends
            self.detector = detectors.open_detector(self.job.detector)
            raise Dropped("no_face", f"expected faces of a detector that goes on, got {error}") from error

    def _choose(self, film: Film, given: Square | None) -> tuple[dict[int, Square], list[tuple[float, str, str]]]:
        """The crop of each clip that passes, by its number, and the others as (start, rule, message)."""
        crops, drops = dict[int, Square](), []
        for clip in range(len(film) // FRAMES):
            first = clip * FRAMES
            try:
                _check_clip(film, first)
                crops[clip] = given or self._crop(film, first)
            except Dropped as dropped:
                drops.append((first / FPS, dropped.rule, dropped.message))
        return crops, drops

    def _crop(self, film: Film, first: int) -> Square:
        assert self.detector is not None
        looks = [film.looks[k] for k in range(first, first + FRAMES) if k in film.looks]
        return face_crop(looks, self.detector.framing, *film.size, self.job.least)

    def _cut_out(self, unit: Unit, sound: Sound, crops: dict[int, Square]) -> list[dict[str, Any]]:
        shard, size = _Shard(self.job, unit), (self.job.config.width, self.job.config.height)
        wanted = {k for clip in crops for k in range(clip * FRAMES, (clip + 1) * FRAMES)}
        frames: list[UInt8] = []
        for k, picture in frames_25(unit.path, wanted):
            crop = crops[k // FRAMES]
            frames.append(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box=crop)))
            if len(frames) == FRAMES:
                at = (k + 1 - FRAMES) * FRAME
                tensors = self._encode(np.stack(frames), lambda a, b, at=at: sound.window(at + a, at + b))
                shard.add(tensors, {"file": unit.name, "start": (k + 1 - FRAMES) / FPS, "crop": list(crop)})
                frames = []
        assert not frames, f"{unit.path}: a second reading gave other frames"
        return shard.close()

    # -- both

    @torch.no_grad()
    def _encode(self, video: UInt8, sound: Callable[[int, int], Float32]) -> Tensors:
        """The fields of a clip: video uint8 [97, H, W, 3] and the sound's positions from frame 0 on."""
        tensors = {
            "samples": torch.from_numpy(sound(-LEAD, FRAMES * FRAME + TAIL)),
            "features": clip_features(sound, self.features, self.job.config.stream.chunk),
        }
        if self.job.video:
            tensors["video"] = torch.from_numpy(video)
        if self.vae is not None:
            pixels = from_levels(torch.from_numpy(video).to(self.job.device).permute(3, 0, 1, 2))
            tensors["latents"] = to_tokens(self.vae.encode(pixels[None]))[0].cpu().half()
        for name in ("features", "latents"):
            if name in tensors and not torch.isfinite(tensors[name]).all():
                raise ArgumentError(f"{name}: expected values that fit fp16, got larger ones")
        return tensors


def _check_clip(film: Film, first: int) -> None:
    """The rules that need no face."""
    here = slice(first, first + FRAMES)
    if film.damaged[here].any():
        raise Dropped("unreadable", f"expected whole pictures, got {film.damaged[here].sum()} damaged ones")
    if film.away[here].max() > MAX_AWAY:
        raise Dropped("gap", f"expected a picture within {MAX_AWAY} s of each frame, got {film.away[here].max():.2f} s")
    change = film.change[first + 1 : first + FRAMES]
    if change.max() > CUT:
        where = f"at {(first + 1 + change.argmax()) / FPS:.2f} s"
        raise Dropped("cut", f"expected changes of at most {CUT:g} levels, got {change.max():.1f} {where}")
    a, b = first * FRAME, (first + FRAMES) * FRAME
    if film.sound.covered(a, b) < MIN_HEARD:
        heard = film.sound.covered(a, b) * FRAMES / FPS
        raise Dropped("no_sound", f"expected sound under all {FRAMES / FPS} s, got it under {heard:.2f} s")
    peak = float(np.abs(film.sound.window(a, b)).max())
    if peak < SILENT:
        raise Dropped("silent", f"expected a peak of at least {_db(SILENT):.0f} dBFS, got {_db(peak):.0f} dBFS")


def _db(peak: float) -> float:
    return 20 * float(np.log10(max(peak, 1e-10)))


class _Shard:
    """Collects clips of one unit and writes them, as many in a shard as its limits allow."""

    def __init__(self, job: Job, unit: Unit):
        self._out, self._unit = job.out, unit
        self._clips: list[tuple[Tensors, dict[str, Any]]] = []
        self._entries: list[dict[str, Any]] = []

    def add(self, tensors: Tensors, source: dict[str, Any]) -> None:
        self._clips.append((tensors, source))
        size = sum(t.nbytes for t in tensors.values())
        if len(self._clips) == max(1, min(SHARD_CLIPS, SHARD_BYTES // size)):
            self._write()

    def _write(self) -> None:
        fields: Sequence[str] = sorted(self._clips[0][0])
        tensors = {name: torch.stack([clip[name] for clip, _ in self._clips]) for name in fields}
        entry = write_shard(self._out, f"clips_{self._unit.index:06d}_{len(self._entries):02d}.safetensors", tensors)
        self._entries.append(entry | {"split": self._unit.split, "sources": [source for _, source in self._clips]})
        self._clips = []

    def close(self) -> list[dict[str, Any]]:
        if self._clips:
            self._write()
        return self._entries
