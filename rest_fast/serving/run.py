"""Opens a service for a model and runs the server until it is told to end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from rest_fast.errors import ArgumentError
from rest_fast.media.provenance import Label
from rest_fast.model import ASSETS, Model
from rest_fast.serving.app import create_app
from rest_fast.serving.limits import Limits
from rest_fast.serving.service import Service

SHIPPED = {"portrait": "portrait.png", "portrait_2": "portrait_2.png"}


def open_service(
    model: Model,
    *,
    sessions: int = 8,
    portraits: Sequence[Path] = (),
    limits: Limits | None = None,
    label: str | None = None,
) -> Service:
    """An engine of the model, measured and so warm, and its faces: the shipped ones, and ``portraits`` by their file
    names without endings. ``label``: a line of text in the corner of all pictures."""
    limits = limits or Limits()
    mark = None if label is None else Label(label, model.config.width, model.config.height)
    service = Service(model, model.engine(sessions=sessions, backlog=limits.backlog), limits=limits, mark=mark)
    faces = {name: ASSETS / "demo" / file for name, file in SHIPPED.items()}
    for path in portraits:
        if path.stem in faces:
            raise ArgumentError(f"portrait {path}: expected a name that no other portrait has, got {path.stem}")
        faces[path.stem] = path
    for name, path in faces.items():
        shipped = name in SHIPPED
        service.avatars.shipped[name] = model.prepare(path, crop="center" if shipped else None)
    return service


class Ends(Protocol):
    """What a server serves, a service or a router: it lets visitors go before it ends."""

    limits: Limits
    draining: bool

    @property
    def busy(self) -> bool:
        """Whether visitors are there."""

    async def drain(self) -> None:
        """Let nobody new in, and wait for those who are there."""


class Server(uvicorn.Server):
    """Ends gracefully at the first signal: visitors may go on for a while, nobody new is let in."""

    service: Ends
    loop: asyncio.AbstractEventLoop

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.service.draining or not self.service.busy:
            super().handle_exit(sig, frame)
            return
        self._ending = asyncio.run_coroutine_threadsafe(self._drain(sig), self.loop)

    async def _drain(self, sig: int) -> None:
        await self.service.drain()
        super().handle_exit(sig, None)

    async def startup(self, sockets: Any = None) -> None:
        """As uvicorn does it. A client that has gone without a word, or reads nothing, is forgotten by the system, too:
        a connection that is closed while something is unread would stay for as long as its other end exists."""
        await super().startup(sockets)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = round(2000 * self.service.limits.stall)  # what it accepts has the same
            for listening in (one for started in self.servers for one in started.sockets):
                if listening.family in (socket.AF_INET, socket.AF_INET6):
                    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    async def serve(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)


def server(service: Service, *, host: str = "127.0.0.1", port: int = 8766, page: bool = True) -> Server:
    return server_of(create_app(service, page=page), service, host=host, port=port, routed=service.routed)


def server_of(app: FastAPI, service: Ends, *, host: str, port: int, routed: bool = False) -> Server:
    """A server of ``app``, which serves ``service``."""
    limits = service.limits
    largest = max(limits.sound, limits.upload, limits.state if routed else 0)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        ws_max_size=2 * largest,  # ours refuses by name, before this one cuts the connection
        ws_ping_interval=20,
        ws_ping_timeout=20,  # a half-open connection ends with it
        timeout_graceful_shutdown=2,
    )
    made = Server(config)
    made.service = service
    return made


class InThread:
    """A server in a thread of its own, from here to :meth:`end`, beside what else a process does."""

    def __init__(self, server: Server):
        self.server = server
        self._thread = threading.Thread(target=server.run, name="rest_fast-serve", daemon=True)
        self._thread.start()
        while not server.started:
            if not self._thread.is_alive():
                config = server.config
                raise ArgumentError(f"server: expected to listen at {config.host} port {config.port}, which failed")
            self._thread.join(0.01)

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        """As at a first SIGTERM: visitors may go on for a while, nobody new is let in."""
        if self.alive:
            asyncio.run_coroutine_threadsafe(self.server.service.drain(), self.server.loop).result()
            self.server.should_exit = True
            self._thread.join()


def run(service: Service, *, host: str = "127.0.0.1", port: int = 8766, page: bool = True) -> None:
    """Serve until SIGINT or SIGTERM."""
    try:
        server(service, host=host, port=port, page=page).run()
    finally:
        service.engine.close()
