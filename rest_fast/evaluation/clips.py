"""Clip by clip: the VAE alone, and what the model makes of the photo and the sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast import media
from rest_fast.config import TEMPORAL
from rest_fast.errors import ArgumentError
from rest_fast.evaluation import batched, measures
from rest_fast.evaluation.batched import EACH
from rest_fast.evaluation.heads import HeadTracker
from rest_fast.evaluation.instruments import Instruments
from rest_fast.evaluation.mouths import NoFace
from rest_fast.evaluation.readers import flat
from rest_fast.evaluation.sources import Example, Examples
from rest_fast.model import Model
from rest_fast.models.vae import to_uint8
from rest_fast.units import FPS, RATE

VIDEOS = ("truth", "through_vae", "generated", "wrong_sound")
Array = NDArray[Any]
Rows = dict[str, list[float]]


class ClipStudy:
    """Collects the measures of one clip after the other. Videos hold frames 1..96; frame 0 is the photo."""

    def __init__(
        self, model: Model, examples: Examples, tools: Instruments, *, videos: Path | None, guidance: float | None
    ):
        """``videos``: folder to write all videos to, as ``NNN_truth.mp4`` and so on."""
        self.model, self.examples, self.tools = model, examples, tools
        self.videos, self.guidance, self.chunk = videos, guidance, model.config.stream.chunk
        self.vae: Rows = {}
        self.rows: dict[str, Rows] = {name: {} for name in VIDEOS}
        self.lags: dict[str, list[Array]] = {}
        self.changes: dict[str, list[Array]] = {name: [] for name in VIDEOS}
        self.missing: dict[str, str] = {}

    def show(self, clip: int, other: int) -> tuple[dict[str, Array], dict[str, torch.Tensor]]:
        """:data:`VIDEOS` of a clip, uint8 [96, H, W, 3], and latents [12, T C] of all but ``through_vae``: the
        encoder's of the truth, and the DiT's own of what it generated.

        ``other`` is the clip whose sound is the wrong one. The DiT makes both videos at once, as lanes of one batch;
        the seed of their noise is the clip's number.
        """
        if other == clip:
            raise ArgumentError(f"evaluate: wrong sound: expected that of another clip, got clip {clip}'s own")
        example = self.examples[clip]
        talks = [example.talk(), example.talk(self.examples[other].sound)]
        z = batched.stream_latents(self.model, talks, seeds=[clip, clip], guidance=self.guidance)
        pieces = batched.decode(self.model, np.stack([example.frames[0]] * 2), z)
        generated, wrong = np.concatenate(list(pieces), 1)[:, : len(example.frames) - 1]
        through, encoded = through_vae(self.model, example.frames)
        made, made_wrong = z[:, : len(encoded)].flatten(2).float().cpu()
        videos = dict(zip(VIDEOS, (example.frames[1:], through, generated, wrong)))
        return videos, {"truth": encoded, "generated": made, "wrong_sound": made_wrong}

    def add(self, clip: int, other: int) -> None:
        """Measure one clip; ``other`` as in :meth:`show`."""
        example = self.examples[clip]
        shown, latents = self.show(clip, other)
        self._compare(shown["truth"], shown["through_vae"], example.frames[0])
        for name, video in shown.items():
            self._look(name, video, example.frames[0])
        if self.tools.mouths is not None:
            self._read(clip, shown, example)
        if self.tools.latents is not None and example.gap is not None:
            for name, z in latents.items():
                self._row(name, "opening_r_latents", measures.correlation(self.tools.latents(z), example.gap[1:]))
        if self.tools.syncnet is not None:
            for name, sound in (*((n, example.sound) for n in VIDEOS[:3]), (VIDEOS[3], self.examples[other].sound)):
                confidence, distance = self.tools.syncnet.score(shown[name], sound)
                self._row(name, "sync_c", confidence)
                self._row(name, "sync_d", distance)
        for meter in (self.tools.fid, self.tools.fvd):
            if meter is not None:
                meter.add(shown["truth"], shown["generated"])
        if self.videos is not None:
            for name, video in shown.items():
                sound = self.examples[other].sound if name == "wrong_sound" else example.sound
                write_video(self.videos / f"{clip_name(clip, name)}.mp4", video, sound)

    def _row(self, video: str, measure: str, value: float) -> None:
        self.rows[video].setdefault(measure, []).append(value)

    def _compare(self, truth: Array, through: Array, photo: Array) -> None:
        """The VAE's picture against the truth; and the photo itself, unmoving, in its place: what PSNR is worth."""
        box, picks = measures.mouth_box(*truth.shape[1:3]), slice(None, None, EACH)
        still = np.broadcast_to(photo, truth.shape)
        for name, video in (("", through), ("_of_still_photo", still)):
            square = np.square((video.astype(np.float32) - truth) / 127.5)
            values: dict[str, Any] = {
                "psnr_db": measures.psnr(float(square.mean())),
                "mouth_psnr_db": measures.psnr(float(square[:, box[0], box[1]].mean())),
                "ssim": np.mean([measures.ssim(a, b, span=255) for a, b in zip(video[picks], truth[picks])]),
            }
            for measure, value in values.items():
                self.vae.setdefault(f"{measure}{name}", []).append(float(value))

    def _look(self, name: str, video: Array, photo: Array) -> None:
        change = measures.changes(video)
        self.changes[name].append(change)
        self._row(name, "border_ratio", measures.border_ratio(change))
        self._row(name, "chunk_border_ratio", measures.chunk_ratio(change[TEMPORAL - 1 :: TEMPORAL], self.chunk))
        tracker, picks = HeadTracker(photo), video[::EACH]
        self._row(name, "identity_drift", float(tracker.drift(picks, tracker.track(picks)).mean()))
        self._row(name, "colour_change", measures.colour_change(video[-FPS:], photo))

    def _read(self, clip: int, shown: dict[str, Array], example: Example) -> None:
        """Lip sync against the true mouth, or where that is not known against the one read off the true video."""
        assert self.tools.mouths is not None
        readings: dict[str, Array] = {}
        for name, video in shown.items():
            try:
                readings[name] = self.tools.mouths.opening(video, clip_name(clip, name))
            except NoFace as e:
                self.missing[f"lip sync of {clip_name(clip, name)}"] = str(e)
        truth = readings.get("truth") if example.gap is None else example.gap[1:]
        for name, reading in readings.items():
            if truth is None or (name == "truth" and example.gap is None):
                continue
            self._row(name, "opening_r", measures.correlation(reading, truth))
            if "truth" in readings:
                self._row(name, "amplitude", float(reading.std() / max(readings["truth"].std(), 1e-9)))
            self.lags.setdefault(name, []).append(measures.lag_correlations(reading, truth))

    def result(self) -> dict[str, Any]:
        """``vae`` and ``clips``: mean and deviation over the clips, of each measure."""
        found: dict[str, Any] = {
            "vae": {k: measures.summary(v) for k, v in self.vae.items()},
            "clips": {name: {k: measures.summary(v) for k, v in row.items()} for name, row in self.rows.items()},
        }
        for name, curves in self.lags.items():
            found["clips"][name]["best_lag"] = measures.best_lag(np.mean(curves, 0))
        return found

    def curves(self) -> dict[str, Any]:
        """``lag``: mean r at each of :data:`measures.LAGS`; ``change``: mean change of pixels in levels from each
        frame of a chunk to the next one, the last one across its border."""
        period = TEMPORAL * self.chunk
        return {
            "lag": {name: np.mean(curves, 0) for name, curves in self.lags.items()},
            "change": {name: by_phase(np.stack(rows, 1), period) for name, rows in self.changes.items()},
        }


def clip_name(clip: int, video: str) -> str:
    return f"{clip:03d}_{video}"


def by_phase(values: Array, period: int) -> Array:
    """Mean of what is known of values [n, ...] at each of the places of a period, [period]."""
    return np.array([np.nanmean(values[i::period]) for i in range(period)])


@torch.inference_mode()
def through_vae(model: Model, frames: Array) -> tuple[Array, torch.Tensor]:
    """Frames uint8 [97, H, W, 3] encoded and decoded, the first as the photo: frames 1..96, and their latents
    [12, T C]."""
    pixels = torch.cat([model.pixels(frame) for frame in frames], 2)
    z = model.vae.encode(pixels)
    video = model.vae.decode(z, reference=pixels[:, :, :1])
    return to_uint8(video)[0, 1:].cpu().numpy(), flat(z)


def write_video(path: Path, video: Array, sound: Array) -> None:
    """The video with its sound as an mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with media.VideoWriter(path, video.shape[2], video.shape[1], FPS, RATE) as writer:
        writer.write(video, sound)
