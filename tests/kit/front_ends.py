"""Stand-ins for the front ends of ``examples/recipes``: the names, signatures and flows that a face of theirs meets.

LiveTalking as of July 2026, OpenAvatarChat with its stream manager as of mid 2026, Ditto's programs as of July 2025.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from queue import Queue
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


def load_recipe(name: str, modules: dict[str, dict[str, Any]], monkeypatch: Any) -> ModuleType:
    """A module of ``examples/recipes``, beside modules with these contents."""
    for path in modules:
        parts = path.split(".")
        for k in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:k]), ModuleType(parts[k - 1]))
    for path, contents in modules.items():
        module = ModuleType(path)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, path, module)
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


# -- LiveTalking


@dataclass
class AudioFrameData:
    data: np.ndarray
    type: int = 0
    userdata: dict[str, Any] = field(default_factory=dict)


class Output:
    """A transport that takes a frame every 40 ms, as WebRTC does."""

    def __init__(self) -> None:
        self.frames: list[tuple[np.ndarray, list[np.ndarray], list[Any], bool]] = []

    def take(self, picture: np.ndarray, sound: list[AudioFrameData], speaking: bool) -> None:
        pcm = [(piece.data * 32767).astype(np.int16) for piece in sound]
        self.frames.append((picture, pcm, [piece.userdata for piece in sound], speaking))
        time.sleep(0.04)


class BaseAvatar:
    """The base of LiveTalking's models: who asks whom, and what is done with the answers."""

    def __init__(self, opt: Any):
        self.opt, self.sample_rate, self.chunk = opt, 16000, 320
        self.speaking, self.custom_index = False, {}
        self.res_frame_queue: Queue[Any] = Queue(opt.batch_size * 2)
        self.tts = SimpleNamespace(flush_talk=lambda: None)
        self.output = Output()

    def flush_talk(self) -> None:
        self.tts.flush_talk()
        if hasattr(self.asr, "flush_talk"):
            self.asr.flush_talk()

    def process_frames(self, quit_event: Any) -> None:
        while not quit_event.is_set():
            try:
                made, sound, index = self.res_frame_queue.get(timeout=0.1)
            except queue.Empty:
                continue
            self.speaking = not all(piece.type for piece in sound)
            picture = self.paste_back_frame(made, index) if self.speaking else self.frame_list_cycle[index]
            picture[:4, :4] = 128  # its mark, which it draws into the picture
            self.output.take(picture, sound, self.speaking)

    def render(self, quit_event: Any) -> None:
        threads = [Thread(target=work, args=(quit_event,)) for work in (self.inference, self.process_frames)]
        for thread in threads:
            thread.start()
        while not quit_event.is_set():
            self.asr.run_step()
        for thread in threads:
            thread.join()


def live_talking() -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], type]]:
    """Its modules, and its registry."""
    registry: dict[tuple[str, str], type] = {}

    def register(category: str, name: str) -> Any:
        return lambda cls: registry.setdefault((category, name), cls)

    base = {"BaseAvatar": BaseAvatar, "AudioFrameData": AudioFrameData}
    return {"registry": {"register": register}, "avatars.base_avatar": base}, registry


# -- OpenAvatarChat


class ChatDataType(Enum):
    AVATAR_AUDIO = "avatar_audio"
    AVATAR_VIDEO = "avatar_video"
    CLIENT_PLAYBACK = "client_playback"


class ChatSignalType(str, Enum):
    STREAM_CANCEL = "stream_cancel"
    INTERRUPT = "interrupt"


class ChatDataConsumeMode(Enum):
    ONCE = -1


class HandlerBaseConfigModel(BaseModel):
    enabled: bool = Field(default=True)
    module: str | None = Field(default=None)
    concurrent_limit: int = Field(default=1)


class ChatStreamConfig(BaseModel):
    cancelable: bool = Field(default=True)
    auto_link_input: bool = Field(default=True)


@dataclass
class VariableSize:
    default: int = 1


@dataclass
class DataBundleEntry:
    name: str
    shape: list[Any]
    sample_rate: int

    @staticmethod
    def create_audio_entry(name: str, channel_num: int, sample_rate: int) -> DataBundleEntry:
        return DataBundleEntry(name, [channel_num, VariableSize()], sample_rate)

    @staticmethod
    def create_framed_entry(name: str, shape: list[Any], time_axis: int, sample_rate: int = 30) -> DataBundleEntry:
        return DataBundleEntry(name, shape, sample_rate)


@dataclass
class DataBundleDefinition:
    entry: DataBundleEntry | None = None

    def add_entry(self, entry: DataBundleEntry) -> None:
        self.entry = entry

    def lockdown(self) -> DataBundleDefinition:
        return self


@dataclass
class DataBundle:
    definition: DataBundleDefinition
    data: np.ndarray | None = None

    def set_main_data(self, data: np.ndarray) -> None:
        assert self.definition.entry is not None
        sizes = zip(self.definition.entry.shape, data.shape, strict=True)
        assert all(isinstance(size, VariableSize) or size == n for size, n in sizes)
        self.data = data

    def get_main_data(self) -> np.ndarray | None:
        return self.data

    def get_main_definition_entry(self) -> DataBundleEntry | None:
        return self.definition.entry


@dataclass
class Stream:
    data_type: ChatDataType
    stream_key_str: str
    producer_name: str = "TTS"


@dataclass
class ChatData:
    type: ChatDataType
    data: DataBundle | None = None
    stream_id: Stream | None = None
    is_last_data: bool = False


@dataclass
class ChatSignal:
    type: ChatSignalType
    related_stream: Stream | None = None


class HandlerContext:
    def __init__(self, session_id: str):
        self.session_id = session_id
        self.stream_manager = self.data_submitter = None

    def submit_data(self, data: ChatData) -> None:
        self.data_submitter.append(data)


@dataclass
class HandlerBaseInfo:
    name: str | None = None
    config_model: type | None = None
    load_priority: int = 0


@dataclass
class HandlerDataInfo:
    type: ChatDataType
    definition: DataBundleDefinition | None = None
    input_consume_mode: ChatDataConsumeMode | None = None
    output_stream_config: ChatStreamConfig | None = None


@dataclass
class HandlerDetail:
    inputs: dict[ChatDataType, HandlerDataInfo]
    outputs: dict[ChatDataType, HandlerDataInfo]
    signal_filters: list[Any] = field(default_factory=list)


class HandlerBase:
    def __init__(self) -> None:
        self.engine = self.handler_root = None


class StreamManager:
    """Keeps what a lifecycle streamer is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def create_lifecycle_streamer(self, data_type: Any, producer_name: str, config: Any = None) -> Any:
        assert data_type is ChatDataType.CLIENT_PLAYBACK and not config.cancelable
        return SimpleNamespace(
            open_stream=lambda sources=None, name=None: self.told.append(name),
            finish_current=lambda: self.told.append("finished"),
        )


def open_avatar_chat() -> dict[str, dict[str, Any]]:
    """Its modules."""
    here = globals()
    names = {
        "common.handler_base": ("ChatDataConsumeMode HandlerBase HandlerBaseInfo HandlerDataInfo HandlerDetail"),
        "contexts.handler_context": "HandlerContext",
        "data_models.chat_data.chat_data_model": "ChatData",
        "data_models.chat_data_type": "ChatDataType",
        "data_models.chat_engine_config_data": "HandlerBaseConfigModel",
        "data_models.chat_signal_type": "ChatSignalType",
        "data_models.chat_stream_config": "ChatStreamConfig",
        "data_models.runtime_data.data_bundle": "DataBundle DataBundleDefinition DataBundleEntry VariableSize",
    }
    made = {f"chat_engine.{path}": {name: here[name] for name in words.split()} for path, words in names.items()}
    made["chat_engine.data_models.chat_signal"] = {"SignalFilterRule": lambda *rule: rule}
    return made


# -- Ditto


def ditto_program(sdk: Any, sound: np.ndarray, photo: Any, out: Any) -> None:
    """What its programs do with sound at 16 kHz: windows of 6480 samples, 3200 apart, after three frames of silence."""
    sdk.setup(photo, out)
    sdk.setup_Nd(N_d=-(-len(sound) // 640), fade_in=-1, fade_out=-1, ctrl_info={})
    assert sdk.online_mode
    before, new, after = chunks = (3, 5, 2)
    padded = np.concatenate([np.zeros(before * 640, np.float32), sound])
    length = int((before + new + after) * 0.04 * 16000) + 80
    for at in range(0, len(padded), new * 640):
        window = padded[at : at + length]
        sdk.run_chunk(np.pad(window, (0, length - len(window))), chunks)
    sdk.close()


def wait(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.01)
