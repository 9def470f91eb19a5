"""Session: one viewer's stream. Push sound, take blocks of 8 frames with exactly their sound.

Nothing here depends on a clock: the same seed and the same samples, segment ends and idle chunks give the same frames,
bit for bit, however the samples were cut. Time is counted in latents of 8 frames from the start of the stream.

Two locks: ``_inbox_lock`` guards what other threads touch (inbox, epoch, what was delivered) and is held for
microseconds; ``_work_lock`` is held while a block is made, by the model's worker, in which all computation takes place.
So pushing never waits for a chunk.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import torch

from rest_fast import media, noise, session_state
from rest_fast.avatar import Avatar
from rest_fast.block import Block, Latent
from rest_fast.block_decoder import BlockDecoder
from rest_fast.cache import IDContextCache
from rest_fast.config import TEMPORAL, SamplingConfig
from rest_fast.errors import ArgumentError, AvatarError
from rest_fast.errors import SessionClosed as SessionClosed
from rest_fast.metrics import Stopwatch
from rest_fast.models.rest import REST
from rest_fast.models.speech import FRAME
from rest_fast.sampler import Branches, ChunkSampler
from rest_fast.session_state import SessionState
from rest_fast.sound import RATE, SoundTimeline
from rest_fast.worker import hold_over_fork


class Session:
    """Open with :meth:`rest_fast.Model.session`; use as a context manager or call :meth:`close`.

    Args:
        sample_rate: rate of the pushed sound, an integer in 8000..96000 Hz.
        seed: of the noise; 0..2^64 - 1.
        decode: how the VAE sees time, ``causal`` or ``lookahead(L)``; None for what fits the checkpoint.
    """

    def __init__(
        self,
        model: REST,
        avatar: Avatar,
        sampling: SamplingConfig,
        *,
        sample_rate: int = 16000,
        seed: int = 0,
        decode: str | None = None,
    ):
        if not isinstance(avatar, Avatar):
            raise AvatarError(f"session: avatar: expected what model.prepare(photo) gave, got {type(avatar).__name__}")
        avatar.require(model.fingerprint)
        noise.normal(seed, 0, 1)  # refuses a seed out of range now
        self.model, self.avatar, self.sampling, self.seed = model, avatar, sampling, seed
        self._chunk, self._tokens = model.config.stream.chunk, model.config.tokens
        self._context = model.config.stream.context_chunks * self._chunk
        self.lead = self._chunk  # latents that an interrupt can take back after delivery
        self._sampler = ChunkSampler.of(model, sampling)
        self._cache = IDContextCache(model.config, 2, dtype=model.dtype, device=model.device, steps=sampling.steps)
        self._branches = Branches(0, 1 if self._sampler.guided else None)
        self._sound = SoundTimeline(sample_rate)
        self._segments: deque[tuple[int, int]] = deque()  # (latent where it ends, true last sample), not yet passed
        self._noise_index = 0  # of the next latent to be drawn; never goes back
        self._next = self._delivered = 0  # latents of the timeline: generated, handed out
        self._floor = 0  # no interrupt reaches back beyond this latent: what it needs is forgotten
        self._ready: Block | None = None  # made and not yet taken
        self._stale_context = False
        self._pending: deque[Latent] = deque()
        self._open_rows()
        with torch.inference_mode():
            silent = Latent(avatar.reference.to(model.device), self._codes(-self._chunk, 0)[0, 0])
            self._decoder = BlockDecoder(model, avatar.picture, silent.z, decode, self.lead)
        # the latest latents, generated and kept; before the stream there was the reference, silent
        self._before = max(self._context, 1)  # one for a decoder that begins with it
        kept = self._before + self.lead + self._chunk + self._decoder.ahead
        self._history = deque([silent] * self._before, maxlen=kept)
        self._inbox_lock, self._work_lock = threading.Lock(), threading.RLock()
        hold_over_fork(self._inbox_lock)
        self._inbox: deque[Any] = deque()
        self._format: tuple[np.dtype[Any], tuple[int, ...]] | None = None
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._watch = Stopwatch()
        self.epoch, self.closed = 0, False

    # -- input

    def push_audio(self, pcm: np.ndarray | torch.Tensor) -> None:
        """Append sound: int16 or float, [n] or [n, channels], any length; all pushes share one format.

        Raises: :class:`rest_fast.media.MediaError` for anything else or for NaN; :class:`SessionClosed`.
        """
        samples = media.own_pcm(pcm)  # a copy: the caller may reuse his
        form = (samples.dtype, samples.shape[1:])
        with self._inbox_lock:
            self._require_open("push_audio")
            if self._format not in (None, form):
                raise media.MediaError(f"push_audio: expected samples like the first push {self._format}, got {form}")
            self._format = form
            self._inbox.append(samples)
        self._wake()

    def end_segment(self) -> None:
        """What was pushed is complete: it is padded with silence to the next latent border and generated to the end."""
        with self._inbox_lock:
            self._require_open("end_segment")
            self._inbox.append("end")
        self._wake()

    def interrupt(self, shown_pts: float | None = None) -> None:
        """Call on barge-in: discards queued audio and unseen video, and ``block.epoch`` increases.

        Args:
            shown_pts: stream time in seconds up to which video was shown; all delivered blocks when None. At most
                ``lead`` blocks of delivered video can be taken back, once. The new epoch continues from there.
        """
        seconds = self.model.config.latent_seconds
        with self._inbox_lock:
            self._require_open("interrupt")
            shown = self._delivered
            if shown_pts is not None:
                low, high = self._floor * seconds, self._delivered * seconds
                if not (math.isfinite(shown_pts) and low - 1e-6 <= shown_pts <= high + 1e-6):
                    raise ArgumentError(f"interrupt: shown_pts: expected {low:.2f}..{high:.2f} s, got {shown_pts}")
                shown = math.ceil(shown_pts / seconds - 1e-6)
            self._delivered, self._ready = shown, None
            self.epoch += 1
            self._inbox.append(shown)
        self._wake()

    def close(self) -> None:
        """End everything; what was not delivered is dropped."""
        with self._inbox_lock:
            self.closed = True
            self._inbox.clear()
        self._wake()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- output

    @property
    def lookahead_ms(self) -> float:
        """Sound that must follow a chunk before all of it is shown: features, resampler, latents of the decoder."""
        sound = (self.model.features.ahead + self._sound.margin) / RATE
        return 1000 * (sound + self._decoder.ahead * self.model.config.latent_seconds)

    def blocks(self, *, idle: bool = False) -> Iterator[Block]:
        """What the samples so far allow; never waits. With ``idle``, one chunk of silence when that is nothing."""
        block = self._next_block() or (self._next_block(idle=True) if idle else None)
        while block is not None:
            yield block
            block = self._next_block()

    async def ablocks(self) -> AsyncIterator[Block]:
        """Blocks as they become possible, until :meth:`close`; made in a thread. A cancelled wait loses nothing."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(entry)
        try:
            while not self.closed:
                entry[1].clear()
                if await asyncio.wrap_future(self.model.submit(self._prepare)):
                    block = self._take()
                    if block is not None:
                        yield block
                elif not self.closed:
                    await entry[1].wait()
        finally:
            self._waiting.discard(entry)

    def metrics(self) -> dict[str, Any]:
        """Counts, and milliseconds of each stage as p50, p95, p99 over the latest chunks and blocks."""
        return self._watch.report()

    def snapshot(self) -> SessionState:
        """Everything that is this stream's; :meth:`restore` continues bit-equal, in this process or another."""
        return self.model.compute(self._snapshot)

    def _snapshot(self) -> SessionState:
        with self._work_lock:
            while True:
                self._read_inbox()
                with self._inbox_lock:
                    if not self._inbox:  # nothing came meanwhile: counters and timeline belong together
                        self._unmake()
                        return session_state.capture(self)

    def restore(self, state: SessionState) -> None:
        """Continue a snapshot in a session of the same model, avatar, rate, seed and sampling."""
        self.model.compute(self._restore, state)
        self._wake()

    def _restore(self, state: SessionState) -> None:
        with self._work_lock, self._inbox_lock:
            self._require_open("restore")
            session_state.apply(self, state)

    # -- one block

    def _next_block(self, idle: bool = False) -> Block | None:
        while self.model.compute(self._prepare, idle):
            block = self._take()
            if block is not None:
                return block
        return None

    def _take(self) -> Block | None:
        """Hand out what was prepared, unless :meth:`close`, an interrupt or another consumer came first."""
        with self._inbox_lock:
            if self.closed or self._ready is None:
                return None
            block, self._ready = self._ready, None
            self._delivered += 1
            self._floor = max(self._floor, self._delivered - self.lead)
            return block

    @torch.inference_mode()
    def _prepare(self, idle: bool = False) -> bool:
        """Make the next block and keep it in ``_ready``; False when nothing is due."""
        with self._work_lock:
            while not self.closed:
                epoch = self._read_inbox()
                if self._ready is not None:
                    return True
                self._forget()
                if not self._pending or not self._decoder.has_next():
                    if self._pending and self._feed():
                        continue
                    if not self._due() and not idle:
                        return False
                    self._generate(idle=not self._due())
                    continue
                block = self._make_block(self._pending[0], self._next - len(self._pending), epoch)
                with self._inbox_lock:
                    if self.epoch == epoch and not self.closed:  # else an interrupt came meanwhile: drop it
                        self._ready = block
            return False

    def _make_block(self, latent: Latent, index: int, epoch: int) -> Block:
        with self._watch("decode", counts=not self._decoder.looks_ahead):
            video = self._decoder.take(latent.z, index)
        self._watch.block(self.model.config.latent_seconds)
        a, b = (self._sound.sample_of(TEMPORAL * i) for i in (index, index + 1))
        true_end = next((last for end, last in self._segments if end == index + 1), None)
        true = 0 if latent.idle else b - a if true_end is None else max(0, true_end - a)
        pts = index * self.model.config.latent_seconds
        return Block(video, self._sound.raw(a, b), pts, epoch, latent.idle, true_end is not None, true)

    def _unmake(self) -> None:
        """Back to the state before the block in ``_ready``, which then is made again."""
        ready, self._ready = self._ready, None
        if ready is not None:
            self._decoder.put_back(ready.video)

    def _read_inbox(self) -> int:
        """Take over what other threads sent, in order; the epoch that this state belongs to."""
        while True:
            with self._inbox_lock:
                if not self._inbox:
                    return self.epoch
                event = self._inbox.popleft()
            if isinstance(event, np.ndarray):
                self._sound.append(event)
            elif event == "end":
                self._end_segment()
            else:
                self._roll_back(event)

    def _end_segment(self) -> None:
        end = self._sound.end
        recorded = self._segments[-1][0] if self._segments else 0
        latent = start = max(self._next, recorded)
        while self._sound.sample_of(TEMPORAL * latent) < end:
            latent += 1
        ends_here = start > recorded and bool(self._pending) and not self._pending[-1].idle  # on the chunk's border
        if latent > start or ends_here:
            self._segments.append((latent, end))
            self._sound.pad_to(self._sound.sample_of(TEMPORAL * latent))

    def _roll_back(self, shown: int) -> None:
        """Forget latents from ``shown`` on: timeline, queued speech, decoder; the context is rebuilt when needed."""
        self._pending.clear()
        self._segments.clear()
        self._sound.truncate(self._sound.sample_of(TEMPORAL * shown))
        for _ in range(self._next - shown):
            self._history.pop()
        self._decoder.back_to(shown, [latent.z for latent in self._history])
        self._stale_context = self._stale_context or shown != self._next
        self._next = shown

    def _forget(self) -> None:
        """Drop latents that were taken, and sound and segments that nothing can ask for again."""
        while self._pending and self._next - len(self._pending) < self._delivered:
            self._pending.popleft()
        while self._segments and self._segments[0][0] <= self._floor:
            self._segments.popleft()
        self._sound.drop_before(self._sound.oldest(TEMPORAL * (self._floor - 1), self.model.features.back))

    # -- one chunk

    def _segment(self) -> int | None:
        """Latent where the segment that ``_next`` lies in ends; None while it is open."""
        return next((end for end, _ in self._segments if end > self._next), None)

    def _due(self) -> bool:
        if self._segment() is not None:
            return True
        chunk_end = TEMPORAL * (self._next + self._chunk) * FRAME
        return self._sound.end >= self._sound.needed(chunk_end + self.model.features.ahead)

    def _generate(self, idle: bool = False) -> None:
        """The next chunk. Past a segment's end it hears silence, and latents past that end are dropped."""
        first, end = self._next, self._segment()
        border = self._sound.sample_of(TEMPORAL * first)
        keep, limit = self._chunk, self._sound.end
        if idle:
            limit = border
        elif end is not None:
            keep, limit = min(keep, end - first), self._sound.sample_of(TEMPORAL * end)
        with self._watch("features"):
            codes = self._codes(first, limit)
        with self._watch("denoise"):
            if self._stale_context:
                self._rebuild_context()
            start = torch.stack([self._noise(self._noise_index + i, noise.LATENT) for i in range(self._chunk)])
            z = self._sampler.sample(self._cache, [self._branches], start.flatten(0, 1)[None], codes)[0]
        if idle:  # what is queued comes after
            self._sound.insert_silence(border, self._sound.sample_of(TEMPORAL * (first + self._chunk)) - border)
        self._noise_index += self._chunk
        made = [Latent(*pair, idle) for pair in zip(z.unflatten(0, (self._chunk, -1)), codes[0], strict=True)][:keep]
        self._pending.extend(made)
        self._history.extend(made)
        self._next += keep
        self._stale_context = keep < self._chunk
        self._watch.chunk(keep)

    def _feed(self) -> bool:
        """Show the latest latents to a decoder that looks ahead; False if it has seen them."""
        known = self._next, any(end == self._next for end, _ in self._segments)
        if new := self._decoder.fed != known:
            with self._watch("decode"):
                self._decoder.feed([latent.z for latent in self._history], *known)
            self._watch.share(self._chunk, more=True)
        return new

    def _codes(self, first: int, limit: int) -> torch.Tensor:
        """Speech codes [1, chunk, A, Wa] of a chunk: its frames and the 8 before, zeros before the stream."""
        features, frame = self.model.features, TEMPORAL * (first - 1)
        count = TEMPORAL * (self._chunk + 1)
        a, b = frame * FRAME - features.back, (frame + count) * FRAME + features.ahead
        samples = torch.from_numpy(self._sound.window16(a, b, limit))[None].to(self.model.device)
        windows = features(samples).to(self.model.device, self.model.dtype)
        before = max(0, min(count, -frame))
        windows = torch.cat([torch.zeros_like(windows[:, :before]), windows[:, before:]], 1)
        codes: torch.Tensor = self.model.speech(windows)
        return codes

    def _noise(self, index: int, purpose: int) -> torch.Tensor:
        channels = self.model.config.vae.latent_channels
        return noise.normal(self.seed, index, self._tokens * channels, purpose).view(self._tokens, channels)

    def _open_rows(self) -> None:
        self._cache.open(0, self.avatar.sink_k, self.avatar.sink_v)
        if self._branches.uncond is not None:
            self._cache.open(1, *self.model.null_sink)

    def _rebuild_context(self) -> None:
        """Context from the latest kept latents, one evaluation a chunk; positions start anew.

        A stream that is back at its start has none: its first chunk sees the sink and itself, as any first chunk.
        """
        self._open_rows()
        count = min(-(-self._next // self._chunk) * self._chunk, self._context)
        latest = list(self._history)[len(self._history) - count :]
        for i in range(0, count, self._chunk):
            part = latest[i : i + self._chunk]
            z, codes = torch.cat([p.z for p in part])[None], torch.stack([p.code for p in part])[None]
            start = [self._noise(self._noise_index + i + j, noise.CONTEXT) for j in range(self._chunk)]
            self._sampler.rebuild(self._cache, [self._branches], z, torch.cat(start)[None], codes)
        self._stale_context = False

    def _require_open(self, call: str) -> None:
        if self.closed:
            raise SessionClosed(f"{call}: expected an open session, got a closed one")

    def _wake(self) -> None:
        for entry in list(self._waiting):
            try:
                entry[0].call_soon_threadsafe(entry[1].set)
            except RuntimeError:  # that consumer's loop is closed
                self._waiting.discard(entry)
