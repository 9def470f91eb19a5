"""Decodes the latents of a stream to pictures, 8 frames for each, once and in order; blocks can be taken back.

The latents of a chunk are decoded in one piece, when its first block is asked for. A decoder that looks ahead decodes
the last L latents only provisionally: it decodes them again with the next chunk, or when the segment ends, and only
then are their pictures shown. States are kept at the borders of pieces; a state between them is made again from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from rest_fast.config import TEMPORAL
from rest_fast.models.vae.state import REFERENCE, StreamState
from rest_fast.streaming.block import Pictures
from rest_fast.streaming.decoding import Decoding
from rest_fast.streaming.snapshot import Fields


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
        decoding: in whose memory it decodes; other streams may, too.
        picture, features: of the photo; see :meth:`Decoding.begin`.
        reference: its latent [T, C], which stands before the first frame.
    """

    def __init__(
        self,
        decoding: Decoding,
        picture: np.ndarray,
        reference: torch.Tensor,
        features: Mapping[str, torch.Tensor] | None = None,
    ):
        self.decoding, self.model = decoding, decoding.model
        self.ahead = decoding.mode.ahead
        # Of a mixed decoder's convolutions; None: that of its weights. A snapshot brings its own.
        self.dtype = decoding.dtype
        self._made: deque[Pictures] = deque()  # of final latents that wait to be taken
        self.fed = 0, True  # latents that :meth:`feed` was told of last, and whether a segment ends with them
        self._to_repeat: list[torch.Tensor] = []  # shown latents to decode again, after a return to an earlier state
        # (number of final latents, state of the stream after them); -1: not even the reference has been decoded
        self._states: deque[tuple[int, StreamState]] = deque([(-1, decoding.begin(picture, features))])
        if decoding.primed:
            self._advance([reference], 0, 0)
            self._states.popleft()

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

    @property
    def made(self) -> Sequence[Pictures]:
        """Those of the next latents, in order, as far as they are final."""
        return self._made

    def take(self) -> Pictures:
        """Those of the next latent, which is shown."""
        return self._made.popleft()

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
        self.fed = shown, True

    def _catch_up(self) -> None:
        if self._to_repeat:
            final = self._states[-1][0] + len(self._to_repeat)
            self._advance(self._to_repeat, 0, final)
            self._to_repeat = []

    def _advance(self, latents: Sequence[torch.Tensor], provisional: int, final: int) -> list[Pictures]:
        """Decode latents, the last ``provisional`` of them provisionally: the pictures of the others.

        Afterwards ``final`` latents are final. A call that failed may be repeated.
        """
        made, state = self.decoding.decode(self._states[-1][1], latents, provisional, self.dtype)
        self._states.append((final, state))
        return made

    def states(self) -> list[StreamState]:
        """The states that an interrupt may go back to, oldest first."""
        return [state for _, state in self._states]

    # -- as data

    @property
    def kind(self) -> str:
        """What two decoders must share for a state of one to continue in the other."""
        return f"{self.decoding.mode}, {self.model.dtype}"

    def to_tensors(self) -> dict[str, torch.Tensor]:
        self._catch_up()
        self.decoding.join()
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
        name, least = "decoder.final", 0 if self.decoding.primed else -1
        finals = fields.integers(name)
        rising = all(a < b for a, b in pairwise([least - 1, *finals]))
        ok = rising and len(finals) > 0 and finals[0] <= floor
        fields.require(ok, name, f"counts that rise from {floor} or less", finals)
        waiting = max(finals[-1], 0) - delivered  # latents whose pictures were made but not taken
        ok = waiting >= 0 and finals[-1] <= generated
        fields.require(ok, name, f"the last from {delivered} to {generated}", finals)
        dtype = fields.tensor("decoder.dtype", (1,), self.model.dtype, torch.bfloat16).dtype
        states = [(final, self._read_state(fields, i, final, dtype)) for i, final in enumerate(finals)]
        shape = (TEMPORAL, *self.decoding.shape)
        made = [Pictures(fields.shaped(f"decoder.made.{i}", shape, torch.uint8).cpu().clone()) for i in range(waiting)]
        fed = fields.integers("decoder.fed")
        end, last = fed if len(fed) == 2 else (-1, -1)
        least = end if last else end - self.ahead  # fewer may be final only where too few came
        ok = 0 <= end <= generated and last in (0, 1) and max(least, 0) <= max(finals[-1], 0) <= end
        fields.require(ok, "decoder.fed", f"a count up to {generated} that fits {name} {finals}, and 0 or 1", fed)
        return DecoderContent(deque(states), deque(made), (end, bool(last)), dtype)

    def _read_state(self, fields: Fields, i: int, final: int, dtype: torch.dtype) -> StreamState:
        """State ``i``, after ``final`` latents, of a decoder that convolves in ``dtype``."""
        state, memory = StreamState(self.decoding.mode.past, {}, final >= 0), self.decoding.memory(dtype)
        if state.started:
            state.counters, state.size = [(self.decoding.seed, final + 1)], self.model.config.grid
        else:
            memory = {path: kind for path, kind in memory.items() if path == REFERENCE}
        facts, name = state.to_tensors()["facts"], f"decoder.{i}.facts"
        found = fields.shaped(name, tuple(facts.shape), facts.dtype).cpu()
        fields.require(torch.equal(found, facts), name, str(facts.tolist()), found.tolist())
        for path, (shape, kind) in memory.items():
            state.histories[path] = fields.tensor(f"decoder.{i}.{path}", shape, kind).to(self.model.device)
        return state

    def put(self, content: DecoderContent) -> None:
        """Continue from this content."""
        self._states, self._made, self.fed, dtype = content
        self.dtype = None if dtype == self.model.dtype else dtype
        self._to_repeat = []
