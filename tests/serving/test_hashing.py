"""The configurations of docs/scaling.md, run by these programs: a visitor's requests go to one server, and others stay
where they are when a server goes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket as sockets
import subprocess
import time
from pathlib import Path

import pytest

from tests.kit.routers import Address
from tests.kit.serving import Served, Socket, ask, fake_service

FOLDER = Path(__file__).parents[2] / "examples" / "scaling"
PROGRAMS = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}
WAIT = 30  # seconds


def free_port():
    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running(program, ports, folder):
    """The program with our configuration, whose ports are others."""
    text, front = (FOLDER / PROGRAMS[program]).read_text(), free_port()
    for written, port in (("8001", ports[0]), ("8002", ports[1]), ("8080", front)):
        text = text.replace(f":{written}", f":{port}")
    path = folder / PROGRAMS[program]
    path.write_text(text)
    words = (
        ["-p", str(folder), "-c", str(path), "-g", "daemon off;"] if program == "nginx" else ["-db", "-f", str(path)]
    )
    process = subprocess.Popen([program, *words], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + WAIT
        while True:
            assert process.poll() is None, process.stderr.read()
            with contextlib.suppress(OSError):
                sockets.create_connection(("127.0.0.1", front), timeout=1).close()
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        yield Address(front)
    finally:
        process.terminate()
        process.wait(WAIT)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in PROGRAMS])
def site(request, tmp_path):
    """Two servers behind the program."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    services = [fake_service(sessions=4) for _ in range(2)]
    with contextlib.ExitStack() as opened:
        served = [opened.enter_context(Served(service, page=False)) for service in services]
        front = opened.enter_context(running(request.param, [one.port for one in served], tmp_path))
        yield front, served
    for service in services:
        service.engine.close()


class Named:
    """The site as a visitor with a name asks for it."""

    def __init__(self, front, name):
        self.front, self.name = front, name

    def url(self, path, scheme="http"):
        return self.front.url(f"{path}?visitor={self.name}", scheme)


async def home(front, served, name):
    """The server that a visitor's session comes to."""
    before = [one.service.counts.opened for one in served]
    async with Socket.open(Named(front, name)) as watcher:
        await watcher.take(5)
    (found,) = [k for k, one in enumerate(served) if one.service.counts.opened > before[k]]
    return found


def test_a_visitor_stays_with_one_server_and_with_the_other_when_it_is_gone(site):
    front, served = site
    names = ["anna", "bert", "cleo", "dora", "emil", "fay"]

    async def talk():
        homes = {name: await home(front, served, name) for name in names}
        assert set(homes.values()) == {0, 1}
        for name in names[:3]:
            assert await home(front, served, name) == homes[name]
        status, answer = await ask(Named(front, "anna").url("/v1/avatars"))
        assert status == 200 and answer["avatars"] == ["fake"]
        gone = homes["anna"]
        await asyncio.to_thread(served[gone].__exit__)
        end = time.monotonic() + WAIT
        while time.monotonic() < end:  # until the program knows
            with contextlib.suppress(Exception):
                if {await home(front, served, name) for name in names} == {1 - gone}:
                    return
        raise AssertionError("a visitor has no server")

    asyncio.run(asyncio.wait_for(talk(), 120))
