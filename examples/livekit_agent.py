"""An agent of LiveKit Agents with a face. What it says is a recording, so no account is needed.

python examples/livekit_agent.py face.png speech.wav                                  (a stand-in room, in this process)
python examples/livekit_agent.py face.png speech.wav --url wss://... --token ...      (a room of a LiveKit server)
"""

import argparse
import asyncio
from types import SimpleNamespace

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentSession

import rest_fast
from rest_fast import media
from rest_fast.serving.livekit_avatar import AvatarSession


class StandIn(rtc.EventEmitter):
    """What of a room an agent with a face needs: it counts what is published."""

    def __init__(self):
        super().__init__()
        self.name, self.remote_participants, self.local_participant = "stand-in", {}, self
        self.identity, self.kind, self.track_publications = "agent", rtc.ParticipantKind.PARTICIPANT_KIND_AGENT, {}
        self.state, self.frames, self.sound = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE, 0, 0.0

    def isconnected(self):
        return True

    async def publish_track(self, track, options):
        there = SimpleNamespace(sid=track.name, name=track.name, kind=track.kind, track=track)
        there.wait_for_subscription = lambda: asyncio.sleep(0)
        is_video = track.kind == rtc.TrackKind.KIND_VIDEO
        there.stream = rtc.VideoStream(track) if is_video else rtc.AudioStream(track)
        there.reading = asyncio.create_task(self.read(there.stream))
        return self.track_publications.setdefault(track.name, there)

    async def unpublish_track(self, sid):
        await self.track_publications.pop(sid).stream.aclose()

    async def read(self, stream):
        async for event in stream:
            if isinstance(event, rtc.VideoFrameEvent):
                self.frames += 1
            else:
                self.sound += event.frame.duration * bool(np.any(event.frame.data))


async def recording(sound):
    """In pieces of 0.1 s, as synthesis has them."""
    samples, size = (sound.mono.clip(-1, 1) * 32767).astype(np.int16), sound.rate // 10
    for first in range(0, len(samples), size):
        piece = samples[first : first + size]
        yield rtc.AudioFrame(piece.tobytes(), sound.rate, 1, len(piece))


async def main(args):
    model = rest_fast.load(args.model)
    room = rtc.Room() if args.url else StandIn()
    if args.url:
        await room.connect(args.url, args.token)
    with await asyncio.to_thread(model.engine, sessions=1, admission=False) as engine:
        session = AgentSession()
        face = AvatarSession(engine, model.prepare(args.photo))
        await face.start(session, room)
        await session.start(Agent(instructions=""))
        await session.say("what the recording says", audio=recording(media.load_audio(args.sound)))
        await face.aclose()
        await session.aclose()
    print("said" if args.url else f"{room.frames} frames, {room.sound:.1f} s of sound")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("photo", "sound", "--url", "--token"):
    parser.add_argument(name)
parser.add_argument("--model", default="demo")
asyncio.run(main(parser.parse_args()))
