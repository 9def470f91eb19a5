"""Many streams at once: the lanes of one sampler and one cache, measured while they are decoded.

For studies of many models, where sessions one after the other would take hours. A lane's latents are those of a session
with the same seed, up to the round-off of batched matrix products (a test). No video is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.avatar import Avatar
from rest_fast.config import TEMPORAL, SamplingConfig
from rest_fast.errors import ArgumentError
from rest_fast.evaluation import measures
from rest_fast.evaluation.heads import HeadTracker
from rest_fast.evaluation.readers import PixelReader, at_128
from rest_fast.evaluation.streams import Talk
from rest_fast.model import Model
from rest_fast.models.vae import to_latents, to_uint8
from rest_fast.streaming.sampler import ChunkSampler
from rest_fast.streaming.stream import Stream
from rest_fast.units import FPS, FRAME, from_levels

EDGE = 10  # seconds at both ends of a stream that are compared
EACH = 5  # every fifth frame is asked who it is
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class StreamRecord:
    """What is kept of a stream of n frames and m latents."""

    latents: Array  # [m, T, C], the DiT's own
    gap: Array  # [n], pixels, as read; NaN without a reader
    colour: Array  # [n, 3], mean colours, levels of 255
    change: Array  # [n - 1], mean change of pixels from frame to frame, levels of 255
    head: Array  # [n, 2], pixels right and down of the photo's
    drift: Array  # [n / 5], 1 - SSIM of the upper face
    seconds: Array  # uint8 [n / 25, H, W, 3], the frame in the middle of each second


@dataclass(frozen=True)
class StreamMeasures:
    """Numbers of one stream; NaN where it is too short for one."""

    opening_r: float  # of the opening as read and the true one; 1 is perfect; NaN where none is known
    opening_r_first: float  # of the first and the last 10 s
    opening_r_last: float
    lag: float  # frames by which the reading comes late
    amplitude_over_gap: float  # deviation of the opening as read over that of the true one
    colour_change_10: float  # levels of 255, of the second that begins then (the last one of a stream of 60 s)
    colour_change_30: float
    colour_change_60: float
    colour_change_mean: float  # of all seconds
    identity_drift: float  # 1 - SSIM of the upper face, mean of all seconds
    identity_drift_first: float  # of the first and the last 10 s
    identity_drift_last: float
    border_ratio: float  # change of pixels at latent borders over that inside
    chunk_border_ratio: float  # the same at borders of chunks over that at the other latent borders
    latent_chunk_ratio: float  # the same of the DiT's latents
    motion_chunk_ratio: float  # the same of how abruptly the head's horizontal motion changes
    head_range: float  # deviation of the head's horizontal place, pixels: heads that stand still make no jumps

    @classmethod
    def of(cls, record: StreamRecord, talk: Talk, chunk: int) -> StreamMeasures:
        """``chunk``: latents of one."""
        known = bool(np.isfinite(record.gap).all() and np.isfinite(talk.gap).all())
        edge, looks = EDGE * FPS, EDGE * FPS // EACH
        first, last = ((record.gap[s], talk.gap[s]) for s in (slice(edge), slice(-edge, None)))
        colours = colour_per_second(record.colour, talk.photo)
        latent_borders = record.change[TEMPORAL - 1 :: TEMPORAL]
        return cls(
            opening_r=measures.correlation(record.gap, talk.gap),
            opening_r_first=measures.correlation(*first),
            opening_r_last=measures.correlation(*last),
            lag=measures.best_lag(measures.lag_correlations(record.gap, talk.gap)) if known else float("nan"),
            amplitude_over_gap=float(record.gap.std() / talk.gap.std()),
            **{f"colour_change_{s}": _second(colours, s) for s in (10, 30, 60)},
            colour_change_mean=float(colours.mean()),
            identity_drift=float(record.drift.mean()),
            identity_drift_first=float(record.drift[:looks].mean()),
            identity_drift_last=float(record.drift[-looks:].mean()),
            border_ratio=measures.border_ratio(record.change),
            chunk_border_ratio=measures.chunk_ratio(latent_borders, chunk),
            latent_chunk_ratio=measures.latent_chunk_ratio(record.latents, chunk),
            motion_chunk_ratio=measures.motion_chunk_ratio(record.head[:, 0], chunk),
            head_range=float(record.head[:, 0].std()),
        )


def measure_streams(
    model: Model,
    talks: Sequence[Talk],
    reader: PixelReader | None,
    *,
    seeds: Sequence[int],
    guidance: float | None = None,
    steps: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[StreamMeasures]:
    """Stream all talks side by side and measure each; :func:`record_streams` says what the arguments are."""
    records = record_streams(
        model, talks, reader, seeds=seeds, guidance=guidance, steps=steps, dtype=dtype, progress=progress
    )
    return [StreamMeasures.of(r, talk, model.config.stream.chunk) for r, talk in zip(records, talks)]


@torch.inference_mode()
def record_streams(
    model: Model,
    talks: Sequence[Talk],
    reader: PixelReader | None,
    *,
    seeds: Sequence[int],
    guidance: float | None = None,
    steps: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[StreamRecord]:
    """Stream all talks side by side; one record for each.

    Args:
        reader: of mouths; None where there is nothing to compare a reading with.
        seeds: of each talk's noise, as those of sessions.
        guidance: and ``steps``: the preset's when None.
        dtype: of the decoder alone; the model's own when None.
        progress: called with chunks decoded and chunks in all.
    """
    z = stream_latents(model, talks, seeds=seeds, guidance=guidance, steps=steps)
    photos = np.stack([model.prepare(talk.photo, crop="center").picture for talk in talks])  # of the model's size
    parts: list[list[tuple[Array, ...]]] = [[] for _ in talks]
    trackers, before = [HeadTracker(photo) for photo in photos], [None] * len(talks)
    count, pieces = 0, z.shape[1] // model.config.stream.chunk
    for piece, videos in enumerate(decode(model, photos, z, dtype)):
        for lane, (video, tracker) in enumerate(zip(videos, trackers)):
            video = video[: max(0, len(talks[lane].samples) // FRAME - count)]
            if len(video):
                parts[lane].append(_look(video, before[lane], count, tracker, reader))
                before[lane] = video[-1]
        count += videos.shape[1]
        if progress is not None:
            progress(piece + 1, pieces)
    columns = [[np.concatenate(column) for column in zip(*part)] for part in parts]
    lengths = [-(-len(talk.samples) // (TEMPORAL * FRAME)) for talk in talks]
    return [StreamRecord(lane[:n].cpu().numpy(), *column) for lane, n, column in zip(z, lengths, columns)]


def _look(
    video: Array, before: Array | None, first: int, tracker: HeadTracker, reader: PixelReader | None
) -> tuple[Array, ...]:
    """The columns of a record from frames uint8 [n, H, W, 3], of which the first is number ``first``."""
    gap = np.full(len(video), np.nan)
    if reader is not None:
        gap = reader.read(at_128(from_levels(torch.from_numpy(video).permute(3, 0, 1, 2))))[:, 0]
    change = measures.changes(video if before is None else np.concatenate([before[None], video]))
    head, asked = tracker.track(video), slice(-first % EACH, None, EACH)
    middles = video[(FPS // 2 - first) % FPS :: FPS]
    return gap, video.mean((1, 2), dtype=np.float64), change, head, tracker.drift(video[asked], head[asked]), middles


@torch.inference_mode()
def stream_latents(
    model: Model,
    talks: Sequence[Talk],
    *,
    seeds: Sequence[int],
    guidance: float | None = None,
    steps: int | None = None,
) -> torch.Tensor:
    """Latents fp32 [S, m, T, C] that the DiT makes for S talks, in whole chunks of the longest one."""
    if not talks or len(seeds) != len(talks):
        raise ArgumentError(
            f"streams: seeds: expected one for each of at least 1 talk, got {len(seeds)} for {len(talks)}"
        )
    changed = {"sampling__guidance": guidance, "sampling__steps": steps}
    config = model.config.replace(**{k: v for k, v in changed.items() if v is not None})
    avatars = [model.prepare(talk.photo, crop="center") for talk in talks]
    return model.compute(_latents, model, config.sampling, avatars, talks, seeds)


@torch.inference_mode()
def _latents(
    model: Model, sampling: SamplingConfig, avatars: list[Avatar], talks: Sequence[Talk], seeds: Sequence[int]
) -> torch.Tensor:
    """Streams whose next chunks are lanes of one call; one that has ended goes on in silence."""
    sampler, streams = ChunkSampler.of(model, sampling, len(talks)), []
    for i, (avatar, talk, seed) in enumerate(zip(avatars, talks, seeds)):
        streams.append(Stream(model, avatar, sampler, sampler.session(i), seed=seed))
        streams[-1].push(talk.samples)
        streams[-1].end_segment()
    made = []
    while any(stream.due() for stream in streams):
        for stream in streams:
            stream.request_idle()  # ignored where something is due
        jobs = [stream.next_chunk() for stream in streams]
        made.append(sampler.run(jobs))
        for stream, job, latents in zip(streams, jobs, made[-1]):
            stream.accept(job, latents)
            for _ in range(job.plan.keep):  # they are shown elsewhere
                stream.deliver()
            stream.forget()
    return torch.cat(made, 1).unflatten(1, (-1, model.config.tokens))


@torch.inference_mode()
def decode(model: Model, photos: Array, z: torch.Tensor, dtype: torch.dtype | None = None) -> Iterator[Array]:
    """Videos uint8 [S, 8 chunk, H, W, 3] of latents [S, m, T, C] behind photos uint8 [S, H, W, 3], chunk by chunk."""
    vae = model.vae if dtype in (None, model.dtype) else copy.deepcopy(model.vae).to(dtype)
    pixels = torch.cat([model.pixels(photo) for photo in photos])
    references = pixels.to(dtype or model.dtype)
    stream = vae.stream(reference=references)
    stream.decode(model.vae.encode(pixels).to(references))  # primes it, as a session does
    for piece in z.split(model.config.stream.chunk, 1):
        latents = to_latents(piece.flatten(1, 2).to(references), model.config.grid)
        yield to_uint8(stream.decode(latents)).cpu().numpy()


def colour_per_second(colours: Array, photo: Array) -> Array:
    """:func:`measures.colour_change` of each whole second of mean colours [n, 3], [n / 25]."""
    seconds = range(max(1, len(colours) // FPS))
    return np.array([measures.colour_change(colours[s * FPS : (s + 1) * FPS], photo) for s in seconds])


def _second(values: Array, moment: int) -> float:
    """The value of the second that begins at ``moment``, or of the last one where the stream ends then."""
    return float(values[min(moment, len(values) - 1)]) if moment <= len(values) else float("nan")
