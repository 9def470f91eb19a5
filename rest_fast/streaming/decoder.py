"""Decodes the latents of a stream to pictures, 8 frames for each, once and in order; blocks can be taken back.

The latents of a chunk are decoded in one piece, when its first block is asked for. A decoder that looks ahead decodes
the last L latents only provisionally: it decodes them again with the next chunk, or when the segment ends, and only
then are their pictures shown. States are kept at the borders of pieces; a state between them is made again from there.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from rest_fast.config import TEMPORAL
from rest_fast.models.rest import REST
from rest_fast.models.vae import to_latents
from rest_fast.models.vae.state import REFERENCE, StreamState
from rest_fast.streaming.graphs import Capture
from rest_fast.streaming.snapshot import Fields


class Pictures(NamedTuple):
    """Of one latent, uint8 [8, H, W, 3] on the host; from an accelerator they are there when ``arrived`` is."""

    frames: torch.Tensor
    arrived: torch.cuda.Event | None = None

    @classmethod
    def of(cls, decoded: torch.Tensor) -> list[Pictures]:
        """The pictures [8 n, H, W, 3] of n latents, copied; from a GPU without waiting."""
        parts = [decoded[i : i + TEMPORAL] for i in range(0, len(decoded), TEMPORAL)]
        if decoded.device.type != "cuda":
            return [cls(part.clone()) for part in parts]
        hosts = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in parts]
        for host, part in zip(hosts, parts, strict=True):
            host.copy_(part, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return [cls(host, arrived) for host in hosts]

    def numpy(self) -> np.ndarray:
        frames: np.ndarray
        if self.arrived is None:
            frames = self.frames.numpy()
        else:
            self.arrived.synchronize()
            frames = self.frames.numpy().copy()  # pinned memory is scarce, and a viewer may keep the array
        return frames


class DecoderContent(NamedTuple):
    """What a snapshot holds of a decoder, read and checked; see :meth:`BlockDecoder.read`."""

    states: deque[tuple[int, StreamState]]
    made: deque[Pictures]
    fed: tuple[int, bool]
    dtype: torch.dtype


class BlockDecoder:
    """Decodes a stream and keeps states, so that it can go back to any block that an interrupt may take back.

    Latents are *final* once their pictures will not change any more; those decoded to look ahead are *provisional*.

    Args:
        picture: the photo as the model crops it, uint8 [H, W, 3].
        reference: its latent [T, C], which stands before the first frame.
        mode: of :meth:`rest_fast.models.vae.TemporalVAE.stream`.
        capture: the decoding of a whole chunk, but for the one that begins a stream, becomes a graph.
    """

    def __init__(
        self,
        model: REST,
        picture: np.ndarray,
        reference: torch.Tensor,
        mode: str | None,
        capture: Capture | None = None,
    ):
        self._shape = picture.shape
        self.model, self._stream = model, model.vae.stream(mode=mode, reference=model.pixels(picture))
        self.ahead = self._stream.mode.ahead
        self._primed = self._stream.mode.name == "causal"  # with the reference, before the first latent comes
        self._made: deque[Pictures] = deque()  # of final latents that wait to be taken
        self.fed = 0, True  # latents that :meth:`feed` was told of last, and whether a segment ends with them
        self._to_repeat: list[torch.Tensor] = []  # shown latents to decode again, after a return to an earlier state
        # (number of final latents, state of the stream after them); -1: not even the reference has been decoded
        self._states: deque[tuple[int, StreamState]] = deque([(-1, self._stream.snapshot())])
        self._at_latest = True  # whether the stream itself is in the latest of these states
        # On a GPU decoding has a stream of its own: a chunk that is queued behind it can be denoised meanwhile.
        self._side = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        chunk = model.config.stream.chunk
        with torch.no_grad(), self._beside():
            if self._primed:  # the reference stands before the first frame
                self._advance([reference], 0, 0)
                self._states.popleft()
            else:  # a trial run allocates what the first piece, which the reference leads, will need at most
                first = self._latents([reference] * (1 + chunk + self.ahead))
                self._stream.piece(first, self.ahead, pictures=True)
            if capture is not None:
                self._stream.capture(capture, self._latents([reference] * (chunk + self.ahead)), self.ahead)
            if self._side is not None:
                self._warm(reference)
        # shapes and dtypes of the memory of a stream that has begun: a snapshot has to have the same
        self._memory = {path: (tuple(x.shape), x.dtype) for path, x in self._stream.state.histories.items()}
        own = model.vae.decoder.mixed and model.dtype == torch.float32
        self._convolutions = {conv.path for conv in model.vae.decoder.convolutions()} if own else set()
        if not self._primed:
            with self._beside():
                self._stream.reset()

    def _warm(self, reference: torch.Tensor) -> None:
        """Decode pieces of every size that a segment's end can bring, so that their kernels are loaded before the first
        request."""
        before = self._stream.snapshot()
        for count in range(1, self.model.config.stream.chunk + self.ahead + 1):
            for provisional in {0, min(self.ahead, count - 1)}:
                self._stream.piece(self._latents([reference] * count), provisional, pictures=True)
        self._stream.restore(before)

    def has_next(self) -> bool:
        """Whether the next generated latent can be shown."""
        return bool(self._made)

    def feed(self, latents: Sequence[torch.Tensor], end: int, last: bool) -> None:
        """Decode what is not final, given that ``end`` latents exist; ``last``: a segment ends with them.

        ``latents`` [T, C] are the latest of them. Call it once for each (``end``, ``last``), which is then ``fed``. A
        call that failed may be repeated.
        """
        self._catch_up()
        final = self._states[-1][0]
        provisional = 0 if last else self.ahead
        if end - provisional > max(final, 0):
            assert len(latents) >= end - final, "decoder: expected every latent that is not final"
            self._made += self._advance(latents[len(latents) - (end - final) :], provisional, end - provisional)
        self.fed = end, last

    def take(self) -> np.ndarray:
        """Pictures uint8 [8, H, W, 3] of the next latent."""
        frames = self._made[0].numpy()
        self._made.popleft()
        return frames

    def put_back(self, frames: np.ndarray) -> None:
        """Undo the last :meth:`take`, which gave these frames."""
        self._made.appendleft(Pictures(torch.from_numpy(frames)))

    def forget(self, floor: int) -> None:
        """Drop states that only a return to before latent ``floor`` could ask for."""
        while len(self._states) > 1 and self._states[1][0] <= floor:
            self._states.popleft()

    def back_to(self, shown: int, latents: Sequence[torch.Tensor]) -> None:
        """Forget latents from ``shown`` on; ``latents`` ends with the one before. Cannot fail: it decodes nothing."""
        self._made.clear()
        while self._states[-1][0] > shown:
            self._states.pop()
        final = self._states[-1][0]
        assert len(latents) >= shown - final, "decoder: expected every latent since the state it goes back to"
        # What was shown since the border of pieces before is decoded again, with the next latents.
        self._to_repeat = list(latents[len(latents) - (shown - final) :]) if shown > max(final, 0) else []
        self.fed, self._at_latest = (shown, True), False

    def _catch_up(self) -> None:
        if self._to_repeat:
            final = self._states[-1][0] + len(self._to_repeat)
            self._advance(self._to_repeat, 0, final)
            self._to_repeat = []

    def _advance(self, latents: Sequence[torch.Tensor], provisional: int, final: int) -> list[Pictures]:
        """Decode latents, the last ``provisional`` of them provisionally: the pictures of the others.

        Afterwards ``final`` latents are final. A call that failed may be repeated.
        """
        with self._beside():
            if not self._at_latest:
                self._stream.restore(self._states[-1][1])
            self._at_latest = False
            begins = self._states[-1][0] < 0  # with the reference, whose one frame is not shown
            frames = self._stream.piece(self._latents(latents), provisional, pictures=True)[0]
            made = Pictures.of(frames[len(frames) % TEMPORAL :] if begins else frames)
            self._states.append((final, self._stream.snapshot()))
        self._at_latest = True
        return made

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Inside, work is queued on the decoder's own stream, behind what was queued before."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self._side.device))
        with torch.cuda.stream(self._side):
            yield

    def _latents(self, latents: Sequence[torch.Tensor]) -> torch.Tensor:
        if self._side is not None:
            for latent in latents:  # their memory must not be given to the next chunk before they are read here
                latent.record_stream(self._side)
        return to_latents(torch.cat(list(latents))[None].to(self.model.dtype), self.model.config.grid)

    def states(self) -> list[StreamState]:
        """The states that an interrupt may go back to, oldest first."""
        return [state for _, state in self._states]

    # -- as data

    @property
    def kind(self) -> str:
        """What two decoders must share for a state of one to continue in the other."""
        return f"{self._stream.mode}, {self.model.dtype}"

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of a mixed decoder's convolutions; None: that of its weights. A snapshot brings its own."""
        return self._stream.dtype

    def to_tensors(self) -> dict[str, torch.Tensor]:
        self._catch_up()
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)
        tensors = {"final": torch.tensor([final for final, _ in self._states]), "fed": torch.tensor(self.fed)}
        tensors["dtype"] = torch.zeros(1, dtype=self.dtype or self.model.dtype)  # that of the convolutions
        for i, (_, state) in enumerate(self._states):
            tensors |= {f"{i}.{path}": tensor for path, tensor in state.to_tensors().items()}
        for i, frames in enumerate(self._made):
            tensors[f"made.{i}"] = torch.from_numpy(frames.numpy().copy())
        return tensors

    def read(self, fields: Fields, floor: int, delivered: int, generated: int) -> DecoderContent:
        """Read what :meth:`to_tensors` wrote, under the prefix ``decoder.``, of a stream with these counts of latents.

        Raises: :class:`StateError`.
        """
        name, least = "decoder.final", 0 if self._primed else -1
        finals = fields.integers(name)
        rising = all(a < b for a, b in pairwise([least - 1, *finals]))
        ok = rising and len(finals) > 0 and finals[0] <= floor
        fields.require(ok, name, f"counts that rise from {floor} or less", finals)
        waiting = max(finals[-1], 0) - delivered  # latents whose pictures were made but not taken
        ok = waiting >= 0 and finals[-1] <= generated
        fields.require(ok, name, f"the last from {delivered} to {generated}", finals)
        dtype = fields.tensor("decoder.dtype", (1,), self.model.dtype, torch.bfloat16).dtype
        states = [(final, self._read_state(fields, i, final, dtype)) for i, final in enumerate(finals)]
        shape = (TEMPORAL, *self._shape)
        made = [Pictures(fields.shaped(f"decoder.made.{i}", shape, torch.uint8).cpu().clone()) for i in range(waiting)]
        fed = fields.integers("decoder.fed")
        end, last = fed if len(fed) == 2 else (-1, -1)
        least = end if last else end - self.ahead  # fewer may be final only where too few came
        ok = 0 <= end <= generated and last in (0, 1) and max(least, 0) <= max(finals[-1], 0) <= end
        fields.require(ok, "decoder.fed", f"a count up to {generated} that fits {name} {finals}, and 0 or 1", fed)
        return DecoderContent(deque(states), deque(made), (end, bool(last)), dtype)

    def _read_state(self, fields: Fields, i: int, final: int, dtype: torch.dtype) -> StreamState:
        """State ``i``, after ``final`` latents, of a decoder that convolves in ``dtype``."""
        state, memory = StreamState(self._stream.mode.past, {}, final >= 0), self._memory
        if state.started:
            state.counters, state.size = [(self._stream.seed, final + 1)], self.model.config.grid
        else:
            memory = {path: kind for path, kind in memory.items() if path == REFERENCE}
        facts, name = state.to_tensors()["facts"], f"decoder.{i}.facts"
        found = fields.shaped(name, tuple(facts.shape), facts.dtype).cpu()
        fields.require(torch.equal(found, facts), name, str(facts.tolist()), found.tolist())
        for path, (shape, kind) in memory.items():
            kind = dtype if path in self._convolutions else kind
            state.histories[path] = fields.tensor(f"decoder.{i}.{path}", shape, kind).to(self.model.device)
        return state

    def put(self, content: DecoderContent) -> None:
        """Continue from this content."""
        self._states, self._made, self.fed, dtype = content
        self._stream.dtype = None if dtype == self.model.dtype else dtype
        self._at_latest, self._to_repeat = False, []
