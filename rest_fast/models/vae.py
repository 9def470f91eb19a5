"""Temporal VAE: 8 video frames and 32x32 pixels to one latent cell.

A clip of 1 + 8n frames gives 1 + n latents: the first frame stands alone (paper section 3.1). Two families behind one
interface: LTX-Video's (:mod:`~rest_fast.models.vae_conv`) and the small one of the demo model
(:mod:`~rest_fast.models.vae_basis`). A decode is ``causal`` where the decoder is: then piece by piece equals the whole.
The released LTX-Video decoders are not; their stream looks ahead (docs/vae.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from rest_fast import checkpoint, noise
from rest_fast.config import TEMPORAL, BasisVAEConfig, ConvVAEConfig, ModelConfig
from rest_fast.models.vae_basis import BasisDecoder, BasisEncoder, SpaceTimeBasis
from rest_fast.models.vae_conv import ConvDecoder, ConvEncoder, ResBlock
from rest_fast.models.vae_stream import (
    REFERENCE,
    WITHHELD,
    Mode,
    Piece,
    StreamState,
    Workspace,
    name_memories,
    read_mode,
    to_uint8,
)


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, n, h, w] -> [B, n h w, C]."""
    return latents.flatten(2).transpose(1, 2)


def to_latents(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[B, n h w, C] -> [B, C, n, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, (-1, *grid))


class TemporalVAE(nn.Module):
    """Encoder, decoder and latent statistics of a checkpoint. Latents are normalised by the statistics.

    From the configuration of a model pictures have its size; from that of a VAE alone any whole number of cells.
    """

    latents_mean: torch.Tensor
    latents_std: torch.Tensor

    def __init__(self, config: ModelConfig | ConvVAEConfig):
        super().__init__()
        vae = config.vae if isinstance(config, ModelConfig) else config
        self.config, self.size = vae, (config.height, config.width) if isinstance(config, ModelConfig) else None
        if isinstance(vae, BasisVAEConfig):
            assert isinstance(config, ModelConfig), "a basis belongs to a picture size"
            basis = SpaceTimeBasis(vae, config.grid)
            self.encoder: nn.Module = BasisEncoder(basis)
            self.decoder: nn.Module = BasisDecoder(vae, basis, config.grid)
        else:
            self.encoder, self.decoder = ConvEncoder(vae), ConvDecoder(vae)
        self.causal = not isinstance(vae, ConvVAEConfig) or vae.causal_decoder
        column = (vae.latent_channels, 1, 1, 1)
        self.register_buffer("latents_mean", torch.zeros(column))
        self.register_buffer("latents_std", torch.ones(column))
        name_memories(self)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> TemporalVAE:
        """The VAE of a folder: one that ``rest-fast convert ltx-vae`` wrote, or that of a whole model's checkpoint.

        Raises: :class:`rest_fast.checkpoint.CheckpointError`.
        """
        config = checkpoint.read_vae_config(folder)
        vae = cls(config)
        checkpoint.read_weights(vae, folder, "vae." if isinstance(config, ModelConfig) else "")
        return vae.to(device, dtype).eval().requires_grad_(False)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Posterior mean, normalised: video [B, 3, 1 + 8n, H, W] in -1..1 -> [B, C, 1 + n, H / 32, W / 32]."""
        return EncodeStream(self).encode(video)

    def decode(
        self, latents: torch.Tensor, *, mode: str | None = "exact", reference: torch.Tensor | None = None, seed: int = 0
    ) -> torch.Tensor:
        """A clip: latents [B, C, 1 + n, h, w] -> video [B, 3, 1 + 8n, H, W], about -1..1.

        ``exact`` is the whole clip at once. Other modes show what :meth:`stream` would give for it: lookahead in calls
        of [reference, 3 new], then of 3 new latents, the plan of a session.
        """
        stream = self._stream(read_mode(mode, self.causal), reference, seed)
        if stream.mode.name != "lookahead":
            return stream.decode(latents)
        self._check(latents, "latents", self.config.latent_channels)
        plan = [4] + [3] * ((latents.shape[2] - 2) // 3)
        pieces = latents.split(_fit(plan, latents.shape[2]), 2)
        return torch.cat([*(stream.decode(piece) for piece in pieces), stream.flush()], 2)

    def stream(
        self,
        *,
        mode: str | None = None,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        workspace: Workspace | None = None,
    ) -> DecodeStream:
        """A decoder with memory, for latents that come piece by piece; see :class:`DecodeStream`.

        Args:
            mode: ``causal`` or, for a decoder that is not, ``lookahead(L)`` with L latents of delay; None for the one
                that fits the checkpoint, with L = 1. Never switched silently.
            reference: the true first frame [B, 3, 1, H, W] in -1..1: the demo's decoder takes what stands still from
                it, LTX-Video's has no use for it. Without it the first latent has to do.
            seed: of the decoder's own noise (LTX-Video 0.9.1 and later).
            workspace: scratch to share among streams that decode in turn.
        """
        if mode == "exact":
            raise ValueError(f"stream: mode: expected one that needs no whole clip, as decode does; got {mode!r}")
        return self._stream(read_mode(mode, self.causal), reference, seed, workspace)

    def _stream(
        self, mode: Mode, reference: torch.Tensor | None, seed: int, workspace: Workspace | None = None
    ) -> DecodeStream:
        if reference is not None:
            self._check_video(reference, "reference")
            if reference.shape[2] != 1:
                raise ValueError(f"stream: reference: expected 1 frame, got {reference.shape[2]}")
        kept = reference if isinstance(self.config, BasisVAEConfig) else None
        return DecodeStream(self, mode, kept, seed, workspace)

    def convolve_in(self, dtype: torch.dtype | None) -> TemporalVAE:
        """In which dtype the demo's decoder convolves while no gradient is wanted; None: that of the weights.

        LTX-Video's decoder computes in the dtype of its weights throughout.
        """
        if isinstance(self.decoder, BasisDecoder):
            self.decoder.post.dtype = dtype
        return self

    def encode_stream(self) -> EncodeStream:
        """An encoder with memory, for video that comes piece by piece."""
        return EncodeStream(self)

    def denormalised(self, latents: torch.Tensor, index: int, seed: int) -> torch.Tensor:
        """What the decoder reads: noise mixed in where the checkpoint says so, then mean and deviation undone.

        In this order, as LTX-Video does it. The noise of a latent is a function of the seed and its place in the
        stream, so that neither pieces nor neighbours change it.
        """
        share = getattr(self.config, "decode_noise_scale", 0.0)
        if share:
            (_, c, n, h, w), purpose = latents.shape, noise.DECODER
            drawn = [noise.normal(seed, index + i, c * h * w, purpose, latents.device) for i in range(n)]
            latents = (1 - share) * latents + share * torch.stack(drawn).view(n, c, h, w).movedim(0, 1).to(latents)
        return latents * self.latents_std + self.latents_mean

    def images(self, latents: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        """Injected noise [B, H, W] of each convolution that has some: one image per stream, by module path."""
        found: dict[str, torch.Tensor] = {}
        blocks = getattr(self.decoder, "blocks", [])
        (b, _, _, h, w), spread = latents.shape, 1
        for block in blocks:
            if not isinstance(block, ResBlock):
                spread *= block.stride[1]
            elif block.noise1 is not None:
                size = (h * spread, w * spread)
                for conv in (block.conv1, block.conv2):
                    drawn = noise.normal(seed, len(found), size[0] * size[1], noise.TEXTURE, latents.device)
                    found[conv.path] = drawn.view(1, *size).repeat(b, 1, 1).to(latents.dtype)
        return found

    def _check_video(self, video: torch.Tensor, name: str) -> None:
        self._check(video, name, 3, self.size)
        cell, (h, w) = self.config.spatial, video.shape[3:]
        if h % cell or w % cell:
            raise ValueError(f"vae: {name}: expected rows and columns divisible by {cell}, got {h} x {w}")

    def _check(self, x: torch.Tensor, name: str, channels: int, size: tuple[int, int] | None = None) -> None:
        if size is None and self.size is not None:
            size = (self.size[0] // self.config.spatial, self.size[1] // self.config.spatial)
        fits = x.ndim == 5 and x.shape[1] == channels and min(x.shape[2:]) > 0
        if not fits or (size is not None and tuple(x.shape[3:]) != size):
            rows, columns = size or ("H", "W")
            raise ValueError(f"vae: {name}: expected [B, {channels}, T, {rows}, {columns}], got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"vae: {name}: expected a floating dtype, got {x.dtype}")


def _fit(plan: list[int], count: int) -> list[int]:
    """Pieces as planned, the last one shorter or left out, ``count`` in all."""
    pieces: list[int] = []
    while count:
        pieces.append(min(plan[len(pieces)] if len(pieces) < len(plan) else count, count))
        count -= pieces[-1]
    return pieces


class EncodeStream:
    """A causal encode in pieces: first 1 + 8n frames, then 8n each; any such pieces give the latents of the whole."""

    def __init__(self, vae: TemporalVAE):
        self.vae, self.state = vae, StreamState()

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """The next frames [B, 3, T, H, W] in -1..1 -> latents [B, C, n, H / 32, W / 32], normalised."""
        vae, first = self.vae, 0 if self.state.started else 1
        vae._check_video(video, "video")
        if video.shape[2] % TEMPORAL != first:
            raise ValueError(f"encode: video: expected {first} + {TEMPORAL}n frames, got {video.shape[2]}")
        mean = vae.encoder(video, self.state)[:, : vae.config.latent_channels]
        self.state.started = True
        return cast(torch.Tensor, (mean - vae.latents_mean) / vae.latents_std)

    def reset(self) -> None:
        self.state.reset()

    def snapshot(self) -> StreamState:
        return self.state.snapshot()

    def restore(self, state: StreamState) -> None:
        self.state.restore(state)


class DecodeStream:
    """One streaming decode, of one viewer or of several in lockstep (axis 0).

    The first latent gives 1 frame, every further one 8. ``causal``: each call gives all frames of its latents.
    ``lookahead(L)``: the last L latents are decoded provisionally and withheld until the next call or :meth:`flush`, so
    frames come L latents late and in the end none is missing; what comes depends a little on how latents were grouped.
    Memory is of a fixed size and written in place: after a call that failed, restore a snapshot.
    """

    def __init__(
        self,
        vae: TemporalVAE,
        mode: Mode,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        workspace: Workspace | None = None,
    ):
        noise.normal(seed, 0, 1)  # refuses a seed out of range now
        self.vae, self.mode, self.reference, self.seed = vae, mode, reference, seed
        self.work = workspace or Workspace()
        self.state = StreamState(mode.past)
        self._lanes: tuple[int, ...] = 1, *(vae.size or (0, 0))  # and rows and columns, of the latest latents
        self.reset()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The next latents [B, C, n, h, w] -> video [B, 3, frames, H, W], about -1..1."""
        return self._decode(latents, self.mode.ahead, pictures=False)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """The same as 8-bit pictures [B, frames, H, W, 3], written by the last convolution where that is faster."""
        return self._decode(latents, self.mode.ahead, pictures=True)

    def flush(self, *, pictures: bool = False) -> torch.Tensor:
        """What is withheld, final now: 8 L frames (fewer if fewer came). Later latents follow as after a cut."""
        return self._decode(None, 0, pictures)

    def prime(self, latents: torch.Tensor) -> None:
        """Latents before the first ones to be shown, as a rule the reference's: causal decodes them now, for its
        memory; with lookahead they wait for the first call, whose first frames are theirs."""
        self._decode(latents, latents.shape[2] if self.mode.name == "lookahead" else 0, pictures=False)

    def reset(self) -> None:
        self.state.reset()
        if self.reference is not None:
            self.state.histories[REFERENCE] = self.reference
        else:
            self.state.histories.pop(REFERENCE, None)

    def snapshot(self) -> StreamState:
        return self.state.snapshot()

    def restore(self, state: StreamState) -> None:
        self.state.restore(state)

    def piece(self, latents: torch.Tensor, provisional: int = 0, *, pictures: bool = False) -> torch.Tensor:
        """Decode latents of which the last ``provisional`` are to come again: the frames of the others.

        For callers that keep what is withheld themselves. Returns video, or pictures as :meth:`pictures` does.
        """
        vae, state, count = self.vae, self.state, latents.shape[2] if latents.ndim == 5 else 0
        vae._check(latents, "latents", vae.config.latent_channels)
        if not 0 <= provisional < count or (provisional and self.mode.name != "lookahead"):
            raise ValueError(
                f"decode: provisional: expected none, or fewer than {count} in a lookahead; got {provisional}"
            )
        state.counters = state.counters or [(self.seed, 0)] * len(latents)
        if len(state.counters) != len(latents):
            raise ValueError(f"decode: latents: expected {len(state.counters)} lanes as before, got {len(latents)}")
        state.provisional = provisional
        made = self._run(self._denormalised(latents), pictures)
        state.provisional, state.started = 0, True
        state.counters = [(seed, index + count - provisional) for seed, index in state.counters]
        axis = 1 if pictures else 2
        return made.narrow(axis, 0, made.shape[axis] - TEMPORAL * provisional)

    def _decode(self, latents: torch.Tensor | None, ahead: int, pictures: bool) -> torch.Tensor:
        vae, state = self.vae, self.state
        if latents is not None:
            vae._check(latents, "latents", vae.config.latent_channels)
            self._lanes = len(latents), *(n * vae.config.spatial for n in latents.shape[3:])
        withheld = state.histories.get(WITHHELD)
        parts = [x for x in (withheld, latents) if x is not None]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(f"decode: latents: expected {len(parts[0])} lanes as before, got {len(parts[1])}")
        z = torch.cat(parts, 2) if len(parts) > 1 else parts[0] if parts else None
        if z is None or z.shape[2] <= ahead:
            if z is not None:
                state.histories[WITHHELD] = z
            return self._nothing(pictures)
        made = self.piece(z, ahead, pictures=pictures)
        state.histories.pop(WITHHELD, None)
        if ahead:
            state.histories[WITHHELD] = z[:, :, z.shape[2] - ahead :].clone()
        return made

    def _denormalised(self, latents: torch.Tensor) -> torch.Tensor:
        """Lanes that began together share their noise; others, and viewers who came later, have their own."""
        counters = self.state.counters
        if len(set(counters)) == 1:
            return self.vae.denormalised(latents, counters[0][1], counters[0][0])
        rows = zip(latents.split(1), counters, strict=True)
        return torch.cat([self.vae.denormalised(row, index, seed) for row, (seed, index) in rows])

    def _images(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.state.images
        if found and next(iter(found.values())).dtype == z.dtype:
            return found
        rows = [self.vae.images(row, seed) for row, (seed, _) in zip(z.split(1), self.state.counters, strict=True)]
        return {path: torch.cat([row[path] for row in rows]) for path in rows[0]}

    def _run(self, z: torch.Tensor, pictures: bool) -> torch.Tensor:
        decoder, state = self.vae.decoder, self.state
        if isinstance(decoder, ConvDecoder):
            state.images = self._images(z)
        learning = torch.is_grad_enabled() and (z.requires_grad or any(p.requires_grad for p in decoder.parameters()))
        if learning:
            video = decoder(z, state)
            return to_uint8(video.detach()) if pictures else cast(torch.Tensor, video)
        with torch.no_grad():
            piece = Piece(state, self.work)
            if isinstance(decoder, BasisDecoder):
                video = decoder.step(z, piece)
                return to_uint8(video) if pictures else video
            b, frames = len(z), TEMPORAL * z.shape[2] - (0 if state.started else TEMPORAL - 1)
            h, w = (n * self.vae.config.spatial for n in z.shape[3:])
            if pictures:
                out = z.new_empty(b, frames, h, w, 3, dtype=torch.uint8)
                decoder.step(z, piece, pictures=out)
            else:
                out = z.new_empty(b, frames, h, w, 3).movedim(-1, 1)
                decoder.step(z, piece, video=out)
            return out

    def _nothing(self, pictures: bool) -> torch.Tensor:
        """No frames: what a call gives whose latents are all withheld."""
        b, h, w = self._lanes
        mean = self.vae.latents_mean
        if pictures:
            return mean.new_empty(b, 0, h, w, 3, dtype=torch.uint8)
        return mean.new_empty(b, 3, 0, h, w)
