"""Self-attention of a whole clip in the three layouts: the functional reference of what a cache does chunk by chunk.

``full``: every token sees every token. ``teacher``: all frames at once, the reference isolated. ``streaming``: chunk i
sees the reference, the chunks of its context and itself, at the positions that it has in the window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from rest_fast.config import Layout
from rest_fast.ops import functional as fn

if TYPE_CHECKING:
    from rest_fast.models.dit import StreamingDiT

Attend = Callable[[int, torch.Tensor], torch.Tensor]  # (layer, qkv [B, N, 3 W]) -> [B, N, W]


def layout_attention(dit: StreamingDiT, layout: Layout, frames: int) -> Attend:
    """The self-attention of a whole clip in one of the three layouts."""
    tokens, chunk, context = dit.tokens, dit.stream.chunk, dit.stream.context_chunks
    if layout == "streaming" and (frames < 1 + chunk or (frames - 1) % chunk):
        raise ValueError(f"dit: layout streaming: expected 1 + {chunk} n latent frames with n >= 1, got {frames}")

    def full(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        return fn.attention(*dit.qkv_heads(layer, qkv, torch.arange(frames))).flatten(2)

    def teacher(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = dit.qkv_heads(layer, qkv, torch.arange(frames))
        alone = fn.attention(q[:, :tokens], k[:, :tokens], v[:, :tokens])
        return torch.cat([alone, fn.attention(q[:, tokens:], k, v)], 1).flatten(2)

    def streaming(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        chunks = range((frames - 1) // chunk)
        times = torch.cat([torch.zeros(1)] + [dit.base(i) + torch.arange(chunk) for i in chunks])
        q, k, v = (x.split([tokens] + [chunk * tokens] * len(chunks), 1) for x in dit.qkv_heads(layer, qkv, times))
        out = [fn.attention(q[0], k[0], v[0])]
        for i in chunks:
            past = range(max(0, i - context), i)
            moved = [_move(dit, k[j + 1], dit.base(i) - chunk * (i - j) - dit.base(j)) for j in past]
            keys = torch.cat([k[0], *moved, k[i + 1]], 1)
            values = torch.cat([v[0], *(v[j + 1] for j in past), v[i + 1]], 1)
            out.append(fn.attention(q[i + 1], keys, values))
        return torch.cat(out, 1).flatten(2)

    return {"full": full, "teacher": teacher, "streaming": streaming}[layout]


def _move(dit: StreamingDiT, k: torch.Tensor, frames: int) -> torch.Tensor:
    return fn.shift_keys(k, dit.time_shift(frames)) if frames else k
