"""A session as bytes, from which another server goes on."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from rest_fast.errors import ProtocolError, StateError
from rest_fast.serving.protocol import Start
from rest_fast.serving.saved import Saved
from rest_fast.streaming.snapshot import SessionState
from tests.kit.routers import routed_service


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


@pytest.fixture(scope="module")
def saved():
    """A session as bytes, in the middle of speech."""
    service = routed_service(sessions=1)

    async def talk():
        async with service.viewer("fake") as viewer:
            viewer.push(np.full(32000, 500, np.int16))
            viewer.end("a")
            frames = viewer.frames()
            for _ in range(5):
                await anext(frames)
            async with viewer.still():
                found = viewer.save(Start("fake"), viewer.session.snapshot())
            await frames.aclose()
            return found

    made = asyncio.run(talk())
    yield made, service
    service.engine.close()


def test_a_session_as_bytes_comes_back_as_it_was(saved):
    made, _ = saved
    again = Saved.from_bytes(made.to_bytes())
    assert made.waiting and len(again.waiting) == len(made.waiting)
    for one, other in zip(made.waiting, again.waiting):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(getattr(other, name), value)
    for name in ("start", "ids", "position", "pushed", "age", "pts"):
        assert getattr(again, name) == getattr(made, name)
    assert again.ids == ["a"] and again.position == pytest.approx(5 / 25)


def test_an_interrupt_before_the_first_frame_ends_nothing():
    """It takes back all that waits, and there is nothing to be held."""
    service = routed_service(sessions=1)

    async def talk():
        async with service.viewer("fake") as viewer:
            viewer.pacer.buffer = 0.5
            frames = viewer.frames()
            first = asyncio.ensure_future(anext(frames))
            while not viewer.pacer.waiting:
                await asyncio.sleep(0.005)
            viewer.interrupt()
            assert not viewer.pacer.waiting and (await first).epoch == 1
            await frames.aclose()

    run(talk())
    service.engine.close()


def test_frames_that_an_interrupt_has_left_are_shown_behind_a_move():
    """They end a block of the epoch before; a client that knows the move would take them for seen."""
    service = routed_service(sessions=2)

    async def talk():
        async with service.viewer("fake") as viewer:
            viewer.push(np.full(32000, 500, np.int16))
            frames = viewer.frames()
            for _ in range(3):  # of a block of 8
                await anext(frames)
            viewer.interrupt()
            async with viewer.still():
                made = viewer.save(Start("fake"), viewer.session.snapshot())
            await frames.aclose()
            assert made.pts == pytest.approx(3 / 25) and {frame.epoch for frame in made.waiting} == {0}
            async with service.viewer("fake", saved=Saved.from_bytes(made.to_bytes())) as other:
                frames = other.frames()
                shown = [await anext(frames) for _ in range(6)]
                await frames.aclose()
            numbers = [round(one.pts * 25) for one in shown if not one.held]
            assert numbers == list(range(3, 3 + len(numbers)))
            assert {one.epoch for one in shown} == {1}

    run(talk())
    service.engine.close()


def test_what_no_server_has_written_is_refused_by_its_name(saved):
    made, service = saved

    def changed(**about):
        state = SessionState.from_bytes(made.to_bytes()[4:])
        state.meta["viewer"] |= about
        return b"RFS1" + state.to_bytes()

    columns = SessionState.from_bytes(made.to_bytes()[4:]).meta["viewer"]["columns"]
    for data, name in (
        (b"RFS2" + made.to_bytes()[4:], "RFS1"),
        (b"RFS1" + made.state.to_bytes(), "viewer"),
        (b"RFS1", "snapshot"),
        (changed(start={"avatar": 1}), "start"),
        (changed(ids=[1]), "ids"),
        (changed(age="1"), "age"),
        (changed(position=float("nan")), "position"),
        (changed(columns=columns | {"samples": [10**6] * len(made.waiting)}), "samples"),
        (changed(columns=columns | {"pts": []}), "columns"),
    ):
        with pytest.raises(StateError, match=name):
            Saved.from_bytes(data)

    async def talk():
        async with service.viewer("fake", seed=1, saved=made):
            pass

    with pytest.raises(ProtocolError, match="seed"):
        asyncio.run(talk())
    until = time.monotonic() + 5
    while service.engine.seats:  # the worker takes the seat away
        assert time.monotonic() < until, "a session that was refused keeps its seat"
        time.sleep(0.01)
