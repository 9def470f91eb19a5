"""LiveKit Agents: a face for the voice of an agent. docs/livekit.md says how to use it.

:class:`AvatarSession` publishes the face from the agent's own process, :func:`serve_room` from a worker that is a
participant of its own. Both put :class:`~rest_fast.serving.livekit_face.Face` into the library's ``AvatarRunner``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from livekit import rtc
from livekit.agents import AgentSession
from livekit.agents.voice import avatar as lk

from rest_fast.avatar import Avatar
from rest_fast.serving.livekit_face import Face, RemoteVoice, Voice
from rest_fast.serving.tasks import end_all
from rest_fast.streaming.engine import Engine

LOG = logging.getLogger(__name__)


class AvatarSession(lk.AvatarSession):
    """The face of an agent, published by the agent's own participant::

        face = AvatarSession(engine, model.prepare("anna.jpg"))
        await face.start(session, ctx.room)  # before session.start

    Args:
        engine, avatar: as in :meth:`rest_fast.Engine.session`.
        options: ``sample_rate`` of the sound that is published (24000), ``seed``, and ``mark``, see
            :class:`rest_fast.serving.pacer.Pacer`.
    """

    def __init__(self, engine: Engine, avatar: Avatar, **options: Any):
        super().__init__()
        self._room: rtc.Room | None = None
        self.engine, self.avatar, self.options = engine, avatar, options
        self._open: contextlib.AsyncExitStack | None = None

    @property
    def avatar_identity(self) -> str:
        return self._room.local_participant.identity if self._room else "rest_fast"

    @property
    def provider(self) -> str:
        return "rest_fast"

    async def start(self, agent_session: AgentSession, room: rtc.Room) -> None:
        """Raises: what :meth:`rest_fast.Engine.session` does; then the agent is as it was."""
        async with contextlib.AsyncExitStack() as opened:
            face = await Face.open(self.engine, self.avatar, **self.options)
            opened.callback(face.close)
            await super().start(agent_session, room)
            voice = Voice(face)
            opened.callback(voice.end)
            opened.push_async_callback(_take_back, room)
            runner = lk.AvatarRunner(room, audio_recv=voice, video_gen=face, options=face.options)
            await runner.start()
            opened.push_async_callback(runner.aclose)
            room.on("disconnected", self._leave)
            opened.callback(room.off, "disconnected", self._leave)
            agent_session.output.replace_audio_tail(voice)
            self._open = opened.pop_all()
        self._running = asyncio.create_task(self._run(runner, agent_session))

    async def _run(self, runner: lk.AvatarRunner, agent_session: AgentSession) -> None:
        try:
            await runner.wait_for_complete()
        except Exception:
            LOG.exception("the face has failed; the session of its agent ends")
            self._leave()
            agent_session.shutdown(drain=False)

    def _leave(self) -> None:
        self._leaving = asyncio.create_task(self.aclose())

    async def aclose(self) -> None:
        """Takes the face away; the participant stays, which is the agent's."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.aclose()
        room, self._room = self._room, None  # the base class would have the participant thrown out
        if room is not None:
            room.off("connection_state_changed", self._on_connection_state_changed)
        await super().aclose()


async def _take_back(room: rtc.Room) -> None:
    """The tracks that a runner has published."""
    for publication in list(room.local_participant.track_publications.values()):
        if publication.name in ("avatar_audio", "avatar_video") and room.isconnected():
            await room.local_participant.unpublish_track(publication.sid)


async def serve_room(
    room: rtc.Room, engine: Engine, avatar: Avatar, *, agent: str | None = None, **options: Any
) -> None:
    """Be the face of an agent that sends its sound by ``DataStreamAudioOutput``, until it leaves or the room is gone.

    Args:
        room: connected; the caller disconnects it.
        agent: identity of its participant; None: the first that is an agent.
        options: ``sample_rate`` of the sound that is published (24000), ``seed``, and ``mark``, see
            :class:`rest_fast.serving.pacer.Pacer`.
    Raises: what :meth:`rest_fast.Engine.session` does; what the agent has sent wrong, as :class:`rest_fast.MediaError`.
    """
    gone = asyncio.Event()

    def left(participant: rtc.RemoteParticipant) -> None:
        is_agent = participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        if participant.identity == agent or (agent is None and is_agent):
            gone.set()

    def disconnected() -> None:
        gone.set()

    async with contextlib.AsyncExitStack() as opened:
        for event, call in (("participant_disconnected", left), ("disconnected", disconnected)):
            room.on(event, call)
            opened.callback(room.off, event, call)
        face = await Face.open(engine, avatar, **options)
        opened.callback(face.close)
        voice = RemoteVoice(face, room, agent)
        runner = lk.AvatarRunner(room, audio_recv=voice, video_gen=face, options=face.options)
        opened.push_async_callback(runner.av_sync.aclose)
        work = asyncio.create_task(_play(runner, opened))
        ends = asyncio.create_task(gone.wait())
        opened.push_async_callback(end_all, {work, ends})
        await asyncio.wait({work, ends}, return_when=asyncio.FIRST_COMPLETED)
        if not gone.is_set():
            await work  # which has failed


async def _play(runner: lk.AvatarRunner, opened: contextlib.AsyncExitStack) -> None:
    await runner.start()  # waits for the agent
    opened.push_async_callback(runner.aclose)
    await runner.wait_for_complete()
