"""A visitor over a real socket whose face is made by the second family, SoulX-FlashHead."""

from __future__ import annotations

import asyncio

import numpy as np

from rest_fast.serving.service import Limits, Service
from tests.kit import flashhead
from tests.kit.serving import RATE, Served, Socket
from tests.kit.toys import photo


def test_speech_is_shown_with_its_sound_and_an_interrupt_ends_it():
    model = flashhead.small()
    spoken = (8000 * np.sin(np.arange(2 * RATE) * 0.2)).astype(np.int16)

    async def talk(served):
        async with Socket.open(served, "raw") as watcher:
            await watcher.push(spoken)
            await watcher.end("one")
            got = await watcher.take(75)
            while not watcher.finished:  # a busy machine's first frames are late, and idle
                got += await watcher.take(25)
            got += await watcher.take(25)  # frames that waited when the end was told
            assert watcher.finished == [("one", False)]
            heard = np.concatenate([one.sound for one in got])
            start = np.flatnonzero(heard)[0] - np.flatnonzero(spoken)[0]
            np.testing.assert_array_equal(heard[start : start + len(spoken)], spoken)
            assert all(one.picture.shape == (32, 32, 3) for one in got)
            assert len({one.picture.tobytes() for one in got}) > 25  # of 50 with speech; the machine may hold some
            await watcher.push(np.tile(spoken, 3))
            await watcher.end("two")
            await watcher.take(25)
            await watcher.interrupt()
            while len(watcher.finished) < 2:
                await watcher.take(10)
            assert watcher.finished == [("one", False), ("two", True)]

    with model.engine(sessions=2, admission=False) as engine:
        service = Service(model, engine, limits=Limits())
        service.avatars.shipped["fake"] = model.prepare(photo(), crop="center")
        with Served(service, page=False) as served:
            asyncio.run(asyncio.wait_for(talk(served), 60))
