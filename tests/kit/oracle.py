"""What a session must show, worked out the plain way: the whole timeline in lists, from which nothing is dropped.

It has the input and output calls of a :class:`rest_fast.Session`, and none of its parts: no queue, ring, history or
state to return to. Features of a fixed window, codes, noise of (seed, index, purpose), a sampler whose cache is
opened at each break, and a decoder that after each interrupt begins again at the photo. The calls of those parts are
the same in number and shape, so what is shown is the same bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch

from rest_fast import media, noise
from rest_fast.models.vae import TemporalVAE, to_latents
from rest_fast.models.vae.state import Mode, read_mode
from rest_fast.streaming.block import Block, Latent
from rest_fast.streaming.sampler import ChunkSampler
from rest_fast.streaming.sound import MARGIN

FRAME = 640  # samples of a frame at the model's 16 kHz


class Oracle:
    """Args as of :meth:`rest_fast.Model.session`. ``plain_vae``: the same decoder, told to mix in no noise of its own;
    that of :func:`decode_noise` is mixed in here."""

    def __init__(self, model, avatar, *, sample_rate=16000, seed=0, steps=None, guidance=None, decode=None,
                 plain_vae: TemporalVAE | None = None):  # fmt: skip
        changes = {"sampling__steps": steps, "sampling__guidance": guidance}
        self.config = model.config.replace(**{k: v for k, v in changes.items() if v is not None})
        self.model, self.avatar, self.rate, self.seed = model, avatar, sample_rate, seed
        self.chunk = self.config.stream.chunk
        self.sound, self.pushed = np.zeros(0, np.float32), False  # the whole timeline, what was taken back cut off
        self.ends: list[tuple[int, int]] = []  # of segments: the latent behind the last, the sample behind the last
        self.latents: list[Latent] = []  # of the whole timeline
        self.sampler: ChunkSampler | None = None  # None: the next chunk does not follow what was sampled last
        self.delivered = self.epoch = self.most = 0  # most: ever delivered
        self.interrupted = 0  # segments before the latest interrupt, the one that it ended included
        silence = torch.zeros(1, 8 * (self.chunk + 1), self.config.speech.positions, self.config.speech.channels)
        with torch.inference_mode():
            self.silent = Latent(avatar.reference, model.speech(silence.to(model.dtype))[0, 0])
        self.film = Film(plain_vae or model.vae, self, read_mode(decode, model.vae.causal))

    # -- the calls of a session

    def push_audio(self, samples: np.ndarray) -> None:
        if not self.pushed:  # what lies before is silence, now of this format
            self.sound = np.zeros((len(self.sound), *samples.shape[1:]), samples.dtype)
        self.sound, self.pushed = np.concatenate([self.sound, samples]), True
        self.replace_idle()

    def replace_idle(self, ended: bool = False) -> None:
        """If speech would be due without the idle latents that nobody has seen, they never were.

        ``ended``: a segment is about to end, and all that is queued is due.
        """
        unseen = 0
        while unseen < len(self.latents) - self.delivered and self.latents[-1 - unseen].idle:
            unseen += 1
        first = len(self.latents) - unseen
        low, high = self.border(first), self.border(len(self.latents))
        latents, sound = self.latents, self.sound
        self.latents, self.sound = latents[:first], np.concatenate([sound[:low], sound[high:]])
        if unseen and (len(self.sound) > low if ended else self.due()):
            self.sampler = None
            self.film.back_to(self.delivered)
        else:
            self.latents, self.sound = latents, sound

    def end_segment(self) -> None:
        """At the next border of latents, if there is a latent that is not generated and in no earlier segment."""
        self.replace_idle(ended=True)
        end, before = len(self.sound), max([len(self.latents), *(latent for latent, _ in self.ends)])
        latent = next(n for n in range(end + 2) if self.border(n) >= end)
        if latent > before:
            self.ends.append((latent, end))
            self.pad(self.border(latent))

    def interrupt(self, shown_pts: float | None = None) -> float:
        shown = self.delivered
        if shown_pts is not None:
            shown = min(max(math.ceil(shown_pts / 0.32 - 1e-6), self.most - self.chunk, 0), self.delivered)
        self.sampler = None
        self.interrupted += sum(end <= shown for end, _ in self.ends) + 1
        self.latents, self.ends, self.delivered = self.latents[:shown], [], shown
        self.sound = self.sound[: self.border(shown)]
        self.film.back_to(shown)
        self.epoch += 1
        return 0.32 * shown

    @torch.inference_mode()
    def blocks(self, *, idle: bool = False) -> Iterator[Block]:
        block = self._next() or (self._next(idle=True) if idle else None)
        while block is not None:
            yield block
            block = self._next()

    # -- time

    def border(self, latent: int) -> int:
        """First sample of a latent."""
        return round(Fraction(8 * latent * self.rate, 25))

    def pad(self, end: int) -> None:
        """Silence up to a sample."""
        shape = max(0, end - len(self.sound)), *self.sound.shape[1:]
        self.sound = np.concatenate([self.sound, np.zeros(shape, self.sound.dtype)])

    def open_end(self) -> int | None:
        """Where the segment that the next latent belongs to ends, if it was ended."""
        return min((latent for latent, _ in self.ends if latent > len(self.latents)), default=None)

    def due(self) -> bool:
        needed = 8 * (len(self.latents) + self.chunk) * FRAME + self.model.features.ahead
        if self.rate != 16000:
            needed = math.ceil(Fraction((needed + MARGIN) * self.rate, 16000))
        return self.open_end() is not None or len(self.sound) >= needed

    # -- blocks

    def _next(self, idle: bool = False) -> Block | None:
        i = self.delivered
        while self.film.known(any(end == len(self.latents) for end, _ in self.ends)) <= i:
            if not self.due() and not idle:
                return None
            self._generate(idle=not self.due())
        latent, (a, b) = self.latents[i], (self.border(i), self.border(i + 1))
        last = next((last for end, last in self.ends if end == i + 1), None)
        true = 0 if latent.idle else b - a if last is None else max(0, last - a)
        self.delivered, self.most = i + 1, max(self.most, i + 1)
        segment = self.interrupted + sum(end <= i for end, _ in self.ends)
        video, sound = self.film.frames[i], self.sound[a:b]
        return Block(video, sound, i * 0.32, self.epoch, segment, latent.idle, last is not None, true)

    def _generate(self, idle: bool) -> None:
        first, end, keep = len(self.latents), self.open_end(), self.chunk
        border = self.border(first)
        if idle:
            codes = self.codes(border)
            self.pad(border)
            self.sound = np.insert(self.sound, [border] * (self.border(first + keep) - border), 0, axis=0)
        else:
            codes = self.codes(len(self.sound) if end is None else self.border(end))
            keep = keep if end is None else min(keep, end - first)
        if self.sampler is None:
            self.sampler = self.rebuilt()
        z = self.sampler.sample([self.sampler.session(0)], self.noise(noise.LATENT), codes)[0].split(self.config.tokens)
        self.latents += [Latent(z[i], codes[0, i], idle) for i in range(keep)]
        if keep < self.chunk:  # the cache holds latents that the stream does not
            self.sampler = None

    def codes(self, limit: int) -> torch.Tensor:
        """Of the next chunk: a window of sound that is silent from sample ``limit`` on, whatever comes there."""
        features, first = self.model.features, len(self.latents)
        a = 8 * (first - 1) * FRAME - features.back
        b = 8 * (first + self.chunk) * FRAME + features.ahead
        second = a // 16000 if self.rate == 16000 else (a - MARGIN) // 16000
        margin = 0 if self.rate == 16000 else MARGIN
        low, high = second * self.rate, math.ceil(Fraction((b + margin) * self.rate, 16000))
        heard = media.check_pcm(self.sound)[:limit] if len(self.sound) else self.sound
        heard = np.pad(heard, (max(0, -low), max(0, high - len(heard))))[max(0, low) :][: high - low]
        heard = heard if self.rate == 16000 else media.resample(heard, self.rate, 16000)
        windows = features(torch.from_numpy(heard[a - 16000 * second :][: b - a].copy())[None]).to(self.model.dtype)
        if first == 0:
            windows = torch.cat([torch.zeros_like(windows[:, :8]), windows[:, 8:]], 1)
        return self.model.speech(windows)

    # -- context

    def noise(self, purpose: int, ahead: int = 0) -> torch.Tensor:
        """[1, N, C] of the next chunk, or of one so many latents later."""
        channels = self.config.vae.latent_channels
        size, first = self.config.tokens * channels, 2**32 * self.epoch + len(self.latents) + ahead
        drawn = [noise.normal(self.seed, first + i, size, purpose) for i in range(self.chunk)]
        return torch.cat(drawn).view(1, -1, channels)

    def rebuilt(self) -> ChunkSampler:
        """Sinks, and the latest latents that were shown, in whole chunks: the reference stands before the first."""
        sampler = ChunkSampler.of(self.model, self.config.sampling)
        sampler.cache.open(0, self.avatar.sink_k, self.avatar.sink_v)
        if sampler.guided:
            sampler.cache.open(1, *self.model.null_sink)
        chunks = math.ceil(len(self.latents) / self.chunk)
        whole = [self.silent] * (chunks * self.chunk - len(self.latents)) + self.latents
        for i in range(max(0, chunks - self.config.stream.context_chunks), chunks):
            part = whole[i * self.chunk : (i + 1) * self.chunk]
            z, codes = torch.cat([x.z for x in part])[None], torch.stack([x.code for x in part])[None]
            ahead = (i - max(0, chunks - self.config.stream.context_chunks)) * self.chunk
            sampler.rebuild([sampler.session(0)], z, self.noise(noise.CONTEXT, ahead), codes)
        return sampler


class Film:
    """Frames of the reference and the latents behind it. A decoder takes what is there at once: a causal one the
    reference before, one that looks ahead what is provisional again. Place 0 is the reference's."""

    def __init__(self, vae: TemporalVAE, oracle: Oracle, mode: Mode):
        self.vae, self.oracle, self.mode = vae, oracle, mode
        self.frames: list[np.ndarray] = []  # uint8 [8, H, W, 3] of each latent that is final
        self.calls: list[
            tuple[torch.Tensor, int, int]
        ] = []  # latents, where they begin (0: the reference), provisional
        self.back_to(0)

    def known(self, ended: bool) -> int:
        """Decode what can be decoded; how many latents can be shown. ``ended``: a segment ends with the last."""
        count = 1 + len(self.oracle.latents)
        if self.mode.name == "causal" and not self.final:
            self.decode(1, 0)
        provisional = 0 if ended else self.mode.ahead
        if count - provisional > max(self.final, 1):
            self.decode(count, provisional)
        return max(self.final - 1, 0)

    def back_to(self, shown: int) -> None:
        """From the beginning, in the calls so far, unless they all stand; behind those, what else was shown."""
        calls = [(z, first, more) for z, first, more in self.calls if first + z.shape[2] - more <= 1 + shown]
        if self.calls and len(calls) == len(self.calls):
            return
        picture = self.oracle.model.pixels(self.oracle.avatar.picture)
        self.stream = self.vae.stream(mode=str(self.mode), reference=picture)
        self.calls, self.frames, self.final = [], self.frames[:shown], 0
        for call in calls:
            self.call(*call)
        if self.final < 1 + shown and shown:
            self.decode(1 + shown, 0)

    def decode(self, end: int, provisional: int) -> None:
        """What is not final, up to ``end``."""
        sequence = [self.oracle.silent.z, *(latent.z for latent in self.oracle.latents)][self.final : end]
        z = to_latents(torch.cat(sequence)[None].to(self.oracle.model.dtype), self.oracle.config.grid)
        self.call(z, self.final, provisional)

    @torch.inference_mode()
    def call(self, z: torch.Tensor, first: int, provisional: int) -> None:
        made = self.stream.piece(self.noised(z, first), provisional, pictures=True)[0].numpy()[0 if first else 1 :]
        self.calls.append((z, first, provisional))
        self.final = first + z.shape[2] - provisional
        self.frames[max(0, first - 1) :] = [part.copy() for part in made.reshape(-1, 8, *made.shape[1:])]

    def noised(self, z: torch.Tensor, first: int) -> torch.Tensor:
        """With the decoder's noise: of the place in the stream alone, whatever the session's seed."""
        share = getattr(self.oracle.model.config.vae, "decode_noise_scale", 0.0)
        if self.vae is self.oracle.model.vae or not share:
            return z
        drawn = [noise.normal(0, first + i, z[:, :, 0].numel(), noise.DECODER) for i in range(z.shape[2])]
        return (1 - share) * z + share * torch.stack([part.view_as(z[:, :, 0]) for part in drawn], 2)
