"""What a client that leaves does to the server's side of its connection."""

from __future__ import annotations

import asyncio

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect

from rest_fast.serving.connection import Connection, first_to_end, guarded
from tests.kit.serving import fake_service


@pytest.fixture(scope="module")
def service():
    made = fake_service(sessions=1)
    yield made
    made.engine.close()


@pytest.mark.parametrize("left", ["by an error of the network", "by closing"])
def test_a_client_that_has_left_is_no_failure(service, left, caplog):
    """Two tasks write to it; the first one that finds it gone may not be the one whose error is looked at."""
    came = asyncio.Queue()

    async def send(message):
        if message["type"] == "websocket.send" and left == "by an error of the network":
            raise OSError
        if message["type"] == "websocket.send":
            raise RuntimeError("Unexpected ASGI message")  # uvicorn, behind the end

    async def talk():
        socket = WebSocket({"type": "websocket", "headers": []}, came.get, send)
        await came.put({"type": "websocket.connect"})
        await socket.accept()
        connection = Connection(socket, service)
        if left == "by closing":
            await came.put({"type": "websocket.disconnect", "code": 1000})
            with pytest.raises(WebSocketDisconnect):
                await connection.receive()

        async def write():
            with pytest.raises(WebSocketDisconnect):
                await connection.send("a")
            await first_to_end(connection.send("b"), connection.send("c"))

        await guarded(connection, write)

    asyncio.run(asyncio.wait_for(talk(), 10))
    assert service.counts.failed == 0 and not caplog.records
