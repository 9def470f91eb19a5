"""rest_fast: streaming talking heads. One photo and a stream of speech in, 25 frames per second of that face out.

model = rest_fast.load("demo")
avatar = model.prepare("face.jpg")
with model.session(avatar, sample_rate=24000) as session:
    session.push_audio(pcm)
    for block in session.blocks():
        show(block.video, block.audio)
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rest_fast.avatar import Avatar
    from rest_fast.config import ModelConfig, preset
    from rest_fast.diagnostics import show_config
    from rest_fast.errors import (
        ArgumentError,
        AvatarError,
        BacklogFull,
        CapacityExhausted,
        CaptureError,
        CausalDecoderError,
        CheckpointError,
        ConfigError,
        ConvertError,
        DataError,
        DetectorError,
        DivergedError,
        EngineClosed,
        EvaluationError,
        HubError,
        InstallError,
        MediaError,
        NoFace,
        OpError,
        ProtocolError,
        RestFastError,
        RestFastWarning,
        SessionClosed,
        SigningError,
        StateError,
        TrainError,
    )
    from rest_fast.model import Model, load
    from rest_fast.pipeline import RestPipeline
    from rest_fast.rendering import render
    from rest_fast.streaming.block import Block
    from rest_fast.streaming.engine import Engine
    from rest_fast.streaming.session import Session
    from rest_fast.streaming.snapshot import SessionState

__version__ = "0.2.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library prints nothing by itself

__all__ = [
    "Avatar",
    "Block",
    "Engine",
    "Model",
    "ModelConfig",
    "RestPipeline",
    "Session",
    "SessionState",
    "load",
    "preset",
    "render",
    "show_config",
    "ArgumentError",
    "AvatarError",
    "BacklogFull",
    "CapacityExhausted",
    "CausalDecoderError",
    "CheckpointError",
    "ConfigError",
    "CaptureError",
    "ConvertError",
    "DataError",
    "DetectorError",
    "DivergedError",
    "EngineClosed",
    "EvaluationError",
    "HubError",
    "InstallError",
    "MediaError",
    "NoFace",
    "OpError",
    "ProtocolError",
    "RestFastError",
    "RestFastWarning",
    "SessionClosed",
    "SigningError",
    "StateError",
    "TrainError",
]

# Where each name lives. Imported at its first use: `rest-fast --help` need not wait for PyTorch.
_HOMES = {
    "Avatar": "avatar",
    "Block": "streaming.block",
    "Engine": "streaming.engine",
    "Model": "model",
    "ModelConfig": "config",
    "RestPipeline": "pipeline",
    "Session": "streaming.session",
    "SessionState": "streaming.snapshot",
    "load": "model",
    "preset": "config",
    "render": "rendering",
    "show_config": "diagnostics",
    "ArgumentError": "errors",
    "AvatarError": "errors",
    "BacklogFull": "errors",
    "CapacityExhausted": "errors",
    "CausalDecoderError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "CaptureError": "errors",
    "ConvertError": "errors",
    "DataError": "errors",
    "DetectorError": "errors",
    "DivergedError": "errors",
    "EngineClosed": "errors",
    "EvaluationError": "errors",
    "HubError": "errors",
    "InstallError": "errors",
    "MediaError": "errors",
    "NoFace": "errors",
    "OpError": "errors",
    "ProtocolError": "errors",
    "RestFastError": "errors",
    "RestFastWarning": "errors",
    "SessionClosed": "errors",
    "SigningError": "errors",
    "StateError": "errors",
    "TrainError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
