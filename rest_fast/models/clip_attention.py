"""Self-attention of a whole clip in three layouts: the functional reference of what the cache does chunk by chunk.

``full``: every token sees every token. ``teacher``: all frames at once, the reference isolated. ``streaming``: chunk i
sees the reference, the chunks of its context and itself, at the positions that it has in the window. Without a sink
(``StreamConfig.sink``) only the first chunk sees the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rest_fast.config import Layout
from rest_fast.errors import ArgumentError
from rest_fast.models.positions import PositionTables
from rest_fast.ops import functional as fn

Attend = Callable[[int, torch.Tensor], torch.Tensor]  # (layer, qkv [B, N, 3 W]) -> [B, N, W]
# (layer, qkv, positions of the latent frames [F]) -> normed and rotated q, k and v [B, N, H, D]
Heads = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]
KeysValues = tuple[torch.Tensor, torch.Tensor]  # of a layer, [B, N, H, D]


@dataclass
class Context:
    """How training treats the context that chunks of the ``streaming`` layout see."""

    gradient: bool = True  # whether a chunk's error reaches the context that it saw
    keys_values: dict[int, KeysValues] | None = None  # by layer: taken as context instead of this pass's own
    record: dict[int, KeysValues] | None = None  # filled by layer with this pass's keys and values


def clip_attention(
    positions: PositionTables, heads: Heads, layout: Layout, frames: int, context: Context | None = None
) -> Attend:
    """The self-attention of a clip of so many latent frames in one of the three layouts."""
    stream, tokens = positions.stream, positions.tokens
    chunk, reach = stream.chunk, stream.context_chunks
    context = context or Context()
    if layout == "streaming" and (frames < 1 + chunk or (frames - 1) % chunk):
        raise ArgumentError(f"dit: layout streaming: expected 1 + {chunk} n latent frames with n >= 1, got {frames}")

    def full(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        return fn.attention(*heads(layer, qkv, torch.arange(frames))).flatten(2)

    def teacher(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = heads(layer, qkv, torch.arange(frames))
        alone = fn.attention(q[:, :tokens], k[:, :tokens], v[:, :tokens])
        return torch.cat([alone, fn.attention(q[:, tokens:], k, v)], 1).flatten(2)

    def streaming(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        chunks = range((frames - 1) // chunk)
        times = torch.cat([torch.zeros(1)] + [positions.base(i) + torch.arange(chunk) for i in chunks])
        q, *kv = heads(layer, qkv, times)
        if context.record is not None:
            context.record[layer] = (kv[0].detach(), kv[1].detach())
        past_kv = context.keys_values[layer] if context.keys_values is not None else kv
        parts = [tokens] + [chunk * tokens] * len(chunks)
        q, k, v, past_k, past_v = (x.split(parts, 1) for x in (q, *kv, *past_kv))
        if not context.gradient:
            past_k, past_v = ([x.detach() for x in xs] for xs in (past_k, past_v))
        out = [fn.attention(q[0], k[0], v[0])]
        for i in chunks:
            past = range(max(0, i - reach), i)
            moved = [
                _move(positions, past_k[j + 1], positions.base(i) - chunk * (i - j) - positions.base(j)) for j in past
            ]
            seen = stream.sink or i == 0  # the reference
            keys = torch.cat([*k[:seen], *moved, k[i + 1]], 1)
            values = torch.cat([*v[:seen], *(past_v[j + 1] for j in past), v[i + 1]], 1)
            out.append(fn.attention(q[i + 1], keys, values))
        return torch.cat(out, 1).flatten(2)

    return {"full": full, "teacher": teacher, "streaming": streaming}[layout]


def _move(positions: PositionTables, k: torch.Tensor, frames: int) -> torch.Tensor:
    return fn.shift_keys(k, positions.shift(frames)) if frames else k
