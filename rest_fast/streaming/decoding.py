"""The memory in which all streams of an engine are decoded, in turn: scratch, places of histories, graph, CUDA stream.

A stream's own memory is its :class:`~rest_fast.models.vae.state.StreamState`, a value: a piece takes one and gives the
next. What decodes is in one state at a time, and takes another one over, by copying it, only where it is not in it yet.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from rest_fast.config import TEMPORAL
from rest_fast.models.rest import REST
from rest_fast.models.vae import to_latents
from rest_fast.models.vae.state import StreamState
from rest_fast.streaming.block import Pictures
from rest_fast.streaming.graphs import Capture


class Decoding:
    """Decodes pieces of streams, one piece at a time, in memory that all of them share; holds none of them alive.

    What a stream shows does not depend on the others. Streams are told apart by nothing but their states, each of which
    is an object of its own: so a state that failed, was taken back or came from a snapshot is never mistaken.

    Args:
        mode: of :meth:`rest_fast.models.vae.TemporalVAE.stream`.
        capture: the decoding of a whole chunk, but for the one that begins a stream, becomes a graph.
    """

    def __init__(self, model: REST, mode: str | None = None, capture: Capture | None = None):
        self.model, config = model, model.config
        self.shape = config.height, config.width, 3  # of a photo
        self.stream = model.vae.stream(mode=mode, reference=model.pixels(np.zeros(self.shape, np.uint8)))
        self.mode, self.seed = self.stream.mode, self.stream.seed
        self.primed = self.mode.name == "causal"  # a stream's reference is decoded before its first latent comes
        self.dtype = self.stream.dtype  # of the convolutions of streams that begin here
        own = model.vae.decoder.mixed and model.dtype == torch.float32
        self._convolutions = {conv.path for conv in model.vae.decoder.convolutions()} if own else set()
        self._memory: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._at: weakref.ref[StreamState] | None = None  # the state that the stream is in; None: in none
        # On a GPU decoding has a stream of its own: a chunk that is queued behind it can be denoised meanwhile. All
        # pieces are queued on this one, so no piece begins to write what the one before still reads.
        self._side = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        with torch.no_grad(), self.beside():
            self._try_out(capture)

    def _try_out(self, capture: Capture | None) -> None:
        """Allocate and capture before the first request what it will need. What is decoded may be anything."""
        chunk, ahead = self.model.config.stream.chunk, self.mode.ahead
        nothing = torch.zeros(self.model.config.tokens, self.model.config.vae.latent_channels, device=self.model.device)
        if not self.primed or self._side is not None:  # the longest piece: the first, which the reference leads
            first = self._latents([nothing] * (1 if self.primed else 1 + chunk + ahead))
            self.stream.piece(first, ahead, pictures=True)
            self._note(self.stream.state)
        if capture is not None:
            self.stream.capture(capture, self._latents([nothing] * (chunk + ahead)), ahead)
        if self._side is not None:  # pieces of every size that a segment's end can bring: their kernels are loaded
            for count in range(1, chunk + ahead + 1):
                for provisional in {0, min(ahead, count - 1)}:
                    self.stream.piece(self._latents([nothing] * count), provisional, pictures=True)
        self.stream.reset()

    def begin(self, picture: np.ndarray, features: Mapping[str, torch.Tensor] | None = None) -> StreamState:
        """The state of a stream before its first piece.

        Args:
            picture: its photo as the model crops it, uint8 [H, W, 3].
            features: of the photo, see :meth:`rest_fast.models.vae.TemporalVAE.photo_features`; made here without them.
        """
        assert picture.shape == self.shape, f"decoding: expected a photo of {self.shape}, got {picture.shape}"
        with self.beside():
            here = {name: tensor.to(self.model.device, self.model.dtype) for name, tensor in (features or {}).items()}
            reference = self.model.pixels(picture)
            return self.model.vae.stream(mode=str(self.mode), reference=reference, features=here).snapshot()

    @torch.no_grad()
    def decode(
        self, state: StreamState, latents: Sequence[torch.Tensor], provisional: int, dtype: torch.dtype | None
    ) -> tuple[list[Pictures], StreamState]:
        """Decode the next latents [T, C] of the stream that is in ``state``, convolving in ``dtype``.

        Returns: pictures of all but the last ``provisional`` latents, and the state behind those. ``state`` stays as it
        is, so a call that failed may be repeated. The one frame of a reference, which begins a stream, is not shown.
        """
        with self.beside():
            at, self._at = self._at, None  # whatever fails from here on leaves the stream in no one's state
            if at is None or at() is not state:
                self._read_here(state.histories.values())
                self.stream.restore(state)
            self.stream.dtype = dtype
            frames = self.stream.piece(self._latents(latents), provisional, pictures=True)[0]
            # Pictures of a replay are one memory: copied here, on the stream where the next replay comes behind.
            made = Pictures.of(frames[len(frames) % TEMPORAL :])
            after = self.stream.snapshot()
            self._note(after)
            self._at = weakref.ref(after)
        return made, after

    def memory(self, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of the histories of a stream that has begun and convolves in ``dtype``."""
        return {
            path: (shape, dtype if path in self._convolutions else kind) for path, (shape, kind) in self._memory.items()
        }

    def _note(self, begun: StreamState) -> None:
        """The first stream to begin has the dtype of this decoding: another one only comes with a snapshot."""
        self._memory = self._memory or {path: (tuple(x.shape), x.dtype) for path, x in begun.histories.items()}

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, work is queued on the CUDA stream of decoding, behind what was queued before."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self._side.device))
        with torch.cuda.stream(self._side):
            yield

    def join(self) -> None:
        """What is queued from now on comes behind all decoding, and may read its states."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)

    def _latents(self, latents: Sequence[torch.Tensor]) -> torch.Tensor:
        self._read_here(latents)
        return to_latents(torch.cat(list(latents))[None].to(self.model.dtype), self.model.config.grid)

    def _read_here(self, tensors: Iterable[torch.Tensor]) -> None:
        """Their memory, which may be another CUDA stream's, must not be given away before it was read on this one."""
        if self._side is not None:
            for tensor in tensors:
                tensor.record_stream(self._side)
