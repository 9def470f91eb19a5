"""What a temporal decoder remembers from piece to piece, and its convolutions, which are all that remembers.

Two passes over the same weights. ``forward(x, state)`` is the functional reference and what training uses:
differentiable, histories replaced. ``step`` is for inference, in place: histories of a fixed size, activations in a
:class:`Workspace` where the next convolution reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import nn

from rest_fast import ops
from rest_fast.errors import ArgumentError
from rest_fast.ops import functional, triton_kernels
from rest_fast.ops.derived import derived
from rest_fast.ops.layouts import haloed

NORM_EPS = 1e-8
REFERENCE = "reference"  # among a stream's histories: the first frame, for decoders that look at it
WITHHELD = "withheld"  # and the latents that were decoded provisionally
Modulation = tuple[torch.Tensor, torch.Tensor]  # scale and shift [C] behind a norm


@dataclass(frozen=True)
class Mode:
    """How a decode sees time: ``causal``, ``lookahead`` with ``ahead`` provisional latents, or ``exact``."""

    name: str
    ahead: int = 0

    @property
    def past(self) -> int:
        """Frames of history of a convolution."""
        return 2 if self.name == "causal" else 1

    def __str__(self) -> str:
        return f"lookahead({self.ahead})" if self.name == "lookahead" else self.name


def read_mode(text: str | None, causal: bool, *, whole: bool = False) -> Mode:
    """The mode that is asked of a decoder which is ``causal`` or not; None is the one for live streams.

    ``whole``: all latents are there, so ``exact`` is possible. Raises: ValueError for words that are no mode, and for a
    mode that the checkpoint's decoder was not made for.
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
    """Memory of a decode or encode, of a fixed size: what each convolution saw last, keyed by module path.

    A fresh state is the start of a clip: histories repeat the first frame, upsamplers drop what lies before it. All
    lanes of a state (axis 0 of every tensor) have got the same number of latents.
    """

    past: int = 2
    histories: dict[str, torch.Tensor] = field(default_factory=dict)
    started: bool = False
    counters: list[tuple[int, int]] = field(default_factory=list)  # of each lane's own noise: seed, latents committed
    size: tuple[int, int] | None = None  # rows and columns of what comes in
    provisional: int = 0  # latents at the end of the present piece that come again
    images: dict[str, torch.Tensor] = field(default_factory=dict)  # injected noise [B, H, W] by path: of the seed alone
    places: dict[str, torch.Tensor] = field(default_factory=dict)  # where histories lie that are written in place

    def kept(self, frames: int, rate: int) -> int:
        """Of a piece's frames, at ``rate`` frames a latent, those that are final."""
        return frames - rate * self.provisional

    def reset(self) -> None:
        """The start of a clip again."""
        self.started, self.counters, self.size, self.histories, self.images = False, [], None, {}, {}

    def expect(self, name: str, x: torch.Tensor) -> None:
        """Raise ValueError for another number of lanes, or another size, than came before."""
        now, before = (len(x), *x.shape[3:]), (len(self.counters), *(self.size or ()))
        if self.size is not None and now != before:
            raise ArgumentError(f"{name}: expected lanes, rows and columns {before} as before, got {now}")

    def snapshot(self) -> StreamState:
        """A copy that later pieces leave alone."""
        copies = {path: clone(tensor) for path, tensor in self.histories.items()}
        return StreamState(self.past, copies, self.started, list(self.counters), self.size, images=self.images)

    def restore(self, state: StreamState) -> None:
        """Continue from a copy. What is written in place keeps its place; what a caller brought is never written to."""
        self._check(state)
        found = {}
        for path, tensor in state.histories.items():
            place = self.places.get(path)
            if place is not None and place.shape == tensor.shape:
                found[path] = place.copy_(tensor)
            else:
                found[path] = clone(tensor)
        self.histories, self.started, self.counters = found, state.started, list(state.counters)
        self.size, self.images = state.size, state.images

    def lane(self, lane: int) -> StreamState:
        """A copy of one lane, as a state of its own."""
        row = self._row(lane)
        copies = {path: clone(tensor[row]) for path, tensor in self.histories.items()}
        return StreamState(self.past, copies, self.started, self.counters[row], self.size)

    def put(self, lane: int, state: StreamState) -> None:
        """Continue a lane from a state of one lane: what another viewer's stream begins with.

        Raises: ValueError if this is no such lane, or the other state is of another kind, size or beginning.
        """
        self._check(state)
        row = self._row(lane)
        mine, theirs = (
            (s.started, s.size, {path: tensor.shape[1:] for path, tensor in s.histories.items()}) for s in (self, state)
        )
        if mine != theirs or len(state.counters) != 1:
            raise ArgumentError("decode state: expected one lane that has begun as this state has, got another")
        for path, tensor in state.histories.items():
            self.histories[path][row].copy_(tensor)
        self.counters[row], self.images = state.counters, {}  # images follow from the counters

    def _row(self, lane: int) -> slice:
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
        """Copies, by name."""
        counters = [(seed >> 32, seed & 0xFFFFFFFF, index) for seed, index in self.counters]
        facts = [self.past, self.started, *(self.size or (0, 0)), *(word for row in counters for word in row)]
        return {path: clone(tensor) for path, tensor in self.histories.items()} | {"facts": torch.tensor(facts)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> StreamState:
        histories = dict(tensors)
        past, started, rows, columns, *words = histories.pop("facts").tolist()
        counters = zip(words[::3], words[1::3], words[2::3], strict=True)
        counted = [(high << 32 | low, index) for high, low, index in counters]
        return cls(past, histories, bool(started), counted, (rows, columns) if rows else None)


def clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is no inference tensor: a later call may write into it."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty_like(tensor).copy_(tensor)


@dataclass
class Buffer:
    """Input of a convolution: ``whole`` [B, C, T + 2, H, W] has room for the history beside the piece's ``frames``."""

    whole: torch.Tensor
    frames: torch.Tensor


def new_tensor(shape: tuple[int, ...], like: torch.Tensor, bordered: bool) -> torch.Tensor:
    """Channels last, in a border of zeros or not: an ordinary tensor, so that any later call may write into it."""
    with torch.inference_mode(False):
        if bordered:
            return haloed(shape, dtype=like.dtype, device=like.device)  # type: ignore[arg-type]
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


class Workspace:
    """Scratch of one decode at a time: activations by role, made when first asked for, then reused.

    Memory is that of the longest piece: shorter ones take its beginning, so two tensors that live at once need two
    roles, however their frames differ. On a GPU buffers have a border of zeros
    (:func:`rest_fast.ops.layouts.haloed`), which is what the Triton kernel reads; on a CPU they are channels last, and
    oneDNN pads.
    """

    def __init__(self, border: bool | None = None):
        self.border = border
        self._whole: dict[tuple, torch.Tensor] = {}  # all frames of all lanes in a row, [1, C, slots, H, W]
        self._cut: dict[tuple, torch.Tensor] = {}

    def buffer(self, role: str, shape: tuple[int, ...], past: int, like: torch.Tensor) -> Buffer:
        """For T frames of ``shape`` [B, C, T, H, W]; dtype and device as ``like``."""
        b, c, t, h, w = shape
        whole = self._get((role, self.bordered(like)), (b, c, t + 2, h, w), like)
        return Buffer(whole, whole[:, :, past : past + t])

    def plain(self, role: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return self._get((role, None), tuple(shape), like)

    def _get(self, role: tuple[str, bool | None], shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        b, c, t, h, w = shape
        key = (*role, c, h, w, like.dtype, like.device)
        found = self._cut.get((*key, b, t))
        if found is None:
            whole = self._whole.get(key)
            if whole is None or whole.shape[2] < b * t:
                whole = self._whole[key] = new_tensor((1, c, b * t, h, w), like, bool(role[1]))
                self._cut = {k: v for k, v in self._cut.items() if k[:-2] != key}  # views of what is given up
            with torch.inference_mode(False):
                _, sc, st, sh, sw = whole.stride()
                found = whole.as_strided(shape, (t * st, sc, st, sh, sw))
            self._cut[(*key, b, t)] = found
        return found

    def bordered(self, like: torch.Tensor) -> bool:
        return self.border if self.border is not None else like.is_cuda or triton_kernels.interpreted()

    @property
    def nbytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._whole.values())


@dataclass
class Piece:
    """One call of a decoder in place: whose memory, which scratch, and the dtype of the demo's convolutions."""

    state: StreamState
    work: Workspace
    dtype: torch.dtype | None = None

    @property
    def first(self) -> bool:
        return not self.state.started

    def buffer(self, role: str, shape: tuple[int, ...], like: torch.Tensor) -> Buffer:
        return self.work.buffer(role, shape, self.state.past, like)

    def history(self, path: str, shape: tuple[int, ...], like: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """The history [B, C, past, H, W] of a convolution in its place, laid out as its buffer ``like``, and whether it
        is yet to be filled."""
        state = self.state
        found, place = state.histories.get(path), state.places.get(path)
        if found is None and state.started:
            raise ArgumentError(f"decode state: expected a history of {path}, got a state without")
        if place is None or place.shape != shape or (place.dtype, place.device) != (like.dtype, like.device):
            place = state.places[path] = new_tensor(shape, like, self.work.bordered(like))
        if found is not None and found is not place:  # from another pass, or restored
            if found.shape != place.shape:
                raise ArgumentError(f"decode state: {path}: expected {list(shape)}, got {list(found.shape)}")
            place.copy_(found)
        state.histories[path] = place
        return place, found is None


class CausalConv3d(nn.Module):
    """3x3x3 convolution over the present and two past frames; in a symmetric decode over one past and one later.

    ``rate``: its frames per latent. ``reflect``: rows and columns mirrored at the border, else zeros.
    """

    def __init__(self, channels: int, out_channels: int, rate: int = 1, reflect: bool = False):
        super().__init__()
        self.path, self.rate, self.reflect = "", rate, reflect  # the path is set by name_memories
        init = nn.Conv3d(channels, out_channels, 3)
        self.weight, self.bias = init.weight, init.bias

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        y, history = functional.causal_convolution(
            x,
            self.weight,
            self.bias,
            state.histories.get(self.path),
            past=state.past,
            keep=state.kept(x.shape[2], self.rate),
            reflect=self.reflect,
        )
        # a view would keep the whole input of the convolution alive; a gradient does that anyway
        state.histories[self.path] = history if history.requires_grad else history.clone()
        return y

    def ordered(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight in channels-last order and bias, in a dtype: as :meth:`step` reads them."""

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            weight = self.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last_3d)
            return weight, self.bias.detach().to(dtype)

        return derived(self, "ordered_pair", (self.weight, self.bias), make, dtype)

    def step(
        self,
        source: Buffer,
        piece: Piece,
        *,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        modulation: Modulation | None = None,
        out: torch.Tensor | None = None,
        normed: torch.Tensor | None = None,
        pictures: torch.Tensor | None = None,
        factors: tuple[int, int, int] = (1, 1, 1),
        eps: float = NORM_EPS,
    ) -> None:
        """In place; see :mod:`rest_fast.ops.causal_conv3d`. ``noise`` is the scale [O] of the stream's noise image."""
        state, (b, c, t, h, w) = piece.state, source.frames.shape
        history, missing = piece.history(self.path, (b, c, state.past, h, w), source.whole)
        if weight is None:
            weight, bias = self.ordered(source.whole.dtype)
        scale, shift = modulation or (None, None)
        ops.causal_conv3d(
            source.whole,
            history,
            weight,
            bias,
            None if noise is None else state.images[self.path],
            noise,
            residual,
            scale,
            shift,
            out,
            normed,
            pictures,
            factors=list(factors),
            drop=factors[0] - 1 if piece.first else 0,
            keep=state.kept(t, self.rate),
            first=missing,
            reflect=self.reflect,
            eps=eps,
        )


def name_memories(module: nn.Module) -> None:
    """Tell each part that remembers its path, the key of its history."""
    for path, child in module.named_modules():
        if hasattr(child, "path"):
            child.path = path


# Both faces of an op give the same numbers, but for fp32 roundings: the one that keeps what a gradient needs where one
# is wanted, else the one that writes its result in one pass.


def normed_silu(x: torch.Tensor, modulation: Modulation | None = None, *, eps: float) -> torch.Tensor:
    """silu(x / sqrt(mean_c x^2 + eps) (1 + scale) + shift) of [B, C, T, H, W]."""
    scale, shift = modulation or (None, None)
    if torch.is_grad_enabled() and (x.requires_grad or (scale is not None and scale.requires_grad)):
        return functional.normed_silu(x, scale, shift, eps=eps)
    out = torch.empty_like(x)
    ops.pixel_norm_silu(x, scale, shift, out, eps=eps)
    return out


def unfold_channels(x: torch.Tensor, factors: tuple[int, int, int], drop: int = 0) -> torch.Tensor:
    """[B, C p1 p2 p3, T, H, W] -> [B, C, T p1 - drop, H p2, W p3], with rows and columns in memory as in x."""
    if torch.is_grad_enabled() and x.requires_grad:
        return functional.unfold_channels(x, factors, drop)
    (b, c, t, h, w), (p1, p2, p3) = x.shape, factors
    c, t, h, w = c // (p1 * p2 * p3), t * p1 - drop, h * p2, w * p3
    turned = x.stride(3) < x.stride(4)
    out = x.new_empty(b, c, t, w, h).transpose(3, 4) if turned else x.new_empty(b, c, t, h, w)
    ops.depth_to_space(x, out, factors=list(factors), drop=drop)
    return out


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Video [B, 3, T, H, W] in -1..1 -> pictures, uint8 [B, T, H, W, 3]."""
    b, channels, t, h, w = video.shape
    out = video.new_empty(b, t, h, w, channels, dtype=torch.uint8)
    ops.frames_to_uint8(video, out)
    return out
