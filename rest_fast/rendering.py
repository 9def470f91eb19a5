"""Render a whole file: a photo and a speech file in, an mp4 out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rest_fast import media
from rest_fast.avatar import Avatar

if TYPE_CHECKING:
    from rest_fast.model import Model


@dataclass(frozen=True)
class Rendered:
    """What was written."""

    path: Path
    frames: int
    seconds: float  # duration of the sound


def render(
    model: Model,
    avatar: Avatar,
    speech: Any,
    out: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    progress: bool = False,
) -> Rendered:
    """Write ``out`` (mp4, H.264 + AAC): exactly ceil(25 d) frames for d seconds of sound, block by block.

    An interrupted call leaves what was rendered so far as a playable file.

    Args:
        speech: path or file of any sound that PyAV reads, or a :class:`rest_fast.media.Audio`.
        steps, guidance: instead of the preset's.
    Raises: :class:`rest_fast.media.MediaError` before work starts.
    """
    audio = speech if isinstance(speech, media.Audio) else media.load_audio(speech)
    # mp4 players expect mono or stereo: more channels are mixed down
    samples = audio.samples if audio.samples.shape[1] <= 2 else audio.mono[:, None]
    frames = -(-len(samples) * 25 // audio.rate)
    session = model.session(avatar, sample_rate=audio.rate, seed=seed, steps=steps, guidance=guidance)
    height, width = avatar.picture.shape[:2]
    done = 0
    with (
        session,
        media.VideoWriter(out, width, height, sample_rate=audio.rate, channels=samples.shape[1]) as writer,
        tqdm(total=frames, unit="frame", disable=not progress) as bar,
    ):
        session.push_audio(samples)
        session.end_segment()
        for block in session.blocks():
            count = min(len(block.video), frames - done)
            writer.write(block.video[:count], block.audio[: block.true_samples])
            done += count
            bar.update(count)
    assert done == frames, f"render: expected {frames} frames, wrote {done}"
    return Rendered(Path(out), frames, audio.duration)
