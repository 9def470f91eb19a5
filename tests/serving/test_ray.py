"""Two servers on a cluster of Ray: what a client loses and sees twice where one is drained, and where one is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal

import numpy as np
import pytest
from websockets.asyncio.client import connect

pytest.importorskip("ray", reason="ray is not installed: make ray")

from ray.serve.exceptions import DeploymentID, DeploymentUnavailableError

from rest_fast.errors import ArgumentError
from rest_fast.serving.access import Access
from rest_fast.serving.ray_app import FrontServer, application, build
from rest_fast.serving.router import Place
from tests.kit.ray_clusters import Application
from tests.kit.routers import Counting, counting_up
from tests.kit.serving import ask, ended

pytestmark = pytest.mark.slow  # a cluster has to start


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 300))


async def until(condition, seconds=90):
    """Of something that is asked in a thread."""
    end = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < end, "it never came"
        await asyncio.sleep(0.2)


async def watching(client, work):
    """The client watches while the work is done."""
    doing = asyncio.ensure_future(work)
    while not doing.done():
        await client.watch(1)
    return await doing


async def until_one_moved(*clients):
    while not any(client.moves for client in clients):
        await asyncio.sleep(0.05)
    await asyncio.sleep(1)


def report(what, client, record):
    record("what", what)
    for name in ("lost", "repeated"):
        record(name, getattr(client, name))
    record("gap", round(client.gap, 2))
    print(f"{what}: {client.lost} lost, {client.repeated} repeated, a gap of {client.gap:.2f} s")


@pytest.fixture(scope="module")
def faces():
    return Application(devices=2, sessions=2, snapshots=1.0)


def test_a_device_too_many_drains_and_its_session_goes_on_elsewhere(faces, record_property):
    async def talk():
        sound = counting_up(4)  # longer than a drain takes; int16 has no more numbers
        async with Counting.open(faces) as one, Counting.open(faces) as other:
            for client in (one, other):
                await client.push(sound)
                await client.end("a")
                await client.watch(10)
            assert sorted(device["sessions"] for device in await asyncio.to_thread(faces.devices)) == [1, 1]
            scaling = asyncio.to_thread(faces.scale, 1)
            await asyncio.gather(watching(one, scaling), watching(other, until_one_moved(one, other)))
            moved, stayed = (one, other) if one.moves else (other, one)
            for client in (one, other):
                while not client.finished:
                    await client.watch(1)
                np.testing.assert_array_equal(client.sound[client.sound != 0], sound)
            assert [move["reason"] for move in moved.moves] == ["drained"] and moved.moves[0]["resumed"]
            report("drained", moved, record_property)
            assert (moved.lost, moved.repeated) == (0, 0)
            assert not stayed.moves and (stayed.lost, stayed.repeated) == (0, 0)
        await until(lambda: [device["sessions"] for device in faces.devices()] == [0])

    run(talk())


def test_a_device_that_is_killed_loses_nothing_that_was_said_and_comes_back(faces, record_property):
    async def talk():
        await asyncio.to_thread(faces.scale, 2)
        await until(lambda: len(faces.devices()) == 2)
        async with Counting.open(faces) as client:
            sound = counting_up(4)
            await client.push(sound)
            await client.end("a")
            await client.watch(60)
            (device,) = [one for one in await asyncio.to_thread(faces.devices) if one["sessions"]]
            os.kill(device["process"], signal.SIGKILL)
            while not client.finished:
                await client.watch(1)
            assert set(sound) <= set(client.sound)
            (move,) = client.moves
            assert (move["reason"], move["resumed"], move["epoch"]) == ("lost", True, 1)
            report("killed", client, record_property)
            assert client.lost == 0 and client.repeated < 25 * 4  # a second, and what a busy machine adds
            epochs = [frame.epoch for frame, _, _ in client.frames]
            assert epochs == sorted(epochs) and set(epochs) == {0, 1}
        await until(lambda: len(faces.devices()) == 2)  # Ray has made another one
        await until(lambda: [device["sessions"] for device in faces.devices()] == [0, 0])

    run(talk())


def test_where_all_are_full_the_answer_is_a_servers_own(faces):
    async def talk():
        async with contextlib.AsyncExitStack() as opened:
            for _ in range(4):
                await opened.enter_async_context(Counting.open(faces))
            async with connect(faces.url("/v1/avatar/stream", "ws")) as late:
                await late.send(json.dumps({"type": "session.start", "avatar": "fake"}))
                told, closed = await ended(late)
        assert [one["code"] for one in told] == ["CAPACITY_EXHAUSTED"] and closed == 1013
        assert (await ask(faces.url("/healthz"))) == (200, {"status": "ok", "servers": 2})

    run(talk())


def test_options_that_mean_nothing_are_refused_before_anything_starts():
    for options, name in (
        ({"device": "cpu", "replicas": "2"}, "replicas"),
        ({"devices": "two"}, "devices"),
        ({"devices": None}, "devices"),  # of a file with nothing behind the name
        ({"devices": 0}, "devices"),
        ({"snapshots": "-1"}, "snapshots"),
        ({"host": "0.0.0.0"}, "token"),
    ):
        with pytest.raises(ArgumentError, match=name):
            build(options)
    with pytest.raises(ArgumentError, match="devices"):
        application(lambda: None, devices=True)


@pytest.mark.parametrize("name, gpus", [("cuda", 1.0), ("cuda:0", 1.0), ("cpu", 0.0)])
def test_a_device_of_cuda_has_a_gpu_of_its_own(name, gpus):
    (devices, *_) = build({"device": name})._bound_deployment.init_args
    assert devices._bound_deployment.ray_actor_options["num_gpus"] == gpus


def test_a_machine_that_hangs_and_one_that_is_gone_are_no_fault_of_the_router():
    """Ray's answers stand in: one device answers, then another keeps Ray waiting, then there is none."""
    answer = {"url": "http://127.0.0.1:1", "sessions": 0, "capacity": 2, "process": 1}
    answers = [
        [answer, RuntimeError("died")],
        TimeoutError("waiting"),
        DeploymentUnavailableError(DeploymentID("Device")),
    ]

    class Devices:
        def broadcast(self, method):
            return self

        async def results_async(self, **_):
            found = answers.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

    async def talk():
        front = FrontServer(Devices(), "secret", Access(), "127.0.0.1", 0, None)
        try:
            assert [await front.places() for _ in range(3)] == [[Place(answer["url"], "secret", 0, 2)]] * 2 + [[]]
        finally:
            await asyncio.to_thread(front.running.end)

    run(talk())
