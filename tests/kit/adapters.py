"""Every transport and front end by one interface, for the contract (``tests/serving/test_contract.py``)."""

from __future__ import annotations

import importlib
from typing import Any

from tests.kit.routers import through_a_router
from tests.kit.serving import Call, Direct, Film, Socket


def elsewhere(module: str, name: str) -> Any:
    """An adapter of a library that is not installed everywhere; see :data:`NEEDS`."""
    return lambda service: getattr(importlib.import_module(f"tests.kit.{module}"), name)(service)


ADAPTERS: dict[str, Any] = {
    "direct": Direct.open,
    "livekit": elsewhere("livekit_rooms", "in_process"),
    "livekit-remote": elsewhere("livekit_rooms", "remote"),
    "pipecat": elsewhere("pipecat_bots", "open_bot"),
    "raw": lambda served: Socket.open(served, "raw"),
    "jpeg": lambda served: Socket.open(served, "jpeg"),
    "fmp4": lambda served: Film.open(served, "fmp4"),
    "webrtc": Call.open,
    "router": through_a_router,
    "ray": elsewhere("ray_clusters", "open_socket"),
}
IN_PROCESS = ("direct", "livekit", "livekit-remote", "pipecat")  # they take the service itself
# modules of libraries that have environments of their own: make front-ends
NEEDS = {"livekit": "livekit.agents", "livekit-remote": "livekit.agents", "pipecat": "pipecat", "ray": "ray"}
SLOW = ("ray",)  # a cluster has to start
# what is to run before the time of a test does
BEFORE = {"ray": lambda: importlib.import_module("tests.kit.ray_clusters").shared()}
