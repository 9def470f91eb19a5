"""LiveKit Agents' own runner, output and receiver around a face. What every transport owes is in the contract."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("livekit.agents", reason="livekit-agents is not installed: make front-ends")

from livekit import rtc
from livekit.agents.voice import avatar as lk

from rest_fast.errors import CapacityExhausted, MediaError
from rest_fast.model import ASSETS
from rest_fast.serving import fake
from rest_fast.serving.livekit_avatar import AvatarSession, serve_room
from tests.kit.livekit_rooms import AGENT, FACE, Agent, Room, frames_of, in_process, remote
from tests.kit.serving import RATE, fake_service, now
from tests.kit.toys import sound

ROOT = Path(__file__).resolve().parents[2]
LATE = 0.1  # seconds between a picture and its sound: two of the screen's frames, and what a busy machine adds


@pytest.fixture(scope="module")
def service():
    made = fake_service(sessions=3)
    yield made
    made.engine.close()


@pytest.fixture(params=[in_process, remote])
def adapter(request, service):
    return lambda: request.param(service)


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


def speech(seconds):
    return np.rint(sound(RATE, seconds).clip(-1, 1) * 20000).astype(np.int16)


async def until(condition, seconds=15):
    end = now() + seconds
    while not condition():
        assert now() < end, "it never came"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def worker(service, agent=None):
    """``serve_room`` with an agent who is there: its output, the worker's room, and the task."""
    mine, theirs = Room(AGENT), Room(FACE)
    voice = lk.DataStreamAudioOutput(mine, destination_identity=FACE, sample_rate=RATE, wait_playback_start=True)
    task = asyncio.create_task(serve_room(theirs, service.engine, service.engine.avatar, agent=agent, sample_rate=RATE))
    mine.join(theirs)
    await until(lambda: theirs.handlers and theirs.local_participant.track_publications)
    try:
        yield mine, theirs, voice, task
    finally:
        theirs.vanish()
        await asyncio.gather(task, return_exceptions=True)
        assert not theirs.handlers and not theirs.local_participant.methods
        assert not set(theirs.waited_for) & {"disconnected", "participant_disconnected"}


def test_a_burst_does_not_make_sound_lead_the_picture(service):
    """Through the library's sources and tracks, to the streams that read them."""

    async def talk():
        agent, room = Agent(), Room()
        face = AvatarSession(service.engine, service.engine.avatar, sample_rate=RATE)
        await face.start(agent, room)
        await until(lambda: len(room.local_participant.track_publications) == 2)
        tracks = {p.name: p.track for p in room.local_participant.track_publications.values()}
        pictures, pieces = [], []

        async def watch():
            async for event in rtc.VideoStream(tracks["avatar_video"], format=rtc.VideoBufferType.RGB24):
                code = fake.read(np.frombuffer(event.frame.data, np.uint8).reshape(fake.SIDE, fake.SIDE, 3))
                pictures.append((now(), code.level))

        async def listen():
            async for event in rtc.AudioStream(tracks["avatar_audio"], sample_rate=RATE, num_channels=1):
                pieces.append((now(), fake.level_of(np.frombuffer(event.frame.data, np.int16))))

        tasks = [asyncio.create_task(watch()), asyncio.create_task(listen())]
        lags = []
        for _ in range(3):
            shown, heard = len(pictures), len(pieces)
            for frame in frames_of(speech(4)):
                await agent.audio.capture_frame(frame)
            agent.audio.flush()
            await agent.audio.wait_for_playout()
            first = [next(at for at, level in seen if level > 5) for seen in (pictures[shown:], pieces[heard:])]
            lags.append(first[1] - first[0])
            times = [at for at, _ in pictures[shown:]]
            assert 20 < (len(times) - 1) / (times[-1] - times[0]) < 30
        for task in tasks:
            task.cancel()
        await face.aclose()
        assert abs(np.median(lags)) < LATE, lags

    run(talk())


def test_what_is_finished_is_as_long_as_what_was_said(adapter):
    """The position is that of the voice, without the silence that fills a block."""

    async def talk():
        async with adapter() as watched:
            told = []
            watched.voice.on("playback_finished", told.append)
            started = []
            watched.voice.on("playback_started", started.append)
            for _ in range(2):
                await watched.push(speech(0.7))
                await watched.end("")
                await asyncio.wait_for(watched.voice.wait_for_playout(), 20)
            assert [(round(event.playback_position, 3), event.interrupted) for event in told] == [(0.7, False)] * 2
            assert len(started) == 2

    run(talk())


def test_a_clear_is_answered_at_once(adapter):
    """Also where nothing was played yet, and where the runner has not even seen it; what follows is heard."""

    async def talk():
        async with adapter() as watched:
            told = []
            watched.voice.on("playback_finished", lambda event: told.append((now(), event)))
            for waits in (lambda: watched.tap.taken and isinstance(watched.tap.taken[-1][1], rtc.AudioFrame), None):
                watched.tap.taken.clear()
                if waits:
                    await watched.push(speech(3))
                    await until(waits)
                else:
                    await watched.voice.capture_frame(frames_of(speech(0.03))[0])  # less than a receiver's frame
                told.clear()
                at = now()
                watched.voice.clear_buffer()
                watched.voice.flush()
                await watched.voice.capture_frame(frames_of(speech(0.1))[0])  # waits for the answer
                await until(lambda: told)
                assert told[0][0] - at < 1 and len(told) == 1 and told[0][1].interrupted
                assert (told[0][1].playback_position > 0) == (waits is not None)
                watched.voice.flush()
                await asyncio.wait_for(watched.voice.wait_for_playout(), 20)
                assert len(told) == 2 and not told[1][1].interrupted
                assert told[1][1].playback_position == pytest.approx(0.1)

    run(talk())


def test_clears_that_come_late_or_twice_change_nothing(adapter):
    async def talk():
        async with adapter() as watched:
            for _ in range(3):
                watched.voice.clear_buffer()
            await watched.push(speech(2))
            await asyncio.sleep(0.5)
            for _ in range(3):
                watched.voice.clear_buffer()
                await asyncio.sleep(0)
            watched.voice.flush()
            await asyncio.wait_for(watched.voice.wait_for_playout(), 5)
            assert [interrupted for _, interrupted in watched.finished] == [True]
            watched.voice.clear_buffer()
            await watched.push(speech(0.5))
            await watched.end("next")
            await asyncio.wait_for(watched.voice.wait_for_playout(), 20)
            assert watched.finished[-1] == ("next", False) and len(watched.finished) == 2

    run(talk())


def test_other_rates_and_channels_are_taken(service):
    async def talk():
        async with in_process(service) as watched:
            stereo = np.repeat(speech(1.5)[:, None], 2, 1)[::2]  # 0.75 s at 16 kHz
            await watched.voice.capture_frame(rtc.AudioFrame(stereo.tobytes(), RATE, 2, len(stereo)))
            await watched.end("")
            event = await asyncio.wait_for(watched.voice.wait_for_playout(), 20)
            assert event.playback_position == pytest.approx(0.75, abs=0.01)

    run(talk())


@pytest.mark.parametrize(
    "attributes, error",
    [
        ({"sample_rate": "5", "num_channels": "1"}, MediaError),
        ({"sample_rate": "16000", "num_channels": "9"}, MediaError),
        ({"sample_rate": "16000"}, ValueError),  # the library's
        ({"sample_rate": "many", "num_channels": "1"}, ValueError),
    ],
)
def test_a_bad_stream_ends_its_own_room_with_one_error(service, attributes, error):
    async def talk():
        async with in_process(service) as neighbour:
            async with worker(service) as (mine, _, _, task):
                stream = await mine.local_participant.stream_bytes(
                    "x", topic="lk.audio_stream", destination_identities=[FACE], attributes=attributes
                )
                await stream.write(bytes(36000))
                await stream.aclose()
                with pytest.raises(error):
                    await asyncio.wait_for(task, 10)
            await until(lambda: len(service.engine.seats) == 1)
            await neighbour.push(speech(0.5))
            await neighbour.end("mine")
            await asyncio.wait_for(neighbour.voice.wait_for_playout(), 20)
            assert neighbour.finished == [("mine", False)]

    run(talk())


def test_in_process_bad_sound_ends_the_agents_session(service, caplog):
    async def talk():
        agent, room = Agent(), Room()
        face = AvatarSession(service.engine, service.engine.avatar, sample_rate=RATE)
        await face.start(agent, room)
        await agent.audio.capture_frame(rtc.AudioFrame(bytes(200), 5, 1, 100))
        agent.audio.flush()
        await asyncio.wait_for(agent.audio.wait_for_playout(), 10)
        await until(lambda: agent.ended and not service.engine.seats)
        await agent.audio.capture_frame(frames_of(speech(0.1))[0])
        agent.audio.flush()
        assert (await asyncio.wait_for(agent.audio.wait_for_playout(), 1)).interrupted  # nobody waits for ever
        await face.aclose()

    run(talk())
    assert sum("the face has failed" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("agent_came", [False, True])
def test_a_room_that_disappears_ends_the_worker(service, agent_came):
    async def talk():
        mine, theirs = Room(AGENT), Room(FACE)
        task = asyncio.create_task(serve_room(theirs, service.engine, service.engine.avatar, sample_rate=RATE))
        if agent_came:
            mine.join(theirs)
            await until(lambda: theirs.handlers)
        await until(lambda: service.engine.seats)
        theirs.vanish()
        await asyncio.wait_for(task, 5)
        await until(lambda: not service.engine.seats)
        assert not theirs.handlers and not theirs.local_participant.methods and not theirs.waited_for

    run(talk())


def test_an_agent_who_leaves_ends_the_worker(service):
    async def talk():
        async with worker(service) as (mine, theirs, _, task):
            visitor = Room("visitor").local_participant
            visitor.kind = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD
            theirs.emit("participant_disconnected", visitor)
            await asyncio.sleep(0.1)
            assert not task.done()
            theirs.emit("participant_disconnected", mine.local_participant)
            await asyncio.wait_for(task, 5)

    run(talk())


def test_in_process_a_room_that_disappears_frees_the_session(service):
    async def talk():
        agent, room = Agent(), Room()
        face = AvatarSession(service.engine, service.engine.avatar, sample_rate=RATE)
        await face.start(agent, room)
        for frame in frames_of(speech(2)):
            await agent.audio.capture_frame(frame)
        room.vanish()
        await until(lambda: not service.engine.seats)
        agent.audio.flush()
        await asyncio.wait_for(agent.audio.wait_for_playout(), 5)
        await face.aclose()

    run(talk())


def test_nobody_subscribes_for_a_while_and_nothing_is_lost(service):
    async def talk():
        agent, room = Agent(), Room()
        room.subscribed.clear()
        face = AvatarSession(service.engine, service.engine.avatar, sample_rate=RATE)
        await face.start(agent, room)
        for frame in frames_of(speech(1)):
            await agent.audio.capture_frame(frame)
        agent.audio.flush()
        await asyncio.sleep(0.5)
        room.subscribed.set()
        event = await asyncio.wait_for(agent.audio.wait_for_playout(), 20)
        assert event.playback_position == pytest.approx(1) and not event.interrupted
        assert {p.name for p in room.local_participant.track_publications.values()} == {"avatar_audio", "avatar_video"}
        await face.aclose()
        await until(lambda: not service.engine.seats)
        assert not room.local_participant.track_publications and not room.waited_for

    run(talk())


def test_an_agent_is_refused_a_face_and_stays_as_it_was():
    service = fake_service(sessions=1)

    async def talk():
        async with in_process(service):
            agent, room = Agent(), Room()
            with pytest.raises(CapacityExhausted):
                await AvatarSession(service.engine, service.engine.avatar).start(agent, room)
            assert agent.audio is None and not room.waited_for
            with pytest.raises(CapacityExhausted):
                await serve_room(room, service.engine, service.engine.avatar)

    run(talk())
    service.engine.close()


def test_the_worker_tells_what_agents_listen_for(service):
    """The calls as they go over the wire."""

    async def talk():
        async with worker(service, agent=AGENT) as (mine, theirs, voice, _):
            for frame in frames_of(speech(0.5)):
                await voice.capture_frame(frame)
            voice.flush()
            await asyncio.wait_for(voice.wait_for_playout(), 20)
            for frame in frames_of(speech(3)):
                await voice.capture_frame(frame)
            await until(lambda: len(theirs.local_participant.calls) == 3)
            voice.clear_buffer()
            await until(lambda: len(theirs.local_participant.calls) == 4)
            names, payloads = zip(*theirs.local_participant.calls)
            assert names == ("lk.playback_started", "lk.playback_finished") * 2
            finished = json.loads(payloads[1])
            assert finished["playback_position"] == pytest.approx(0.5) and finished["interrupted"] is False
            assert json.loads(payloads[3])["interrupted"]
            assert [name for name, _ in mine.local_participant.calls] == ["lk.clear_buffer"]

    run(talk())


def test_the_guide_runs(monkeypatch, tmp_path, service):
    """Its agent, with a room that stays here and an engine that is small; its worker, with a room that is gone soon."""
    own, other = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "livekit.md").read_text(), re.S)
    shutil.copy(ASSETS / "demo" / "portrait.png", tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    agent, room, started = Agent(), Room(), []

    async def start(about, room):
        started.append((about, agent.audio))

    async def connect(*_):
        pass

    async def talk():
        guide = {"__name__": "guide"}
        exec(compile(own, "docs/livekit.md", "exec"), guide)
        monkeypatch.setattr(agent, "start", start, raising=False)
        guide["AgentSession"] = lambda: agent
        process = SimpleNamespace(userdata={})
        await asyncio.to_thread(guide["setup"], process)
        await guide["entrypoint"](SimpleNamespace(proc=process, room=room, connect=connect))
        assert started[0][0].instructions == "You are friendly." and started[0][1] is agent.audio
        await until(lambda: len(room.local_participant.track_publications) == 2, 30)
        process.userdata["face"][0].close()
        await until(lambda: agent.ended)

    async def work():
        guide, room = {}, Room(FACE)
        exec(compile(other, "docs/livekit.md", "exec"), guide)
        room.connect = room.disconnect = connect
        guide["rtc"] = SimpleNamespace(Room=lambda: room)
        task = asyncio.create_task(guide["worker"]("", "", service.engine, service.engine.avatar))
        await until(lambda: service.engine.seats)
        room.vanish()
        await task

    run(talk())
    run(work())
