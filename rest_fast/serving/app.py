"""The server: HTTP and WebSocket routes over one :class:`~rest_fast.serving.service.Service`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles

from rest_fast.model import ASSETS
from rest_fast.serving import protocol, webrtc
from rest_fast.serving.avatars import Crop, jpeg
from rest_fast.serving.connection import Host
from rest_fast.serving.metrics import exposition
from rest_fast.serving.omnirt import realtime
from rest_fast.serving.protocol import ProtocolError
from rest_fast.serving.service import Service
from rest_fast.serving.stream_socket import stream

STATUS = {"REFUSED": 403, "NO_SUCH_AVATAR": 404, "TOO_LARGE": 413, "TOO_MANY": 429}
STATUS |= {"NOT_NOW": 503, "CAPACITY_EXHAUSTED": 503}
OFFER = 256 * 1024  # bytes of a session description
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; frame-ancestors 'none'",
}


def create_app(service: Service, *, page: bool = True) -> FastAPI:
    """``page``: whether the live page is served, at ``/``."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.drain()

    app = bare(lifespan)
    app.state.service = service

    @app.get("/healthz")
    async def health() -> Response:
        """200 when sessions are taken."""
        ok = service.status == "ok"
        return JSONResponse({"status": service.status}, 200 if ok else 503)

    @app.websocket("/v1/avatar/stream")
    async def avatar_stream(socket: WebSocket) -> None:
        await stream(socket, service)

    @app.websocket("/v1/avatar/realtime")
    async def avatar_realtime(socket: WebSocket) -> None:
        await realtime(socket, service)

    app.include_router(guarded(service))
    if page:
        mount_page(app)
    return app


def bare(lifespan: Any) -> FastAPI:
    """An app without routes, whose answers have our headers, and whose refusals are JSON."""
    app = FastAPI(title="rest_fast", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def add_headers(request: Request, go_on: Any) -> Response:
        found: Response = await go_on(request)
        found.headers.update(HEADERS)
        return found

    @app.exception_handler(ProtocolError)
    async def refused(_: Request, error: ProtocolError) -> Response:
        return _refused(error, STATUS.get(error.code, 400))

    return app


def mount_page(app: FastAPI) -> None:
    """The live page at ``/``, behind all other routes."""
    files = StaticFiles(directory=str(resources.files("rest_fast.serving") / "page"), html=True)
    app.mount("/", files)


def for_the_allowed(host: Host) -> APIRouter:
    """Routes that refuse whom the ``access`` of ``host`` refuses."""

    def allowed(request: Request) -> None:
        refusal = host.access.refusal(request.headers, request.query_params)
        if refusal is not None:
            raise ProtocolError("REFUSED", refusal)

    return APIRouter(dependencies=[Depends(allowed)])


def guarded(service: Service) -> APIRouter:
    """All routes but the WebSockets, which see to it themselves, the page's files, which hold nothing, and what a load
    balancer asks."""
    routes = for_the_allowed(service)

    @routes.get("/v1/avatars")
    async def avatars() -> dict[str, Any]:
        return {"avatars": service.avatars.names(), "capacity": service.engine.capacity()}

    @routes.post("/v1/avatars")
    async def upload(request: Request, crop: str = "", name: str = "") -> dict[str, Any]:
        """The body is the picture itself, so that no name of a file comes along. A router gives it a name."""
        if not service.routed:
            name = ""
            service.uploads.require(time.monotonic())
        picture = await read_body(request, "picture", service.limits.upload)
        name, avatar = await service.avatars.upload(picture, _crop(crop), name)
        return {"avatar": name, "crop": list(avatar.box)}

    @routes.get("/v1/avatars/{name}/picture")
    async def picture(name: str) -> Response:
        return Response(jpeg(service.avatars.find(name).picture), media_type="image/jpeg")

    @routes.get("/v1/speech")
    async def speech() -> Response:
        """A recording to try a face with."""
        return Response((ASSETS / "demo" / "speech.wav").read_bytes(), media_type="audio/wav")

    @routes.get("/v1/schema")
    async def schema() -> dict[str, Any]:
        return protocol.schema()

    @routes.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(exposition(service), media_type="text/plain; version=0.0.4")

    @routes.post("/offer")
    async def offered(request: Request) -> dict[str, str]:
        return await webrtc.offer(service, await read_body(request, "offer", OFFER))

    return routes


def _refused(error: ProtocolError, status: int) -> Response:
    return JSONResponse({"type": "error", "code": error.code, "message": str(error)}, status)


async def read_body(request: Request, name: str, limit: int) -> bytes:
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > limit:
            raise ProtocolError("TOO_LARGE", f"{name}: expected at most {limit} bytes, got more")
    return bytes(found)


def _crop(text: str) -> Crop:
    """``""`` for the largest face, ``center``, or four numbers with commas between them."""
    if text in ("", "center"):
        return text or None
    try:
        left, top, right, bottom = (float(word) for word in text.split(","))
    except ValueError:
        raise ProtocolError("BAD_MESSAGE", "crop: expected center or left,top,right,bottom, got other text") from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ProtocolError("BAD_MESSAGE", "crop: expected finite numbers, got others")
    return left, top, right, bottom
