"""``rest-fast serve`` as a process: it says where it listens, ends gracefully, and is not open to all by accident."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket as sockets
import subprocess
import sys
import time

import pytest
from websockets.asyncio.client import connect

from rest_fast.cli.serve import fitting
from rest_fast.serving.fake import FakeEngine
from tests.kit.serving import ask, ended


def command(*words):
    return [sys.executable, "-m", "rest_fast", "serve", *words]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_needs_a_token(host):
    env = {name: value for name, value in os.environ.items() if name != "REST_FAST_TOKEN"}
    done = subprocess.run(command("--host", host), env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--token" in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded():
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(command("--port", port), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"--port {port}: expected" in done.stderr and "in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1  # nothing of loading


def test_it_says_why_nobody_fits():
    with FakeEngine(sessions=4) as engine:
        for seconds, words in [(2.0, "no session fits while a chunk takes 2000 ms to make, at most 816 is fast enough"),
                               (0.5, "1 session fits"), (0.25, "3 sessions fit")]:  # fmt: skip
            engine.costs.chunks.clear()
            engine.costs.chunks.append(seconds)  # of 0.96 s of video, and 85 % of the time may be used
            assert fitting(engine) == words


def test_at_the_first_sigterm_nobody_new_comes_in_and_who_is_there_goes_on():
    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        command("--port", str(port), "--sessions", "2", "--no-page"), stderr=subprocess.PIPE, text=True
    )

    async def talk():
        end = time.monotonic() + 90
        while True:
            assert process.poll() is None and time.monotonic() < end, "it did not start"
            try:
                assert await ask(f"http://127.0.0.1:{port}/healthz") == (200, {"status": "ok"})
                break
            except OSError:
                await asyncio.sleep(0.2)
        url = f"ws://127.0.0.1:{port}/v1/avatar/stream"
        start = json.dumps({"type": "session.start", "avatar": "portrait"})
        async with connect(url, max_size=None) as one:
            await one.send(start)
            for _ in range(10):
                await one.recv()
            process.send_signal(signal.SIGTERM)
            while (await ask(f"http://127.0.0.1:{port}/healthz"))[0] == 200:
                await asyncio.sleep(0.05)
            async with connect(url) as late:
                await late.send(start)
                told, closed = await ended(late)
                assert [one["code"] for one in told] == ["NOT_NOW"] and closed == 1013
            for _ in range(25):  # a second of frames
                assert await one.recv()
            told, closed = await ended(one)
            assert told[-1]["code"] == "NOT_NOW" and closed == 1013

    try:
        asyncio.run(asyncio.wait_for(talk(), 150))
        assert process.wait(20) == 128 + signal.SIGTERM
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
