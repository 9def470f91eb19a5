"""What both families of decoders are built of: convolutions that remember the frames before, and their buffers.

There are two passes over the same weights. ``forward(x, state)`` is the functional reference, which training uses: it
is differentiable and replaces histories. ``step`` is for inference and works in place: histories have a fixed size, and
activations lie in a :class:`DecodeWorkspace`, where the next convolution reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast import ops
from rest_fast.errors import ArgumentError
from rest_fast.models.vae.state import StreamState
from rest_fast.ops import functional, triton_kernels
from rest_fast.ops.derived import derived
from rest_fast.ops.memory_layouts import haloed

NORM_EPS = 1e-8
SHORTCUT_EPS = 1e-6  # of the LayerNorm before a shortcut that changes the width
ScaleShift = tuple[torch.Tensor, torch.Tensor]  # scale and shift [C] after a norm


@dataclass
class Buffer:
    """Input of a convolution: ``whole`` [B, C, T + 2, H, W] holds the piece's T ``frames`` and room for the history."""

    whole: torch.Tensor
    frames: torch.Tensor


def new_tensor(shape: tuple[int, ...], like: torch.Tensor, bordered: bool) -> torch.Tensor:
    """A new channels-last tensor, inside a border of zeros if ``bordered``.

    It is no inference tensor, so that any later call may write into it.
    """
    with torch.inference_mode(False):
        if bordered:
            return haloed(shape, dtype=like.dtype, device=like.device)  # type: ignore[arg-type]
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


class DecodeWorkspace:
    """Scratch memory of one decode at a time: activations by role, allocated when first asked for, then reused.

    Each role has the memory of its longest piece, and shorter pieces use its beginning. So two tensors that are needed
    at the same time must have two roles, even if they differ in their number of frames. On a GPU buffers have a border
    of zeros (:func:`~rest_fast.ops.memory_layouts.haloed`), which the Triton kernel reads; on a CPU they are channels
    last, and oneDNN pads.
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

    def buffers(self) -> list[torch.Tensor]:
        return list(self._whole.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._whole.values())


@dataclass
class Piece:
    """What one in-place call of a decoder works with: memory, scratch, and the dtype of mixed convolutions."""

    state: StreamState
    work: DecodeWorkspace
    dtype: torch.dtype | None = None

    @property
    def first(self) -> bool:
        return not self.state.started

    def buffer(self, role: str, shape: tuple[int, ...], like: torch.Tensor) -> Buffer:
        return self.work.buffer(role, shape, self.state.past, like)

    def history(self, path: str, shape: tuple[int, ...], like: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """The history [B, C, past, H, W] of a convolution, in its fixed place and laid out as its buffer ``like``, and
        whether it still has to be filled."""
        state = self.state
        found, place = state.histories.get(path), state.places.get(path)
        if found is None and state.started:
            raise ArgumentError(f"decode state: expected a history of {path}, got a state without")
        if place is None or place.shape != shape or (place.dtype, place.device) != (like.dtype, like.device):
            place = state.places[path] = new_tensor(shape, like, self.work.bordered(like))
        if found is not None and found is not place:  # written by the functional pass, or restored
            if found.shape != place.shape:
                raise ArgumentError(f"decode state: {path}: expected {list(shape)}, got {list(found.shape)}")
            place.copy_(found)
        state.histories[path] = place
        return place, found is None


class CausalConv3d(nn.Module):
    """3x3x3 convolution over the present frame and two past ones, or (symmetric) over one past and one later frame.

    ``rate``: its frames per latent. ``reflect``: rows and columns mirrored at the border, else zeros.
    """

    convolve: Callable[..., torch.Tensor] = staticmethod(F.conv3d)  # of the functional pass

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
            convolve=self.convolve,
        )
        # A view would keep the whole input of the convolution alive, unless a gradient does that anyway.
        state.histories[self.path] = history if history.requires_grad else history.clone()
        return y

    def ordered(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight in channels-last order and the bias, in a dtype, as :meth:`step` reads them."""

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
        modulation: ScaleShift | None = None,
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


class ResBlock(nn.Module):
    """x + conv2(silu(norm(conv1(silu(norm(x)))))), with modulated norms and noise added after the convolutions."""

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        rate: int = 1,
        eps: float = NORM_EPS,
        reflect: bool = False,
        noise: bool = False,
        modulated: bool = False,
    ):
        super().__init__()
        self.eps, wide = eps, out_channels or channels
        self.channels = wide
        self.conv1 = CausalConv3d(channels, wide, rate, reflect)
        self.conv2 = CausalConv3d(wide, wide, rate, reflect)
        self.noise1 = nn.Parameter(torch.zeros(wide)) if noise else None
        self.noise2 = nn.Parameter(torch.zeros(wide)) if noise else None
        self.table = nn.Parameter(torch.randn(4, wide) / wide**0.5) if modulated else None
        self.norm, self.shortcut = None, None
        if wide != channels:
            self.norm = nn.LayerNorm(channels, eps=SHORTCUT_EPS)
            self.shortcut = nn.Conv3d(channels, wide, 1)

    def modulation(self, embedded: torch.Tensor | None) -> tuple[ScaleShift | None, ScaleShift | None]:
        """(scale, shift) of either norm, from the timestep embedding [4 C] of the stage."""
        if self.table is None or embedded is None:
            return None, None
        shift1, scale1, shift2, scale2 = self.table + embedded.view(4, -1)
        return (scale1, shift1), (scale2, shift2)

    def forward(self, x: torch.Tensor, state: StreamState, embedded: torch.Tensor | None = None) -> torch.Tensor:
        first, second = self.modulation(embedded)
        y = _noised(self.conv1(normed_silu(x, first, eps=self.eps), state), self.noise1, self.conv1, state)
        y = _noised(self.conv2(normed_silu(y, second, eps=self.eps), state), self.noise2, self.conv2, state)
        return y + self._skip(x)

    def _skip(self, x: torch.Tensor) -> torch.Tensor:
        """What the residual connection adds: x, or its projection to the new width."""
        if self.norm is None or self.shortcut is None:
            return x
        return self.shortcut(self.norm(x.movedim(1, -1)).movedim(-1, 1))

    def step(
        self,
        source: Buffer,
        piece: Piece,
        *,
        x: torch.Tensor,
        second: ScaleShift | None = None,
        role="middle",
        **results,
    ) -> None:
        """In place: ``x`` is the residual stream, ``source`` is x after the first norm; results are those of the op."""
        b, _, t, h, w = x.shape
        middle = piece.buffer(role, (b, self.channels, t, h, w), source.whole)
        self.conv1.step(source, piece, noise=self.noise1, modulation=second, normed=middle.frames, eps=self.eps)
        self.conv2.step(middle, piece, noise=self.noise2, residual=self._skip(x), eps=self.eps, **results)


def _noised(y: torch.Tensor, scale: torch.Tensor | None, conv: CausalConv3d, state: StreamState) -> torch.Tensor:
    """Add noise: one image per stream and convolution, the same for all frames, since fresh noise would flicker."""
    return y if scale is None else y + scale.view(-1, 1, 1, 1) * state.images[conv.path][:, None, None]


def name_memories(module: nn.Module) -> None:
    """Set the ``path`` of each module that remembers something: the key of its history."""
    for path, child in module.named_modules():
        if hasattr(child, "path"):
            child.path = path


# Each function below picks one of the two faces of its op: the functional one where a gradient is needed, else the
# in-place one, which writes its result in one pass. They agree up to fp32 rounding.


def normed_silu(x: torch.Tensor, modulation: ScaleShift | None = None, *, eps: float) -> torch.Tensor:
    """silu(x / sqrt(mean_c x^2 + eps) (1 + scale) + shift) of [B, C, T, H, W]."""
    scale, shift = modulation or (None, None)
    if torch.is_grad_enabled() and (x.requires_grad or (scale is not None and scale.requires_grad)):
        return functional.normed_silu(x, scale, shift, eps=eps)
    out = torch.empty_like(x)
    ops.pixel_norm_silu(x, scale, shift, out, eps=eps)
    return out


def depth_to_space(x: torch.Tensor, factors: tuple[int, int, int], drop: int = 0) -> torch.Tensor:
    """[B, C p1 p2 p3, T, H, W] -> [B, C, T p1 - drop, H p2, W p3], with rows and columns in memory as in x."""
    if torch.is_grad_enabled() and x.requires_grad:
        return functional.depth_to_space(x, factors, drop)
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
