"""One viewer's stream without a clock, locks or threads: what comes in, the next chunk as a job, pictures out.

Whoever runs it (a session, an engine, an evaluation) calls it from the model's worker, in order:

    stream.push(samples); stream.end_segment(); stream.request_idle()   # what came
    job = stream.next_chunk()                                           # while stream.wants_chunk()
    stream.accept(job, sampler.run([job])[0]); stream.decode()          # or stream.drop()
    block = stream.make_block(); stream.deliver()                       # while stream.has_block()

Frames depend on the order of what came and of deliveries, and on nothing else: not on how far generation has run ahead.
A job that was not run leaves no trace in them. A job that was run has advanced the cache, so it has to be accepted or
dropped; after a drop the context is rebuilt. A job does not survive what takes latents back (:attr:`Stream.restarts`).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rest_fast import noise
from rest_fast.avatar import Avatar
from rest_fast.config import TEMPORAL, SamplingConfig
from rest_fast.models.rest import REST
from rest_fast.models.speech import speech_window
from rest_fast.ops.latent_noise import drawn
from rest_fast.streaming.block import Block, Latent, Made
from rest_fast.streaming.decoder import BlockDecoder, DecoderContent
from rest_fast.streaming.decoding import Decoding
from rest_fast.streaming.graphs import Graphs
from rest_fast.streaming.metrics import Stopwatch
from rest_fast.streaming.sampler import ChunkJob, ChunkSampler, ContextChunk
from rest_fast.streaming.snapshot import Fields, SessionState
from rest_fast.streaming.step import Branches
from rest_fast.streaming.timeline import Timeline
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


class Stream:
    """One viewer's stream: sound in, chunks as jobs, blocks out; see this module's first lines.

    Args:
    sampler, session: the sampler that generates its chunks, and this stream's own places in its step and cache.
    rate: of the sound, Hz.
    seed: of the noise.
    decoding: in whose memory it is decoded, as other streams may be; None: one of its own, of the two that follow.
    decode: how the VAE sees time; see :meth:`rest_fast.models.vae.TemporalVAE.stream`.
    graphs: decoding becomes a graph of its own; see :mod:`rest_fast.streaming.graphs`.
    """

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
        config = model.config
        self.model, self.avatar, self.sampler, self.cache, self.session = model, avatar, sampler, sampler.cache, session
        self.seed, self.chunk = seed, config.stream.chunk
        self.lead = self.chunk  # latents that can be taken back after delivery
        self.context = config.stream.context_chunks * self.chunk
        self.timeline = Timeline(
            rate, chunk=self.chunk, lead=self.lead, back=model.features.back, ahead=model.features.ahead
        )
        self.stale = False  # whether the cache's context is not that of the latest latents
        self.idle_wanted = False  # whether the next chunk is one of silence
        self._spoken = -1  # the segment of the latest latent of speech that was delivered
        self.restarts = 0  # how often latents were taken back; a job from before is void
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
        self.history = deque([silent] * self.leading_references, maxlen=longest)
        self.watch = Stopwatch()

    @classmethod
    def alone(
        cls, model: REST, avatar: Avatar, sampling: SamplingConfig, graphs: Graphs | None = None, **arguments: Any
    ) -> Stream:
        """A stream with a sampler, a step and a cache of its own; see :meth:`generate`."""
        sampler = ChunkSampler.of(model, sampling, graphs=graphs)
        return cls(model, avatar, sampler, sampler.session(0), graphs=graphs, **arguments)

    # -- what comes in

    def push(self, samples: np.ndarray) -> None:
        """Sound [n] or [n, channels]; all pushes share dtype and channels. It is kept, not copied."""
        self.timeline.sound.append(samples)
        if self.timeline.due(without=self._unseen_idle):
            self._replace_idle()

    def end_segment(self) -> None:
        if self.timeline.queued():  # which is due once its segment has ended
            self._replace_idle()
        self.timeline.end_segment()

    def request_idle(self) -> None:
        """Silence is to come next, until a block of it can be shown; unless something is due or can be shown."""
        self.idle_wanted |= not self.timeline.due() and self._nothing_to_show

    def deliver(self) -> None:
        """The viewer has got the block of :attr:`upcoming`."""
        if self.decoder.made:  # latents may also be shown elsewhere
            self.decoder.take()
            self.watch.block(self.model.config.latent_seconds)
        if not self.upcoming.idle:
            self._spoken = self.timeline.segment(self.timeline.delivered)
        self.timeline.deliver()

    @property
    def _nothing_to_show(self) -> bool:
        """Whether all latents that exist were delivered, but for those that the decoder withholds."""
        return self.timeline.waiting <= (0 if self.timeline.at_segment_end else self.decoder.ahead)

    @property
    def _unseen_idle(self) -> int:
        """Idle latents behind all others that were not delivered."""
        latest = list(self.history)[len(self.history) - self.timeline.waiting :]
        return next((i for i, latent in enumerate(reversed(latest)) if not latent.idle), len(latest))

    @property
    def queued(self) -> int:
        """Samples that were pushed and not delivered, and what fills segments up; not the silence of idle latents."""
        timeline = self.timeline
        places = range(timeline.delivered, timeline.generated)
        silent = [i for i in places if self.history[i - timeline.generated].idle]
        idle = sum(timeline.border(i + 1) - timeline.border(i) for i in silent)
        return max(0, timeline.sound.end - timeline.border(timeline.delivered) - idle)

    def _replace_idle(self) -> None:
        """Speech takes the place of idle latents that nobody has seen, and of those that were asked for.

        The context is rebuilt even where none of them was generated: that must not be seen.
        """
        count = self._unseen_idle
        if not count and not self.idle_wanted:
            return
        self.timeline.take_back(count)
        self._forget_latents(count)

    def back_to(self, shown: int) -> None:
        """Forget the latents from ``shown`` on and all queued speech; the context is rebuilt with the next chunk.

        It is rebuilt even where nothing was taken back: how far generation had run ahead must not be seen.
        """
        taken_back = self.timeline.generated - shown
        self.timeline.back_to(shown)
        self._forget_latents(taken_back)

    def _forget_latents(self, count: int) -> None:
        """Forget the latest latents, and decode anew what was not delivered of the others."""
        for _ in range(count):
            self.history.pop()
        delivered = list(self.history)[: len(self.history) - self.timeline.waiting]
        self.decoder.back_to(self.timeline.delivered, [latent.z for latent in delivered])
        self.stale, self.idle_wanted = True, False
        self.restarts += 1

    # -- one chunk

    def due(self) -> bool:
        """Whether the sound for the next chunk is there."""
        return self.timeline.due()

    def wants_chunk(self, early: bool = False) -> bool:
        """Whether the next chunk is to be generated: all that can be shown was delivered; with ``early``, its first
        block was."""
        if not (self.idle_wanted or self.timeline.due()):
            return False
        return self.timeline.waiting <= self.decoder.ahead + (self.chunk - 1 if early else 0)

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

    # -- one block

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

    def has_block(self) -> bool:
        """Whether a block can be made; decodes first, if that is needed."""
        if not self.decoder.made and self.undecoded:
            self.decode()
        return bool(self.decoder.made)

    @property
    def upcoming(self) -> Latent:
        """The latent that :meth:`make_block` shows."""
        waiting = self.timeline.waiting
        assert 0 < waiting <= len(self.history), "stream: expected a latent that waits to be shown"
        return self.history[-waiting]

    def make_block(self) -> Block:
        """The block of the first latent that was not delivered; the same until :meth:`deliver`."""
        return self._made(0).block()

    def made(self) -> list[Made]:
        """All blocks that are decoded and were not delivered."""
        return [self._made(i) for i in range(len(self.decoder.made))]

    def _made(self, i: int) -> Made:
        """Block ``i`` of those that wait."""
        timeline, index = self.timeline, self.timeline.delivered + i
        latent = self.history[i - timeline.waiting]
        a, b, true_end = timeline.border(index), timeline.border(index + 1), timeline.true_end(index)
        about = {
            "audio": timeline.sound.raw(a, b),
            "pts": index * self.model.config.latent_seconds,
            "epoch": timeline.epoch,
            "segment": timeline.segment(index),
            "segment_end": true_end is not None,
            "true_samples": 0 if latent.idle else b - a if true_end is None else max(0, true_end - a),
            "degraded": latent.degraded,
        }
        starved = latent.idle and timeline.queued() > 0 and timeline.segment(index) == self._spoken
        return Made(self.decoder.made[i], latent.idle, starved, about)

    def forget(self) -> None:
        """Drop what nothing can ask for again."""
        self.timeline.forget()
        self.decoder.forget(self.timeline.floor)

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
