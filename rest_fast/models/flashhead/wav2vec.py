"""wav2vec 2.0 base as SoulX-FlashHead uses it: its convolutional features are brought to 25 Hz before the transformer.

Sound is a window of fixed length that ends with the chunk. Its mean and variance, and those of the first convolution's
group norm, are taken over the whole window, so features of one moment depend on all of it. Everything is computed in
float32, as in the published code. (Baevski et al., "wav2vec 2.0", arXiv 2006.11477.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.config.flashhead import Wav2VecConfig
from rest_fast.errors import ArgumentError
from rest_fast.units import FPS, RATE

SILENT = 1e-7  # added to the variance of a window


class Wav2VecLayer(nn.Module):
    """A layer of the transformer; norms come behind the residuals."""

    def __init__(self, config: Wav2VecConfig):
        super().__init__()
        w, self.heads = config.width, config.heads
        self.qkv, self.out = nn.Linear(w, 3 * w), nn.Linear(w, w)
        self.attn_norm, self.norm = nn.LayerNorm(w, config.norm_eps), nn.LayerNorm(w, config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(w, config.mlp_width), nn.GELU(), nn.Linear(config.mlp_width, w))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = self.attn_norm(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return self.norm(x + self.mlp(x))


class Wav2Vec(nn.Module):
    def __init__(self, config: Wav2VecConfig):
        super().__init__()
        self.config, w, channels = config, config.width, (1, *config.conv_channels)
        self.samples, self.frames = config.seconds * RATE, config.seconds * FPS
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, kernel, stride, bias=False)
            for a, b, kernel, stride in zip(
                channels, config.conv_channels, config.conv_kernels, config.conv_strides, strict=False
            )
        )
        self.conv_norm = nn.GroupNorm(channels[1], channels[1])  # of the first convolution, each channel by itself
        self.project_norm, self.project = nn.LayerNorm(channels[-1], config.norm_eps), nn.Linear(channels[-1], w)
        kernel, groups = config.position_kernel, config.position_groups
        self.position = nn.Conv1d(w, w, kernel, padding=kernel // 2, groups=groups)
        self.norm = nn.LayerNorm(w, config.norm_eps)
        self.layers = nn.ModuleList(Wav2VecLayer(config) for _ in range(config.layers))

    def _apply(self, function, recurse=True):
        """Weights stay float32 where those of the other networks become shorter."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = function(tensor)
            return tensor.to(found.device) if found.is_floating_point() and found.itemsize < 4 else found

        return super()._apply(moved, recurse)

    @torch.no_grad()
    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """fp32 [B, seconds x 16000] at 16 kHz -> the hidden states behind each layer [B, seconds x 25, layers, width].

        The states before the first layer are left out.
        """
        if sound.ndim != 2 or sound.shape[1] != self.samples:
            raise ArgumentError(f"wav2vec: sound: expected [B, {self.samples}], got {list(sound.shape)}")
        x = sound.to(self.project.weight.dtype)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + SILENT).sqrt()
        x = self._convolved(x[:, None])
        x = F.interpolate(x, self.frames, mode="linear", align_corners=True).transpose(1, 2)
        x = self.project(self.project_norm(x))
        where = self.position(x.transpose(1, 2))[..., : self.frames]  # an even kernel gives one position too many
        x = self.norm(x + F.gelu(where).transpose(1, 2))
        states = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return torch.stack(states, 2)

    def _convolved(self, x: torch.Tensor) -> torch.Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = F.gelu(self.conv_norm(x) if i == 0 else x)
        return x
