"""Streams of the temporal VAE: encoding and decoding in pieces, with memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch

from rest_fast import noise
from rest_fast.config import TEMPORAL
from rest_fast.errors import ArgumentError
from rest_fast.models.vae.codec import Codec
from rest_fast.models.vae.layers import DecodeWorkspace, Piece, to_uint8
from rest_fast.models.vae.state import REFERENCE, WITHHELD, Mode, StreamState, clone
from rest_fast.ops.derived import all_of


class EncodeStream:
    """A causal encode in pieces of first 1 + 8n, then 8n frames; any such pieces give the latents of the whole clip."""

    def __init__(self, vae: Codec):
        self.vae, self.state = vae, StreamState()

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """The next frames [B, 3, T, H, W] in -1..1 -> latents [B, C, n, h, w], normalised."""
        vae = self.vae
        mean = self.moments(video)[:, : vae.config.latent_channels]
        return cast(torch.Tensor, (mean - vae.latents_mean) / vae.latents_std)

    def moments(self, video: torch.Tensor) -> torch.Tensor:
        """The same as the encoder gives it: the mean, and behind it what else the family has."""
        vae, first = self.vae, 0 if self.state.started else 1
        vae.check_video(video, "video")
        if video.shape[2] % TEMPORAL != first:
            expected = f"1 + {TEMPORAL}n" if first else f"{TEMPORAL}n"
            raise ArgumentError(f"encode: video: expected {expected} frames, got {video.shape[2]}")
        self.state.expect("encode: video", video)
        found: torch.Tensor = vae.encoder(video, self.state)
        self.state.started, self.state.size = True, (video.shape[3], video.shape[4])
        self.state.counters = [(0, 0)] * len(video)
        return found

    def reset(self) -> None:
        self.state.reset()

    def snapshot(self) -> StreamState:
        return self.state.snapshot()

    def restore(self, state: StreamState) -> None:
        self.state.restore(state)


class DecodeStream:
    """One streaming decode, of one viewer or of several in lockstep (axis 0).

    The first latent gives 1 frame, every further one 8. ``causal``: each call gives all frames of its latents.
    ``lookahead(L)``: the last L latents are decoded provisionally, and their frames are withheld until the next call or
    :meth:`flush`. So frames come L latents late, but none is missing in the end; they depend a little on how latents
    were grouped into calls. ``dtype`` is that of a mixed decoder's convolutions (``TemporalVAE.convolve_in``); None
    means that of its weights.

    The memory has a fixed size and is written in place: after a call that failed, restore a snapshot. With trainable
    weights and outside ``no_grad`` a gradient reaches back through all pieces.
    """

    def __init__(
        self,
        vae: Codec,
        mode: Mode,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        workspace: DecodeWorkspace | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
    ):
        noise.words(seed, 0)  # refuses a seed out of range now
        self.vae, self.mode, self.seed = vae, mode, seed
        given = {} if reference is None else {REFERENCE: reference, **(features or {})}
        self.given = {name: clone(tensor) for name, tensor in given.items()}  # the caller may reuse the tensors
        self.work = workspace or DecodeWorkspace()
        self.dtype: torch.dtype | None = vae.decoder.dtype
        self.state = StreamState(mode.past)
        self._kept: list[object] = []
        self._replays: dict[tuple[int, int, torch.dtype], Callable[[torch.Tensor], torch.Tensor]] = {}
        self.reset()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The next latents [B, C, n, h, w] -> video [B, 3, frames, H, W], about -1..1."""
        return self._decode(self._checked(latents), self.mode.ahead, pictures=False)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """The same as 8-bit pictures [B, frames, H, W, 3], written by the last convolution where that is faster."""
        return self._decode(self._checked(latents), self.mode.ahead, pictures=True)

    def flush(self, *, pictures: bool = False) -> torch.Tensor:
        """The withheld frames, now final: 8 L, or fewer if fewer latents came. Later latents follow as after a cut."""
        return self._decode(None, 0, pictures)

    def prime(self, latents: torch.Tensor) -> None:
        """Give, once and at the start, what stands before the first latent to be shown: usually the reference's latent.

        A causal decoder decodes it now, for its memory. With lookahead it is decoded with the first call, which then
        gives its frames first.
        """
        state = self.state
        if state.started or WITHHELD in state.histories:
            raise ArgumentError("prime: expected a stream at its start, got one that has begun (reset() goes back)")
        if self.mode.name == "lookahead":
            self._withhold(self._checked(latents))
        else:
            self.decode(latents)

    def reset(self) -> None:
        self.state.reset()
        self.state.histories |= {name: tensor.clone() for name, tensor in self.given.items()}

    def snapshot(self) -> StreamState:
        return self.state.snapshot()

    def restore(self, state: StreamState) -> None:
        """Continue from a copy. Raises: ValueError for a state of another mode, or without this decoder's histories."""
        self.check(state)
        self.state.restore(state)

    def check(self, state: StreamState) -> None:
        """Raise ValueError for a state that this stream cannot continue from."""
        want = {module.path for module in self.vae.decoder.modules() if hasattr(module, "path")}
        lacking = sorted(want - set(state.histories)) if state.started else []
        if lacking:
            raise ArgumentError(f"decode state: expected one of this decoder, got one without {lacking[:3]}")

    def piece(self, latents: torch.Tensor, provisional: int = 0, *, pictures: bool = False) -> torch.Tensor:
        """Decode latents, of which the last ``provisional`` will come again, and give the frames of the others.

        For callers that keep the withheld latents themselves. Returns: video, or pictures as :meth:`pictures` does.
        """
        state, count = self.state, self._checked(latents).shape[2]
        if not 0 <= provisional < count or (provisional and self.mode.name != "lookahead"):
            raise ArgumentError(
                f"decode: provisional: expected none, or fewer than {count} in a lookahead; got {provisional}"
            )
        counters = state.counters or [(self.seed, 0)] * len(latents)
        for name in [name for name in self.given if name in state.histories and not state.started]:
            found = state.histories[name]
            if len(found) not in (1, len(latents)):
                raise ArgumentError(f"decode: latents: expected {len(found)} lanes, as of {name}, got {len(latents)}")
            if len(found) != len(latents):
                state.histories[name] = clone(found.expand(len(latents), *found.shape[1:]))
        state.provisional = provisional
        z = self._denormalised(latents, counters)
        replay = self._replays.get((count, provisional, self._dtype)) if pictures and state.started else None
        made = self._run(z, counters, pictures) if replay is None else replay(z)
        state.provisional, state.started, state.size = 0, True, (latents.shape[3], latents.shape[4])
        state.counters = [(seed, index + count - provisional) for seed, index in counters]
        axis = 1 if pictures else 2
        return made.narrow(axis, 0, made.shape[axis] - TEMPORAL * provisional)

    def capture(
        self, graph: Callable[[Callable[[], None]], Callable[[], None]], latents: torch.Tensor, provisional: int = 0
    ) -> None:
        """From now on, pictures of such a piece are a replay of a graph, but for a piece that begins a stream.

        Args:
            graph: see :data:`rest_fast.streaming.graphs.Capture`.
            latents: [B, C, n, h, w] of any contents.
        The stream stays as it is. The pictures are the same memory in every replay.
        """
        state, before = self.state, self.snapshot()
        counters = state.counters or [(self.seed, 0)] * len(latents)
        with torch.inference_mode(False), torch.no_grad():
            if not state.started:  # not part of the graph, which is that of a stream that has begun
                self.piece(latents, pictures=True)
            z, state.provisional = latents.clone(), provisional
            pictures = torch.empty_like(self._run(z, counters, True))
            for path, tensor in state.histories.items():
                state.places.setdefault(path, tensor)  # where the graph finds it

            def work() -> None:
                pictures.copy_(self._run(z, counters, True))
                state.bring_home()

            state.bring_home()
            replay, images, places = graph(work), state.images, dict(state.places)
        # What the graph reads by address stays, whatever takes its place in the module, the workspace or the state.
        self._kept += [*all_of(self.vae.decoder), *self.work.buffers()]
        state.provisional = 0
        if before.started:
            self.restore(before)
        else:
            self.reset()

        def run(latents: torch.Tensor) -> torch.Tensor:
            state.images = images  # they follow from the seeds
            state.places.update(places)
            state.bring_home()
            z.copy_(latents)
            replay()
            return pictures

        self._replays[z.shape[2], provisional, self._dtype] = run

    @property
    def _dtype(self) -> torch.dtype:
        """Of the convolutions."""
        return self.dtype or self.vae.latents_mean.dtype

    def _decode(self, latents: torch.Tensor | None, ahead: int, pictures: bool) -> torch.Tensor:
        state = self.state
        parts = [x for x in (state.histories.get(WITHHELD), latents) if x is not None]
        z = torch.cat(parts, 2) if len(parts) > 1 else parts[0] if parts else None
        if z is None or z.shape[2] <= ahead:
            if z is not None:
                self._withhold(z)
            return self._nothing(pictures)
        made = self.piece(z, ahead, pictures=pictures)
        state.histories.pop(WITHHELD, None)
        if ahead:
            self._withhold(z[:, :, z.shape[2] - ahead :])
        return made

    def _checked(self, latents: torch.Tensor) -> torch.Tensor:
        self.vae.check_latents(latents)
        self.state.expect("decode: latents", latents)
        return latents

    def _withhold(self, z: torch.Tensor) -> None:
        state = self.state
        state.histories[WITHHELD] = clone(z)
        state.size, state.counters = (z.shape[3], z.shape[4]), state.counters or [(self.seed, 0)] * len(z)

    def _denormalised(self, latents: torch.Tensor, counters: list[tuple[int, int]]) -> torch.Tensor:
        """Undo the normalisation; lanes of one seed that began together share their noise, others have their own."""
        if len(set(counters)) == 1:
            return self.vae.denormalised(latents, counters[0][1], counters[0][0])
        lanes = zip(latents.split(1), counters, strict=True)
        return torch.cat([self.vae.denormalised(lane, index, seed) for lane, (seed, index) in lanes])

    def _images(self, z: torch.Tensor, counters: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        found = self.state.images
        if found and next(iter(found.values())).dtype == z.dtype:
            return found
        lanes = [self.vae.decoder.images(lane, seed) for lane, (seed, _) in zip(z.split(1), counters, strict=True)]
        return {path: torch.cat([lane[path] for lane in lanes]) for path in lanes[0]}

    def _run(self, z: torch.Tensor, counters: list[tuple[int, int]], pictures: bool) -> torch.Tensor:
        decoder, state = self.vae.decoder, self.state
        state.images = self._images(z, counters)
        learning = torch.is_grad_enabled() and (z.requires_grad or any(p.requires_grad for p in decoder.parameters()))
        if learning:
            video = decoder(z, state)
            return to_uint8(video.detach()) if pictures else cast(torch.Tensor, video)
        with torch.no_grad():
            return decoder.run(z, Piece(state, self.work, self.dtype), pictures=pictures)

    def _nothing(self, pictures: bool) -> torch.Tensor:
        """An empty result, for a call whose latents are all withheld."""
        state, mean = self.state, self.vae.latents_mean
        h, w = (n * self.vae.config.spatial for n in state.size) if state.size else self.vae.size or (0, 0)
        b = len(state.counters) or 1
        if pictures:
            return mean.new_empty(b, 0, h, w, 3, dtype=torch.uint8)
        return mean.new_empty(b, 3, 0, h, w)
