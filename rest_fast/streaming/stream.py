"""A stream of REST: its context in the cache, its chunks as jobs, its pictures. See :mod:`rest_fast.streaming.viewing`.

Whoever runs it (a session, an engine, an evaluation) calls it from the model's worker, in order:

    stream.push(samples); stream.end_segment(); stream.request_idle()   # what came
    job = stream.next_chunk()                                           # while stream.wants_chunk()
    stream.accept(job, sampler.run([job])[0]); stream.decode()          # or stream.drop()
    block = stream.make_block(); stream.deliver()                       # while stream.has_block()

A job that was not run leaves no trace in frames. A job that was run has advanced the cache, so it has to be accepted or
dropped; after a drop the context is rebuilt. A job does not survive what takes latents back (:attr:`Stream.restarts`).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from rest_fast import noise
from rest_fast.avatar import Avatar
from rest_fast.config import TEMPORAL, SamplingConfig
from rest_fast.models.rest import REST
from rest_fast.models.speech import speech_window
from rest_fast.ops.latent_noise import drawn
from rest_fast.streaming.block import Latent
from rest_fast.streaming.decoder import BlockDecoder, DecoderContent
from rest_fast.streaming.decoding import Decoding
from rest_fast.streaming.graphs import Graphs
from rest_fast.streaming.sampler import ChunkJob, ChunkSampler, ContextChunk
from rest_fast.streaming.snapshot import Fields, SessionState
from rest_fast.streaming.step import Branches
from rest_fast.streaming.timeline import Timeline
from rest_fast.streaming.viewing import Viewing
from rest_fast.units import RATE


@dataclass(frozen=True, eq=False)
class Content:
    """What a snapshot holds of a stream, read and checked; see :meth:`Stream.read`."""

    timeline: Timeline
    stale: bool
    idle_wanted: bool
    history: list[Latent]
    decoder: DecoderContent
    rows: dict[int, tuple[torch.Tensor, torch.Tensor, int]]


class Stream(Viewing):
    """One viewer's stream: sound in, chunks as jobs, blocks out; see this module's first lines.

    Args:
    sampler, session: the sampler that generates its chunks, and this stream's own places in its step and cache.
    rate: of the sound, Hz.
    seed: of the noise.
    decoding: in whose memory it is decoded, as other streams may be; None: one of its own, of the two that follow.
    decode: how the VAE sees time; see :meth:`rest_fast.models.vae.TemporalVAE.stream`.
    graphs: decoding becomes a graph of its own; see :mod:`rest_fast.streaming.graphs`.
    """

    decoder: BlockDecoder

    def __init__(
        self,
        model: REST,
        avatar: Avatar,
        sampler: ChunkSampler,
        session: Branches,
        *,
        rate: int = RATE,
        seed: int = 0,
        decoding: Decoding | None = None,
        decode: str | None = None,
        graphs: Graphs | None = None,
    ):
        own = decoding is None or (decoding.model is model and decode is None and graphs is None)
        assert own, "stream: expected a decoding of this model, which has a mode and graphs of its own"
        config, features = model.config, model.features
        super().__init__(config, rate, seed, back=features.back, ahead=features.ahead)
        self.model, self.avatar, self.sampler, self.cache, self.session = model, avatar, sampler, sampler.cache, session
        self.context = config.stream.context_chunks * self.chunk
        self.stale = False  # whether the cache's context is not that of the latest latents
        self._open_rows()
        with torch.inference_mode():
            self._noise(0, noise.LATENT)  # compiles its kernel on a GPU
            silent = Latent(avatar.reference.to(model.device), self._codes(-self.chunk, 0)[0, 0])
            decoding = decoding or Decoding(model, decode, graphs and graphs("decoder"))
            self.decoder = BlockDecoder(decoding, avatar.picture, silent.z, avatar.features)
        # The latest latents. What stands before the first one is the reference, silent: as often as a context needs
        # it, and at least once, for a decoder that begins with it.
        self.leading_references = max(self.context, 1)
        # An interrupt takes back what was delivered and what waits, which can be two chunks; what lies before, up to a
        # piece, is decoded again.
        longest = self.leading_references + self.lead + 3 * self.chunk + 2 * self.decoder.ahead
        self.history: deque[Latent] = deque([silent] * self.leading_references, maxlen=longest)

    @classmethod
    def alone(
        cls, model: REST, avatar: Avatar, sampling: SamplingConfig, graphs: Graphs | None = None, **arguments: Any
    ) -> Stream:
        """A stream with a sampler, a step and a cache of its own; see :meth:`generate`."""
        sampler = ChunkSampler.of(model, sampling, graphs=graphs)
        return cls(model, avatar, sampler, sampler.session(0), graphs=graphs, **arguments)

    def _forget_latents(self, count: int) -> None:
        """Forget the latest latents, and decode anew what was not delivered of the others."""
        for _ in range(count):
            self.history.pop()
        delivered = list(self.history)[: len(self.history) - self.timeline.waiting]
        self.decoder.back_to(self.timeline.delivered, [latent.z for latent in delivered])
        self.stale, self.idle_wanted = True, False
        self.restarts += 1

    # -- one chunk

    @torch.inference_mode()
    def next_chunk(self) -> ChunkJob:
        """The next chunk; after :meth:`request_idle` one of silence, which comes before what is queued."""
        timeline = self.timeline
        assert timeline.waiting < self.chunk + self.decoder.ahead, "stream: expected the latest chunk to be seen first"
        with self.watch("features"):
            plan = timeline.plan(self.idle_wanted)
            codes = self._codes(plan.first, plan.limit)
            start = self._noise(timeline.generated, noise.LATENT)
            return ChunkJob(self.session, codes, start, self._context() if self.stale else (), plan)

    def drop(self) -> None:
        """Give up a job that was run, or may have been."""
        self.stale = True

    def accept(self, job: ChunkJob, latents: torch.Tensor, degraded: bool = False) -> None:
        """Take over the latents fp32 [N, C] that the job gave; ``degraded``: with fewer sampling steps than usual."""
        plan = job.plan
        pairs = zip(latents.unflatten(0, (self.chunk, -1)), job.codes[0], strict=True)
        made = [Latent(z, code, plan.idle, degraded) for z, code in pairs][: plan.keep]
        self.timeline.accept(plan)
        self.history.extend(made)
        self.stale, self.idle_wanted = plan.keep < self.chunk, plan.idle and self._nothing_to_show
        self.watch.chunk(plan.keep)

    @torch.inference_mode()
    def generate(self) -> None:
        """Generate the next chunk with this stream's own sampler."""
        job = self.next_chunk()
        try:
            with self.watch("denoise"):
                latents = self.sampler.run([job])[0]
            self.accept(job, latents)
        except BaseException:
            self.drop()
            raise

    def _codes(self, first: int, limit: int) -> torch.Tensor:
        """Speech codes [1, chunk, A, Wa] of the chunk from latent ``first`` on, silent from sample ``limit`` on."""
        window = speech_window(self.model.features, TEMPORAL * first, TEMPORAL * self.chunk)
        return self.model.codes(self.timeline.sound.window16(window.start, window.end, limit), window)

    def _noise(self, first: int, purpose: int) -> torch.Tensor:
        """fp32 [1, N, C] of a chunk, whose first latent has this index: a function of seed, epoch and index."""
        tokens, channels = self.model.config.tokens, self.model.config.vae.latent_channels
        start = noise.in_epoch(self.timeline.epoch, first)
        made = drawn(self.seed, range(start, start + self.chunk), tokens * channels, purpose, self.model.device)
        return made.view(1, self.chunk * tokens, channels)

    def _open_rows(self) -> None:
        self.cache.open(self.session.cond, self.avatar.sink_k, self.avatar.sink_v)
        if self.session.uncond is not None:
            self.cache.open(self.session.uncond, *self.model.null_sink)

    def _context(self) -> tuple[ContextChunk, ...]:
        """Reset the cache rows, and give the latest latents that are to become their context; positions start anew.

        A stream that is back at its start has no context: its first chunk sees the sink and itself, as any first chunk.
        """
        self._open_rows()
        count = min(-(-self.timeline.generated // self.chunk) * self.chunk, self.context)
        latest = list(self.history)[len(self.history) - count :]
        parts = []
        for i in range(0, count, self.chunk):
            part, start = latest[i : i + self.chunk], self._noise(self.timeline.generated + i, noise.CONTEXT)
            z, codes = torch.cat([latent.z for latent in part]), torch.stack([latent.code for latent in part])
            parts.append(ContextChunk(z[None], codes[None], start))
        return tuple(parts)

    # -- its pictures

    @property
    def undecoded(self) -> bool:
        """Whether :meth:`decode` has something to do."""
        known = self.timeline.generated, self.timeline.at_segment_end
        return self.timeline.waiting > 0 and self.decoder.fed != known

    @torch.inference_mode()
    def decode(self) -> None:
        """Decode what can be shown of the latents that exist; once for every chunk, before the next one is accepted."""
        with self.watch("decode"):
            latents = [latent.z for latent in self.history]
            self.decoder.feed(latents, self.timeline.generated, self.timeline.at_segment_end)
        self.watch.share(self.chunk, more=True)

    @property
    def lookahead_ms(self) -> float:
        """Milliseconds of sound that must follow a chunk before all of it is shown.

        The features, the resampler and a decoder that looks ahead ask for it.
        """
        sound = (self.model.features.ahead + self.timeline.sound.margin) / RATE
        return 1000 * (sound + self.decoder.ahead * self.model.config.latent_seconds)

    # -- as data

    def identity(self) -> dict[str, Any]:
        """What two streams must share for a snapshot of one to fit the other."""
        return {
            "model": self.model.fingerprint,
            "avatar": self.avatar.identity,
            "seed": self.seed,
            "sample_rate": self.timeline.sound.rate,
            "sampling": dataclasses.asdict(self.sampler.sampling),
            "decoder": self.decoder.kind,
        }

    def snapshot(self, **more: Any) -> SessionState:
        """The whole state of this stream, and ``more`` values with it."""
        self.decoder.forget(self.timeline.floor)  # states whose latents may be gone
        tensors: dict[str, torch.Tensor] = {}
        committed = []
        for i, row in enumerate(self.session.rows):
            tensors[f"k.{i}"], tensors[f"v.{i}"], count = self.cache.snapshot(row)
            committed.append(count)
        for i, latent in enumerate(self.history):
            tensors[f"history.{i}.z"], tensors[f"history.{i}.code"] = latent.z.clone(), latent.code.clone()
        tensors |= {f"decoder.{name}": tensor for name, tensor in self.decoder.to_tensors().items()}
        sound = self.timeline.sound
        tensors["sound"] = torch.from_numpy(sound.raw(sound.start, sound.end).copy())
        meta = {
            "identity": self.identity(),
            "committed": committed,
            "idle": [latent.idle for latent in self.history],
            "degraded": [latent.degraded for latent in self.history],
            "_stale_context": self.stale,
            "_idle_wanted": self.idle_wanted,
        }
        return SessionState(tensors, meta | self.timeline.to_meta() | more)

    def read(self, fields: Fields) -> Content:
        """Read what :meth:`put` takes. Raises: :class:`rest_fast.StateError`; the stream stays as it was."""
        timeline = self.timeline.read(fields)
        stale, idle_wanted = fields.flag("_stale_context"), fields.flag("_idle_wanted")
        history = self._read_history(fields, timeline)
        timeline.idle = history[-1].idle
        decoder = self.decoder.read(fields, timeline.floor, timeline.delivered, timeline.generated)
        needed = timeline.generated - max(decoder.states[0][0], 0)
        fields.require(len(history) >= needed, "idle", f"at least {needed}, for the oldest decoder state", len(history))
        return Content(timeline, stale, idle_wanted, history, decoder, self._read_rows(fields, timeline))

    def put(self, content: Content) -> None:
        """Continue from this content. Cannot fail."""
        for row, state in content.rows.items():
            self.cache.restore(row, state)
        self.decoder.put(content.decoder)
        self.history = deque(content.history, maxlen=self.history.maxlen)
        self.timeline, self.stale, self.idle_wanted = content.timeline, content.stale, content.idle_wanted
        self.restarts += 1

    def _read_history(self, fields: Fields, timeline: Timeline) -> list[Latent]:
        """The latest latents, with the leading references as far as they are still in the history."""
        idle, degraded = fields.array("idle", bool), fields.array("degraded", bool)
        config, device = self.model.config, self.model.device
        z, code = (config.tokens, config.vae.latent_channels), (config.speech.tokens, config.speech.width)
        low = self.leading_references + timeline.generated - timeline.floor
        high = min(self.leading_references + timeline.generated, self.history.maxlen or 0)
        fields.require(low <= len(idle) <= high, "idle", f"{low} to {high} of them", len(idle))
        fields.require(len(degraded) == len(idle), "degraded", f"{len(idle)} of them", len(degraded))
        wide = [torch.float32] + [torch.float64] * (self.model.dtype == torch.float64)
        return [
            Latent(
                fields.tensor(f"history.{i}.z", z, *wide).to(device),
                fields.tensor(f"history.{i}.code", code, self.model.dtype).to(device),
                *flags,
            )
            for i, flags in enumerate(zip(idle, degraded))
        ]

    def _read_rows(self, fields: Fields, timeline: Timeline) -> dict[int, tuple[torch.Tensor, torch.Tensor, int]]:
        """Contents of the cache rows. Slots that are written before they are read may hold anything."""
        cache, rows = self.cache, self.session.rows
        # An interrupt has taken latents back, of which the rows may still know.
        latents = timeline.generated + self.lead + 2 * self.chunk + self.decoder.ahead
        most = -(-latents // self.chunk) + self.model.config.stream.context_chunks
        committed = fields.array("committed", int)
        same = len(committed) == len(rows) and len(set(committed)) == 1 and 0 <= committed[0] <= most
        fields.require(same, "committed", f"one number from 0 to {most}, {len(rows)} times", committed)
        held = cache.held(committed[0])
        contents = {}
        for i, row in enumerate(rows):
            pair = []
            for letter, pool in (("k", cache.k), ("v", cache.v)):
                tensor = fields.shaped(f"{letter}.{i}", tuple(pool[:, row].shape), pool.dtype)
                fields.finite(f"{letter}.{i}", tensor[:, :, held])
                pair.append(tensor.to(self.model.device))
            contents[row] = (pair[0], pair[1], committed[0])
        return contents
