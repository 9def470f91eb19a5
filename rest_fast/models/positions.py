"""Where latent frames and tokens stand: the rotary tables of a configuration, built once.

The height and the width of the grid never change. In time there are two kinds of positions
(``StreamConfig.positions``). Those of the ``window`` stop growing once it is full, since commit rotates the context
keys back by a chunk. ``absolute`` positions grow for as long as the stream lasts.
"""

from __future__ import annotations

import torch
from torch import nn

from rest_fast.config import ModelConfig
from rest_fast.ops import rope


class PositionTables(nn.Module):
    """Tables of (cos, sin), fp32 [P, n, 2] with n = width // 6 frequencies; no weights, nothing in a checkpoint."""

    freqs: torch.Tensor  # float64 [n]
    y: torch.Tensor  # [h, n, 2]
    x: torch.Tensor  # [w, n, 2]
    window: torch.Tensor  # [frames of the window, n, 2]
    chunk_back: torch.Tensor  # [n, 2]: the rotation that commit applies to context keys

    def __init__(self, config: ModelConfig):
        super().__init__()
        dit, self.stream, self.tokens, self.width = config.dit, config.stream, config.tokens, config.dit.width
        self.step, (self.extent, *extents) = config.latent_seconds, dit.rope_max
        self.register_buffer("freqs", rope.frequencies(dit.width, dit.rope_theta), persistent=False)
        for name, count, extent in zip("yx", config.grid, extents, strict=True):
            table = rope.axis_table(torch.arange(count), float(config.vae.spatial), extent, self.freqs)
            self.register_buffer(name, table, persistent=False)
        self.register_buffer("window", self.time(torch.arange(self.stream.window)), persistent=False)
        self.register_buffer("chunk_back", self.shift(-self.stream.chunk), persistent=False)

    def _apply(self, function, recurse=True):
        """Tables stay float64 and float32 whatever the weights around them become."""
        before = dict(self.named_buffers())
        super()._apply(function, recurse)
        if self.freqs.is_meta or not before["freqs"].is_meta:
            for name, table in before.items():
                setattr(self, name, table.to(self.freqs.device))
        return self

    def time(self, positions: torch.Tensor) -> torch.Tensor:
        """[P, n, 2] for latent-frame positions [P]."""
        return rope.axis_table(positions.to(self.freqs.device), self.step, self.extent, self.freqs)

    def shift(self, frames: int) -> torch.Tensor:
        """[n, 2]: moves a rotated key by this many latent frames."""
        return rope.shift_table(frames, self.step, self.extent, self.freqs)

    def tokens_at(self, times: torch.Tensor) -> torch.Tensor:
        """[F h w, width / 2, 2]: every channel pair of every token of latent frames at positions [F]."""
        return rope.token_table(self.time(times), self.y, self.x, self.width)

    def base(self, chunk: int) -> int:
        """Position of the first frame of a chunk, by its number; those of the window stop growing when it is full."""
        if self.stream.positions == "window":
            chunk = min(chunk, self.stream.context_chunks)
        return 1 + self.stream.chunk * chunk
