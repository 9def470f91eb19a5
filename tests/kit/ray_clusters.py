"""A cluster of Ray on this machine, with servers of the fake engine in processes of their own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import socket as sockets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

from rest_fast.serving.ray_app import application
from rest_fast.serving.service import Service
from tests.kit.routers import Address
from tests.kit.serving import Socket, fake_service

ROOT = Path(__file__).parents[2]
NAME = "faces"
# As long as a busy machine with few cores takes to start all of it.
PATIENT = {"RAY_agent_register_timeout_ms": "300000", "RAY_raylet_start_wait_time_s": "300"}
ALONE = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # nothing is written to the user's folder


def service(sessions: int) -> Service:
    """Of one device; viewers of two devices have different numbers."""
    made = fake_service(sessions=sessions)
    made.engine.numbers = itertools.count(os.getpid())  # type: ignore[attr-defined]
    return made


@functools.cache
def cluster() -> None:
    """Of this process, until it ends; or one that runs already, where ``RAY_ADDRESS`` names it."""
    os.environ.update(PATIENT | ALONE | dict(os.environ))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    own: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:  # local: not one of which only a file has been left
        own = {"address": "local", "num_cpus": 4, "include_dashboard": False}
    ray.init(log_to_driver=False, runtime_env={"env_vars": variables}, **own)
    serve.start(proxy_location="Disabled")
    atexit.register(ray.shutdown)


def pinned(app: Any, version: str) -> Any:
    """The application, of which another number of devices is a change of this number alone while the version is the
    same, as in a file for ``serve deploy``: ``serve.run`` would take each call for other code, and start all anew."""
    front = app._bound_deployment
    (devices, *_) = front.init_args
    for deployment in (front, devices._bound_deployment):
        deployment._version = version
    return app


class Application:
    """``devices`` servers and their router; there is one at a time."""

    def __init__(self, devices: int = 2, sessions: int = 4, **options: Any):
        cluster()
        with sockets.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.sessions, self.options = sessions, options
        self.scale(devices)

    def scale(self, devices: int) -> None:
        """Begin, or go on with another number of devices."""
        make = functools.partial(service, self.sessions)
        common: dict[str, Any] = {"gpus": 0.0, "cpus": 0.1, "port": self.port, "secret": str(self.port)}
        app = application(make, devices=devices, **common, **self.options)
        serve.run(pinned(app, str(self.port)), name=NAME, route_prefix=None)

    def url(self, path: str, scheme: str = "http") -> str:
        return Address(self.port).url(path, scheme)

    def devices(self) -> list[dict[str, Any]]:
        """Of each that answers: address, sessions, capacity and process."""
        handle = serve.get_deployment_handle("Device", NAME)
        answers = handle.broadcast("place").results(timeout_s=30, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]


@functools.cache
def shared() -> Application:
    """For tests that change nothing of it."""
    return Application()


@contextlib.asynccontextmanager
async def open_socket(_: Any) -> AsyncIterator[Socket]:
    """``WS /v1/avatar/stream`` by the router of a cluster."""
    async with Socket.open(shared()) as watcher:
        watcher.transit += 2
        yield watcher
