"""A face for LiveTalking: copy to its ``avatars/``, and change the two lines of its ``app.py`` in docs/recipes.md.

LiveTalking asks its models for the mouths of a film that it loops. This one makes whole pictures, also in silence, and
needs sound ahead of them; so it takes the place of the loop (``inference``) and not of one step in it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from queue import Full, Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
from avatars.base_avatar import AudioFrameData, BaseAvatar
from registry import register

import rest_fast

RATE = 16000  # Hz
PIECE = 320  # samples: 20 ms, two for a frame
AHEAD = 8  # frames that wait for the output at most: so much old speech is still heard behind an interrupt
LOW = 4  # frames below which silence is made, where there is no speech
PAUSE = 0.3  # seconds without sound that end a speech whose end nobody told
RING = 64  # numbers of frames, reused
AVATARS = Path("data/avatars")


class Faces:
    """What ``app.py`` calls the model: an engine, and the faces that were prepared for it."""

    def __init__(self, engine: rest_fast.Engine):
        self.engine = engine
        self.prepared: dict[str, rest_fast.Avatar] = {}

    def prepare(self, photo: str) -> rest_fast.Avatar:
        if photo not in self.prepared:
            self.prepared[photo] = self.engine.model.prepare(photo)
        return self.prepared[photo]


def load_model(opt: Any) -> Faces:
    """``--modelfile``: a folder with weights; without it the demo."""
    model = rest_fast.load(opt.modelfile or "demo")
    return Faces(model.engine(sessions=opt.max_session, backlog=None))


def load_avatar(avatar_id: str) -> str:
    """The first picture in ``data/avatars/AVATAR_ID``."""
    pictures = sorted(p for p in (AVATARS / avatar_id).glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not pictures:
        raise FileNotFoundError(f"rest_fast: expected a PNG or JPEG in {AVATARS / avatar_id}")
    return str(pictures[0])


def warm_up(batch_size: int, avatar: Any, modelres: int) -> None:
    """The engine made chunks when it was opened."""


class Taken(dict[int, np.ndarray]):
    """Pictures by number, each of which is taken once."""

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pop(index)


@register("avatar", "rest_fast")
class RestFastAvatar(BaseAvatar):
    def __init__(self, opt: Any, model: Faces, avatar: str):
        super().__init__(opt)
        self.session = model.engine.session(model.prepare(avatar), sample_rate=RATE)
        self.asr = SimpleNamespace(run_step=lambda: time.sleep(0.01))  # sound goes straight to the session
        self.res_frame_queue: Queue[Any] = Queue(AHEAD)
        self.frame_list_cycle = Taken()  # where LiveTalking looks for the picture of a silent frame
        self.lock = threading.Lock()  # of the following
        self.notes: deque[tuple[int, dict[str, Any]]] = deque()  # events, by the sample that they came with
        self.pushed = self.heard = 0  # samples since the latest interrupt: that came, and that are in frames
        self.latest: float | None = None  # when sound came, in a speech that has not ended

    def put_audio_frame(self, audio_chunk: np.ndarray, datainfo: dict[str, Any] = {}) -> None:  # noqa: B006
        """20 ms of speech, float32 at 16 kHz; ``datainfo``: the events of that moment, ``status`` among them."""
        with self.lock:
            if self.session.closed:
                return  # the visitor has left, which the speech synthesiser does not know yet
            self.session.push_audio(np.asarray(audio_chunk, np.float32))
            if datainfo:
                self.notes.append((self.pushed, dict(datainfo)))
            self.pushed += len(audio_chunk)
            self.latest = time.monotonic()
            if datainfo.get("status") == "end":
                self._end()

    def flush_talk(self) -> None:
        super().flush_talk()  # the speech synthesiser's
        with self.lock:
            if self.session.closed:
                return
            self.session.interrupt()
            self.notes.clear()
            self.pushed = self.heard = 0
            self.latest = None

    def paste_back_frame(self, pred_frame: np.ndarray, idx: int) -> np.ndarray:
        return pred_frame

    def inference(self, quit_event: Any) -> None:
        """Fill ``res_frame_queue`` until ``quit_event``; whoever takes from it sets the pace."""
        index = 0
        try:
            while not quit_event.is_set():
                low = self.res_frame_queue.qsize() < LOW
                with self.lock:
                    if low and self.latest is not None and time.monotonic() - self.latest > PAUSE:
                        self._end()
                block = next(self.session.blocks(idle=low), None)
                if block is None:
                    time.sleep(0.01)
                    continue
                for picture, sound in zip(block.video, self._pieces(block)):
                    frame = np.ascontiguousarray(picture[..., ::-1])  # BGR
                    if block.epoch != self.session.epoch:  # interrupted meanwhile: shown, but not heard
                        sound = [AudioFrameData(np.zeros(PIECE, np.float32), 1) for _ in range(2)]
                    self.frame_list_cycle.pop(index, None)
                    if all(piece.type for piece in sound):
                        self.frame_list_cycle[index] = frame
                    self._put((frame, sound, index), quit_event)
                    index = (index + 1) % RING
        finally:
            self.session.close()

    def _end(self) -> None:
        if self.latest is not None:
            self.latest = None
            self.session.end_segment()

    def _pieces(self, block: Any) -> list[list[AudioFrameData]]:
        """The sound of a block, two pieces a frame, with the events that came with it. Type 1 is silence."""
        made = []
        with self.lock:
            for at in range(0, len(block.audio), PIECE):
                note: dict[str, Any] = {}
                speaks = at < block.true_samples and not block.idle
                last = self.heard + min(at + PIECE, block.true_samples)
                while speaks and block.epoch == self.session.epoch and self.notes and self.notes[0][0] < last:
                    note |= self.notes.popleft()[1]
                sound = np.asarray(block.audio[at : at + PIECE], np.float32)
                made.append(AudioFrameData(sound, 0 if speaks else 1, note))
            if block.epoch == self.session.epoch and not block.idle:
                self.heard += block.true_samples
        return [made[k : k + 2] for k in range(0, len(made), 2)]

    def _put(self, item: Any, quit_event: Any) -> None:
        while not quit_event.is_set():
            try:
                return self.res_frame_queue.put(item, timeout=0.1)
            except Full:
                continue
