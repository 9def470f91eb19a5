"""Ray Serve: a server on each device of a cluster, and one address for all of them. docs/scaling.md says how to use it.

Ray places the servers, watches over them, and makes new ones where one is lost. Sound and frames do not pass through
it: its proxy keeps what a client does not read, without an end. So each server listens by itself, and so does the
router, which relays.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

import rest_fast
from rest_fast.errors import ArgumentError
from rest_fast.serving.access import Access
from rest_fast.serving.limits import Limits
from rest_fast.serving.router import Place, Router
from rest_fast.serving.router_app import create_router_app
from rest_fast.serving.run import InThread, open_service, server, server_of
from rest_fast.serving.service import Service

ANSWERS = 5.0  # seconds in which a device has to say how it is; it counts as lost then


class DeviceServer:
    """A server with a model of its own. ``make``: opens its service, where the device is."""

    def __init__(self, make: Callable[[], Service], token: str):
        self.service = make()
        self.service.access, self.service.routed = Access.of(token), True
        self.host = ray.util.get_node_ip_address()
        self.running = InThread(server(self.service, host=self.host, port=0, page=False))

    async def place(self) -> dict[str, Any]:
        """Its address, the sessions that are open, how many its engine would serve, and its process."""
        engine, url = self.service.engine, f"http://{self.host}:{self.running.port}"
        return {"url": url, "sessions": len(engine.seats), "capacity": engine.capacity(), "process": os.getpid()}

    def check_health(self) -> None:
        if not self.running.alive or self.service.engine.closed:
            raise RuntimeError("device: expected a server that listens, got one that has ended")

    def __del__(self) -> None:
        """Ray calls this where a device is not wanted any more: its sessions are moved."""
        if hasattr(self, "running"):
            self.running.end()


class FrontServer:
    """The router, which listens at ``host`` and ``port`` of the machine that Ray puts it on."""

    def __init__(
        self, devices: DeploymentHandle, token: str, access: Access, host: str, port: int, snapshots: float | None
    ):
        self.devices, self.token = devices, token
        self.latest: list[Place] = []
        self.router = Router(self.places, access=access, snapshots=snapshots)
        app = create_router_app(self.router)
        self.running = InThread(server_of(app, self.router, host=host, port=port))

    async def places(self) -> list[Place]:
        """Of the devices that answer; those that drain are not asked by Ray. A machine that hangs keeps the answers of
        all others waiting, so then it is those of before, which are tried one by one."""
        try:
            asked = self.devices.broadcast("place")
            found = await asked.results_async(timeout_s=ANSWERS, return_exceptions=True)
        except TimeoutError:
            return self.latest
        except RayServeException:  # no device is there
            found = []
        answers = [answer for answer in found if not isinstance(answer, BaseException)]
        self.latest = [Place(a["url"], self.token, a["sessions"], a["capacity"]) for a in answers]
        return self.latest

    def check_health(self) -> None:
        if not self.running.alive:
            raise RuntimeError("front: expected a router that listens, got one that has ended")

    def __del__(self) -> None:
        if hasattr(self, "running"):
            self.running.end()


Device = serve.deployment(DeviceServer, name="Device", max_ongoing_requests=100, health_check_period_s=2.0)
Front = serve.deployment(FrontServer, name="Front", ray_actor_options={"num_cpus": 0.5})


def application(
    make: Callable[[], Service],
    *,
    devices: int = 1,
    gpus: float = 1.0,
    cpus: float = 1.0,
    access: Access | None = None,
    host: str = "127.0.0.1",
    port: int = 8766,
    snapshots: float | None = None,
    secret: str | None = None,
) -> serve.Application:
    """For ``serve.run(application(...), route_prefix=None)``.

    Args:
        make: opens the service of one device, in a process of its own.
        devices: how many; Ray changes it while the application runs.
        gpus, cpus: that each of them takes.
        access: who may come, by the router's address.
        host, port: where the router listens; all devices are asked for by their own addresses.
        snapshots: see :class:`rest_fast.serving.router.Router`.
        secret: between the router and its servers; None: a random one.
    Raises: :class:`rest_fast.ArgumentError`.
    """
    if type(devices) is not int or devices < 1:
        raise ArgumentError(f"application: devices: expected an integer of at least 1, got {devices!r}")
    if snapshots is not None and not snapshots > 0:
        raise ArgumentError(f"application: snapshots: expected seconds above 0 or None, got {snapshots!r}")
    token = secret or secrets.token_urlsafe(24)
    served = Device.options(
        num_replicas=devices,
        ray_actor_options={"num_gpus": gpus, "num_cpus": cpus},
        graceful_shutdown_timeout_s=2 * Limits().drain,
    ).bind(make, token)
    return Front.bind(served, token, access or Access(), host, port, snapshots)


def _service(weights: str, device: str, sessions: int) -> Service:
    return open_service(rest_fast.load(weights, device=device), sessions=sessions)


def build(options: dict[str, Any]) -> serve.Application:
    """For ``serve run rest_fast.serving.ray_app:build weights=demo devices=2 port=8766``.

    ``weights``, ``device`` (cuda), ``sessions`` (8, at most on each), ``devices``, ``host``, ``port``, ``token``,
    ``snapshots``. Raises: :class:`rest_fast.ArgumentError` for others.
    """
    kinds: dict[str, Callable[[Any], Any]] = {
        "weights": str,
        "device": str,
        "sessions": int,
        "devices": int,
        "host": str,
        "port": int,
        "token": str,
        "snapshots": float,
    }
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in kinds:
            raise ArgumentError(f"build: expected {', '.join(kinds)}, got {name}")
        try:
            found[name] = kinds[name](value)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"build: {name}: expected a value of type {kinds[name].__name__}, got {value!r}"
            ) from None
    device = found.pop("device", "cuda")
    make = functools.partial(_service, found.pop("weights", "demo"), device, found.pop("sessions", 8))
    token = found.pop("token", None)
    if token is None and found.get("host", "127.0.0.1") != "127.0.0.1":
        raise ArgumentError(
            f"build: host: expected a token for an address that others reach, got {found['host']} alone"
        )
    return application(make, gpus=float(device.startswith("cuda")), access=Access.of(token), **found)
