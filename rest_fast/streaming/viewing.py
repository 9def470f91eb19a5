"""One viewer's stream without a clock, locks or threads, of whatever family its model is: counts, sound and blocks.

Frames depend on the order of what came and of deliveries, and on nothing else: not on how far generation has run ahead.
How chunks are generated and decoded, and what passes from one to the next, a family's own stream says:
:class:`rest_fast.streaming.stream.Stream` for REST, :class:`rest_fast.streaming.flashhead.FlashHeadStream`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rest_fast.avatar import Avatar
from rest_fast.streaming.block import Block, Made, Pictures
from rest_fast.streaming.metrics import Stopwatch
from rest_fast.streaming.snapshot import Fields, SessionState
from rest_fast.streaming.timeline import Timeline


class Shown(Protocol):
    """What is kept of a latent frame."""

    @property
    def idle(self) -> bool:
        """Made from silence because nothing was due."""

    @property
    def degraded(self) -> bool:
        """Made with fewer sampling steps."""


class Darkroom(Protocol):
    """Where pictures wait to be taken."""

    @property
    def ahead(self) -> int:
        """Latents that are withheld until the next ones are known."""

    @property
    def made(self) -> Sequence[Pictures]:
        """Those of the next latents, in order, as far as they are final."""

    def take(self) -> Pictures:
        """Those of the next latent, which is shown."""

    def forget(self, floor: int) -> None:
        """Nothing will go back to before latent ``floor``."""


class Viewing:
    """Sound in, blocks out. The rest is a family's.

    Args:
        config: of the model.
        rate: of the sound, Hz.
        seed: of the noise.
        back, ahead: see :class:`Timeline`.
    """

    model: Any  # of the family
    avatar: Avatar
    sampler: Any  # of the family; it has a ``sampling``
    decoder: Darkroom
    history: deque[Any]  # the latest latents, each a :class:`Shown`

    def __init__(self, config: Any, rate: int, seed: int, *, back: int, ahead: int):
        self.seed, self.chunk, self.latent_seconds = seed, config.stream.chunk, config.latent_seconds
        self.lead = self.chunk  # latents that can be taken back after delivery
        self.timeline = Timeline(rate, chunk=self.chunk, lead=self.lead, back=back, ahead=ahead)
        self.idle_wanted = False  # whether the next chunk is one of silence
        self._spoken = -1  # the segment of the latest latent of speech that was delivered
        self.restarts = 0  # how often latents were taken back; a job from before is void
        self.watch = Stopwatch()

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
            self.watch.block(self.latent_seconds)
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

    # -- chunks

    def due(self) -> bool:
        """Whether the sound for the next chunk is there."""
        return self.timeline.due()

    def wants_chunk(self, early: bool = False) -> bool:
        """Whether the next chunk is to be generated: all that can be shown was delivered; with ``early``, its first
        block was."""
        if not (self.idle_wanted or self.timeline.due()):
            return False
        return self.timeline.waiting <= self.decoder.ahead + (self.chunk - 1 if early else 0)

    # -- one block

    def has_block(self) -> bool:
        """Whether a block can be made; decodes first, if that is needed."""
        if not self.decoder.made and self.undecoded:
            self.decode()
        return bool(self.decoder.made)

    @property
    def upcoming(self) -> Shown:
        """The latent that :meth:`make_block` shows."""
        waiting = self.timeline.waiting
        assert 0 < waiting <= len(self.history), "stream: expected a latent that waits to be shown"
        latent: Shown = self.history[-waiting]
        return latent

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
            "pts": index * self.latent_seconds,
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

    # -- what a family says

    def _forget_latents(self, count: int) -> None:
        """Forget the latest latents; what comes next goes on from the others."""
        raise NotImplementedError

    def next_chunk(self) -> Any:
        """The job of the next chunk, for the sampler."""
        raise NotImplementedError

    def drop(self) -> None:
        """Give up a job that was run, or may have been."""
        raise NotImplementedError

    def accept(self, job: Any, latents: Any, degraded: bool = False) -> None:
        """Take over the latents that the job gave; ``degraded``: with fewer sampling steps than usual."""
        raise NotImplementedError

    @property
    def undecoded(self) -> bool:
        """Whether :meth:`decode` has something to do."""
        raise NotImplementedError

    def decode(self) -> None:
        """Decode what can be shown of the latents that exist; once for every chunk, before the next one is accepted."""
        raise NotImplementedError

    @property
    def lookahead_ms(self) -> float:
        """Milliseconds of sound that must follow a chunk before all of it is shown."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What two streams must share for a snapshot of one to fit the other."""
        raise NotImplementedError

    def snapshot(self, **more: Any) -> SessionState:
        """The whole state of this stream, and ``more`` values with it."""
        raise NotImplementedError

    def read(self, fields: Fields) -> Any:
        """Read what :meth:`put` takes. Raises: :class:`rest_fast.StateError`; the stream stays as it was."""
        raise NotImplementedError

    def put(self, content: Any) -> None:
        """Continue from this content. Cannot fail."""
        raise NotImplementedError
