"""rest_fast: streaming talking heads. One photo and a stream of speech in, 25 frames per second of that face out.

model = rest_fast.load("demo")
avatar = model.prepare("face.jpg")
with model.session(avatar, sample_rate=24000) as session:
    session.push_audio(pcm)
    for block in session.blocks():
        show(block.video, block.audio)
"""

from rest_fast.avatar import Avatar
from rest_fast.block import Block
from rest_fast.config import ModelConfig, preset
from rest_fast.diagnostics import show_config
from rest_fast.model import Model, load
from rest_fast.rendering import render
from rest_fast.session import Session
from rest_fast.session_state import SessionState

__version__ = "0.1.0"

__all__ = [
    "Avatar",
    "Block",
    "Model",
    "ModelConfig",
    "Session",
    "SessionState",
    "load",
    "preset",
    "render",
    "show_config",
]
