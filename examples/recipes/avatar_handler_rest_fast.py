"""A face for OpenAvatarChat: copy to ``src/handlers/avatar/rest_fast/avatar_handler_rest_fast.py``; docs/recipes.md.

Sound of the speech synthesiser comes as AVATAR_AUDIO; AVATAR_VIDEO leaves 25 times a second, with its 40 ms of
AVATAR_AUDIO while the face speaks. An interrupt cuts both.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import Any

import numpy as np
from chat_engine.common.handler_base import (
    ChatDataConsumeMode,
    HandlerBase,
    HandlerBaseInfo,
    HandlerDataInfo,
    HandlerDetail,
)
from chat_engine.contexts.handler_context import HandlerContext
from chat_engine.data_models.chat_data.chat_data_model import ChatData
from chat_engine.data_models.chat_data_type import ChatDataType
from chat_engine.data_models.chat_engine_config_data import HandlerBaseConfigModel
from chat_engine.data_models.chat_signal import SignalFilterRule
from chat_engine.data_models.chat_signal_type import ChatSignalType
from chat_engine.data_models.chat_stream_config import ChatStreamConfig
from chat_engine.data_models.runtime_data.data_bundle import (
    DataBundle,
    DataBundleDefinition,
    DataBundleEntry,
    VariableSize,
)
from pydantic import Field

import rest_fast
from rest_fast.serving.viewer import Viewer

LOG = logging.getLogger(__name__)
FPS = 25
NAME = "RestFast"


class RestFastConfig(HandlerBaseConfigModel):
    weights: str = Field(default="demo")  # what rest_fast.load takes
    photo: str = Field(default="")  # path of the face
    device: str = Field(default="auto")
    sample_rate: int = Field(default=24000)  # Hz, of what leaves


class RestFastContext(HandlerContext):
    """One visitor. All of it happens in the event loop of a thread, where frames wait for their times."""

    def __init__(self, session_id: str, viewer: Viewer, definitions: dict[ChatDataType, DataBundleDefinition]):
        super().__init__(session_id)
        self.viewer, self.definitions = viewer, definitions
        self.playback: Any = None  # the streamer that tells others what is being said
        self.speech: str | None = None  # key of the stream that is being said
        self.cut: deque[str] = deque(maxlen=32)  # keys of what was interrupted: more of it may be on its way
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, name=f"{NAME} {session_id}", daemon=True)

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self.show())
        except Exception:
            LOG.exception("rest_fast: the face of session %s has stopped", self.session_id)
        finally:
            self.viewer.close()
            self.loop.close()

    async def show(self) -> None:
        async for shown in self.viewer.frames():
            self.submit(ChatDataType.AVATAR_VIDEO, np.ascontiguousarray(shown.picture[None, :, :, ::-1]))  # BGR
            if not (shown.idle or shown.held):
                self.submit(ChatDataType.AVATAR_AUDIO, shown.sound[None].astype(np.float32) / 32768)
            while self.viewer.finished:
                done = self.viewer.finished.popleft()
                if not done.interrupted and done.id == self.speech:
                    self.speech = None
                    self.playback.finish_current()

    def submit(self, kind: ChatDataType, data: np.ndarray) -> None:
        bundle = DataBundle(self.definitions[kind])
        bundle.set_main_data(data)
        self.submit_data(ChatData(type=kind, data=bundle))

    def call(self, function: Any, *args: Any) -> None:
        """Call a function in the loop, in the order of these calls."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *args)

    def hear(self, stream: Any, samples: np.ndarray | None, rate: int, last: bool) -> None:
        """Sound [n] of a stream, float in -1..1."""
        key = stream.stream_key_str if stream else ""
        if key in self.cut:
            return
        if key != self.speech:
            self.speech = key
            self.playback.open_stream(sources=[stream] if stream else [], name=f"playback:{key}")
        if samples is not None and len(samples):
            self.viewer.push(samples, rate)
        if last:
            self.viewer.end(key)

    def interrupt(self) -> None:
        """The engine cancels the playback stream by itself."""
        if self.speech is not None:
            self.cut.append(self.speech)
            self.speech = None
            self.viewer.interrupt()


class HandlerAvatarRestFast(HandlerBase):
    def get_handler_info(self) -> HandlerBaseInfo:
        return HandlerBaseInfo(config_model=RestFastConfig, load_priority=-999)

    def load(self, engine_config: Any, handler_config: Any = None) -> None:
        config = handler_config or RestFastConfig()
        model = rest_fast.load(config.weights, device=config.device)
        self.avatar = model.prepare(config.photo)
        self.faces = model.engine(sessions=config.concurrent_limit)  # ``engine`` is OpenAvatarChat's own
        audio, video = DataBundleDefinition(), DataBundleDefinition()
        audio.add_entry(DataBundleEntry.create_audio_entry("avatar_rest_fast_audio", 1, config.sample_rate))
        shape = [VariableSize(), VariableSize(), VariableSize(), 3]
        video.add_entry(DataBundleEntry.create_framed_entry("avatar_rest_fast_video", shape, 0, FPS))
        self.definitions = {ChatDataType.AVATAR_AUDIO: audio.lockdown(), ChatDataType.AVATAR_VIDEO: video.lockdown()}

    def create_context(self, session_context: Any, handler_config: Any = None) -> RestFastContext:
        """Raises: :class:`rest_fast.CapacityExhausted`."""
        rate = (handler_config or RestFastConfig()).sample_rate
        viewer = Viewer(self.faces.session(self.avatar, sample_rate=rate))
        return RestFastContext(session_context.session_info.session_id, viewer, self.definitions)

    def start_context(self, session_context: Any, handler_context: RestFastContext) -> None:
        handler_context.playback = handler_context.stream_manager.create_lifecycle_streamer(
            data_type=ChatDataType.CLIENT_PLAYBACK, producer_name=NAME, config=ChatStreamConfig(cancelable=False)
        )
        handler_context.thread.start()

    def get_handler_detail(self, session_context: Any, context: RestFastContext) -> HandlerDetail:
        audio, video = ChatDataType.AVATAR_AUDIO, ChatDataType.AVATAR_VIDEO
        endless = ChatStreamConfig(cancelable=False, auto_link_input=False)
        return HandlerDetail(
            inputs={audio: HandlerDataInfo(type=audio, input_consume_mode=ChatDataConsumeMode.ONCE)},
            outputs={
                audio: HandlerDataInfo(type=audio, definition=self.definitions[audio]),
                video: HandlerDataInfo(type=video, definition=self.definitions[video], output_stream_config=endless),
            },
            signal_filters=[
                SignalFilterRule(ChatSignalType.INTERRUPT, None, None),
                SignalFilterRule(ChatSignalType.STREAM_CANCEL, None, ChatDataType.CLIENT_PLAYBACK),
                SignalFilterRule(ChatSignalType.STREAM_CANCEL, None, audio),
            ],
        )

    def handle(self, context: RestFastContext, inputs: ChatData, output_definitions: Any) -> None:
        if inputs.type != ChatDataType.AVATAR_AUDIO or inputs.data is None:
            return
        samples, rate = inputs.data.get_main_data(), inputs.data.get_main_definition_entry().sample_rate
        sound = None if samples is None else np.array(samples, np.float32).reshape(-1)
        context.call(context.hear, inputs.stream_id, sound, rate, inputs.is_last_data)

    def on_signal(self, context: RestFastContext, signal: Any) -> None:
        about = signal.related_stream
        if signal.type == ChatSignalType.STREAM_CANCEL and about is not None:
            ours = about.producer_name == NAME or about.data_type == ChatDataType.CLIENT_PLAYBACK
            if not ours and about.stream_key_str != context.speech:
                return  # another sentence's sound
        context.call(context.interrupt)

    def destroy_context(self, context: RestFastContext) -> None:
        context.viewer.close()  # which ends the frames, and so the thread
        if context.thread.is_alive():
            context.thread.join(5)

    def destroy(self) -> None:
        self.faces.close()
