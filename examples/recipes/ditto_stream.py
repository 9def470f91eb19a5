"""Ditto's ``StreamSDK``, with rest_fast behind it: for programs that were written for ditto-talkinghead.

It takes their calls as they are, and has what Ditto lacks: ``on_frame`` for the pictures as they are made, streams
whose length nobody knows before, and sound in the file. No configuration is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import rest_fast
from rest_fast import media
from rest_fast.errors import warn
from rest_fast.media.provenance import SYNTHETIC

RATE = 16000  # Hz
FRAME = 640  # samples of a frame
OnFrame = Callable[[np.ndarray, np.ndarray], None]


class StreamSDK:
    """``setup``, then ``run_chunk`` as often as there is sound, then ``close``; then ``setup`` again.

    Frames are made and delivered within ``run_chunk`` and ``close``, in the caller's thread, and so are errors.

    Args:
        cfg_pkl: is not read.
        data_root: what :func:`rest_fast.load` takes: a folder with weights, or ``demo``.
        on_frame: called with each picture, uint8 [H, W, 3] RGB, and its 640 samples, float32.
        load: other arguments of :func:`rest_fast.load`, such as ``device``.
    """

    online_mode = True  # Ditto's programs look at it: sound comes by run_chunk alone

    def __init__(self, cfg_pkl: Any, data_root: Any, *, on_frame: OnFrame | None = None, **load: Any):
        self.model = rest_fast.load(data_root, **load)
        self.on_frame = on_frame
        self._session: Any = None
        self._writer: media.VideoWriter | None = None

    def setup(self, source_path: Any, output_path: str | None = None, *, seed: int = 0, **kwargs: Any) -> None:
        """Prepare a photo and begin a stream.

        Args:
            source_path: what :meth:`rest_fast.Model.prepare` takes.
            output_path: of an MP4; None where ``on_frame`` is enough. It needs no ffmpeg behind it.
            kwargs: Ditto's options; a warning names those that have no meaning here.
        Raises: :class:`rest_fast.MediaError`.
        """
        self._end()
        ignored = sorted(kwargs.keys() - {"online_mode", "N_d"})
        if ignored:
            warn(f"setup: without meaning here: {', '.join(ignored)}")
        avatar = self.model.prepare(source_path)
        self._session = self.model.session(avatar, sample_rate=RATE, seed=seed)
        self._left: int | None = None  # frames that are still wanted; None: all
        self.setup_Nd(kwargs.get("N_d", -1))
        self.output_path = self.tmp_output_path = output_path
        if output_path is not None:
            height, width = avatar.picture.shape[:2]
            self._writer = media.VideoWriter(output_path, width, height, sample_rate=RATE, source_type=SYNTHETIC)

    def setup_Nd(self, N_d: int, fade_in: int = -1, fade_out: int = -1, ctrl_info: Any = None) -> None:
        """Frames of the whole stream, where they are known: what is padding at its end is not delivered."""
        if fade_in > 0 or fade_out > 0 or ctrl_info:
            warn("setup_Nd: fading and ctrl_info have no meaning here")
        self._left = N_d if N_d > 0 else None

    def run_chunk(self, audio_chunk: np.ndarray, chunksize: tuple[int, int, int] = (3, 5, 2)) -> None:
        """Take a window of sound, at 16 kHz, and deliver the frames that have become possible.

        Args:
            audio_chunk: samples [640 (before + new + after) + 80], as Ditto's programs cut them. Those of ``before``
                have been heard, and those of ``after`` come again: only the middle is pushed.
            chunksize: frames before, new and after.
        Raises: :class:`rest_fast.ArgumentError` before ``setup``; :class:`rest_fast.MediaError` for a short window.
        """
        before, new, after = chunksize
        if self._session is None:
            raise rest_fast.ArgumentError("run_chunk: expected setup() before it")
        if len(audio_chunk) < (before + new + after) * FRAME:
            expected = f"expected {before + new + after} frames of {FRAME} samples"
            raise rest_fast.MediaError(f"run_chunk: audio_chunk: {expected}, got {len(audio_chunk)} samples")
        self._session.push_audio(np.asarray(audio_chunk[before * FRAME : (before + new) * FRAME], np.float32))
        self._deliver()

    def close(self) -> None:
        """Deliver the rest and finish the file; a second call does nothing."""
        if self._session is not None:
            try:
                self._session.end_segment()
                self._deliver()
            finally:
                self._end()

    def _deliver(self) -> None:
        for block in self._session.blocks():
            count = -(-block.true_samples // FRAME)  # the rest of the last block is silence of ours
            if self._left is not None:
                count = min(count, self._left)
                self._left -= count
            video, sound = block.video[:count], block.audio[: count * FRAME]
            if self._writer is not None and count:
                self._writer.write(video, sound)
            for k in range(count if self.on_frame is not None else 0):
                self.on_frame(video[k], sound[k * FRAME : (k + 1) * FRAME])  # type: ignore[misc]

    def _end(self) -> None:
        session, self._session = self._session, None
        writer, self._writer = self._writer, None
        if session is not None:
            session.close()
        if writer is not None:
            writer.close()
