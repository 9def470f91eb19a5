"""Which frames a decode depends on, and what it remembers from piece to piece."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

from rest_fast.errors import ArgumentError

# Two entries of a stream's histories that belong to no convolution:
REFERENCE = "reference"  # the first frame, for decoders that read it
WITHHELD = "withheld"  # the latents that were decoded provisionally


@dataclass(frozen=True)
class Mode:
    """Which latents the frames of a latent depend on.

    ``causal``: on none that follow. ``lookahead``: on the next ``ahead``, which are decoded provisionally. ``exact``:
    on the whole clip.
    """

    name: str
    ahead: int = 0

    @property
    def past(self) -> int:
        """Number of past frames that a convolution remembers."""
        return 2 if self.name == "causal" else 1

    def __str__(self) -> str:
        return f"lookahead({self.ahead})" if self.name == "lookahead" else self.name


def read_mode(text: str | None, causal: bool, *, whole: bool = False) -> Mode:
    """The mode that ``text`` names, for a decoder that is ``causal`` or not; None means the mode for live streams.

    ``whole``: all latents are there, so ``exact`` is possible.

    Raises: ValueError for a text that names no mode, and for a mode that this decoder was not made for.
    """
    fits = "causal" if causal else "lookahead(L) with L from 0 to 999"
    expected = f"mode: expected {fits}{' or exact' if whole else ''}"
    if text is None:
        return Mode("causal") if causal else Mode("lookahead", 1)
    found = re.fullmatch(r"causal|exact|lookahead(\(([0-9]{1,3})\))?", text) if isinstance(text, str) else None
    if found is None:
        raise ArgumentError(f"{expected}, got {text!r}")
    name = text.partition("(")[0]
    if name == "exact":
        if not whole:
            raise ArgumentError(f"{expected}, got 'exact', which is decode()'s, for a clip that is there as a whole")
        return Mode("causal" if causal else "exact")
    if (name == "causal") != causal:
        kind = "is causal: it looks at no later latent" if causal else "is not causal (rest-fast train causal-decoder)"
        raise ArgumentError(f"{expected}, since the decoder of this checkpoint {kind}; got {text!r}")
    return Mode(name, int(found[2] or 1) if name == "lookahead" else 0)


@dataclass
class StreamState:
    """Memory of a decode or encode, of a fixed size: the last frames that each convolution saw, by module path.

    A fresh state is the start of a clip: histories repeat the first frame, and upsamplers drop the frames before it.
    All lanes of a state (axis 0 of every tensor) have seen the same number of latents.
    """

    past: int = 2
    histories: dict[str, torch.Tensor] = field(default_factory=dict)
    started: bool = False
    counters: list[tuple[int, int]] = field(default_factory=list)  # of each lane: its seed, its number of final latents
    size: tuple[int, int] | None = None  # rows and columns of the input
    provisional: int = 0  # latents at the end of the current piece that will come again
    images: dict[str, torch.Tensor] = field(default_factory=dict)  # injected noise [B, H, W] by path; from seeds alone
    places: dict[str, torch.Tensor] = field(default_factory=dict)  # memory of the histories that are written in place

    def kept(self, frames: int, rate: int) -> int:
        """How many of a piece's frames are final, at ``rate`` frames a latent."""
        return frames - rate * self.provisional

    def reset(self) -> None:
        """Return to the start of a clip."""
        self.started, self.counters, self.size, self.histories, self.images = False, [], None, {}, {}

    def expect(self, name: str, x: torch.Tensor) -> None:
        """Raise ValueError for another number of lanes, or another size, than came before."""
        now, before = (len(x), *x.shape[3:]), (len(self.counters), *(self.size or ()))
        if self.size is not None and now != before:
            raise ArgumentError(f"{name}: expected lanes, rows and columns {before} as before, got {now}")

    def snapshot(self) -> StreamState:
        """A copy that later pieces do not change."""
        copies = {path: clone(tensor) for path, tensor in self.histories.items()}
        return StreamState(self.past, copies, self.started, list(self.counters), self.size, images=self.images)

    def restore(self, state: StreamState) -> None:
        """Continue from a copy of ``state``, which is never written to. Histories stay in the places that they have."""
        self._check(state)
        found = {}
        for path, tensor in state.histories.items():
            place = self.places.get(path)
            if place is not None and (place.shape, place.dtype) == (tensor.shape, tensor.dtype):
                found[path] = place.copy_(tensor)
            else:
                found[path] = clone(tensor)
        self.histories, self.started, self.counters = found, state.started, list(state.counters)
        self.size, self.images = state.size, state.images

    def bring_home(self) -> None:
        """Move every history into its place, where it has one."""
        for path, place in self.places.items():
            found = self.histories.get(path)
            if found is not None and found is not place:
                self.histories[path] = place.copy_(found)

    def lane(self, lane: int) -> StreamState:
        """A copy of one lane, as a state of its own."""
        only = self._only(lane)
        copies = {path: clone(tensor[only]) for path, tensor in self.histories.items()}
        return StreamState(self.past, copies, self.started, self.counters[only], self.size)

    def put(self, lane: int, state: StreamState) -> None:
        """Replace one lane by a state of a single lane, so that another viewer's stream can begin in it.

        Raises: ValueError if there is no such lane, or the two states differ in kind, in size or in having begun.
        """
        self._check(state)
        only = self._only(lane)
        mine, theirs = (
            (s.started, s.size, {path: tensor.shape[1:] for path, tensor in s.histories.items()}) for s in (self, state)
        )
        if mine != theirs or len(state.counters) != 1:
            raise ArgumentError("decode state: expected one lane that has begun as this state has, got another")
        for path, tensor in state.histories.items():
            self.histories[path][only].copy_(tensor)
        self.counters[only], self.images = state.counters, {}  # images follow from the counters

    def _only(self, lane: int) -> slice:
        """The slice of axis 0 that is this lane."""
        if not 0 <= lane < len(self.counters):
            raise ArgumentError(f"decode state: lane: expected 0..{len(self.counters) - 1}, got {lane}")
        return slice(lane, lane + 1)

    def _check(self, state: StreamState) -> None:
        if state.past != self.past:
            raise ArgumentError(f"decode state: expected one with {self.past} frames of history, got {state.past}")

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.histories.values())

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors by path, and the other values as the tensor ``facts``."""
        counters = [(seed >> 32, seed & 0xFFFFFFFF, index) for seed, index in self.counters]
        facts = [self.past, self.started, *(self.size or (0, 0)), *(word for counter in counters for word in counter)]
        return {path: clone(tensor) for path, tensor in self.histories.items()} | {"facts": torch.tensor(facts)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> StreamState:
        histories = dict(tensors)
        past, started, rows, columns, *words = histories.pop("facts").tolist()
        counters = zip(words[::3], words[1::3], words[2::3], strict=True)
        counted = [(high << 32 | low, index) for high, low, index in counters]
        return cls(past, histories, bool(started), counted, (rows, columns) if rows else None)


def clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is no inference tensor, so that a later call may write into it."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty_like(tensor).copy_(tensor)
