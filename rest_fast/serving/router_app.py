"""The routes of a :class:`rest_fast.serving.router.Router`: those of a server, but OmniRT's socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest

from rest_fast.serving.app import OFFER, bare, for_the_allowed, mount_page, read_body
from rest_fast.serving.router import Router
from rest_fast.serving.webrtc import read_offer


def create_router_app(router: Router, *, page: bool = True) -> FastAPI:
    """``page``: whether the live page is served, at ``/``. ``/metrics`` is about the router alone."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await router.drain()

    app = bare(lifespan)
    routes = for_the_allowed(router)

    @app.get("/healthz")
    async def health() -> Response:
        """200 when there is a server that takes sessions."""
        places = [] if router.draining else await router.places()
        status = "draining" if router.draining else "ok" if places else "loading"
        return JSONResponse({"status": status, "servers": len(places)}, 200 if places else 503)

    @app.websocket("/v1/avatar/stream")
    async def avatar_stream(socket: WebSocket) -> None:
        await router.serve(socket)

    @routes.get("/v1/avatars")
    async def avatars() -> Response:
        status, content, kind = await router.first_answer("/v1/avatars")
        if status != 200:
            return Response(content, status, media_type=kind)
        capacity = sum(place.capacity for place in await router.places())
        return JSONResponse(json.loads(content) | {"capacity": capacity})

    @routes.post("/v1/avatars")
    async def upload(request: Request, crop: str = "") -> Response:
        picture = await read_body(request, "picture", router.limits.upload)
        status, content, kind = await router.upload(picture, crop)
        return Response(content, status, media_type=kind)

    @routes.get("/metrics")
    async def metrics() -> Response:
        registry = CollectorRegistry()
        registry.register(router)
        return PlainTextResponse(generate_latest(registry).decode(), media_type="text/plain; version=0.0.4")

    @routes.post("/offer")
    async def offered(request: Request) -> Response:
        """WebRTC: answered by a server, to which the visitor's packets go."""
        body = await read_body(request, "offer", OFFER)
        _, avatar, _ = read_offer(body)
        status, content, kind = await router.first_answer("/offer", body, avatar)
        return Response(content, status, media_type=kind)

    @routes.get("/v1/{path:path}")
    async def read(path: str) -> Response:
        """Pictures of faces, a recording, the schema."""
        status, content, kind = await router.first_answer(f"/v1/{quote(path)}")
        return Response(content, status, media_type=kind)

    app.include_router(routes)
    if page:
        mount_page(app)
    return app
