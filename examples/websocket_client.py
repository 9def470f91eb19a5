"""Speaks through a server: python examples/websocket_client.py ws://127.0.0.1:8766 speech.wav talking.mp4

`rest-fast serve` has to be running. Sound goes up at once, frames come down at their times, and a video file is made of
them. docs/serving.md has the protocol.
"""

import argparse
import asyncio
import io
import json

import numpy as np
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake

from rest_fast import media
from rest_fast.media.av_frames import as_int16
from rest_fast.serving.protocol import read_frame

PIECE = 1 << 18  # bytes of a message of sound


async def main(args):
    sound = media.load_audio(args.sound)
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    async with connect(f"{args.server}/v1/avatar/stream", max_size=None, additional_headers=headers) as socket:
        start = {"type": "session.start", "avatar": args.avatar, "sample_rate": sound.rate, "format": "jpeg"}
        await socket.send(json.dumps(start))
        ready = json.loads(await socket.recv())
        if ready["type"] != "session.ready":
            raise SystemExit(f"{args.server}: {ready['code']}: {ready['message']}")
        data = as_int16(sound.mono).astype("<i2").tobytes()
        for at in range(0, len(data), PIECE):
            await socket.send(data[at : at + PIECE])
        await socket.send(json.dumps({"type": "audio.end", "id": "all"}))
        with media.VideoWriter(args.video, ready["width"], ready["height"], sample_rate=sound.rate) as writer:
            while True:
                message = await socket.recv()
                if isinstance(message, bytes):
                    frame = read_frame(message)
                    picture = np.asarray(Image.open(io.BytesIO(frame.picture)))
                    writer.write(picture[None], np.frombuffer(frame.sound, "<i2"))
                elif json.loads(message)["type"] in ("error", "playback.finished"):
                    print(message)
                    break


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("server")
parser.add_argument("sound")
parser.add_argument("video")
parser.add_argument("--avatar", default="portrait")
parser.add_argument("--token")
args = parser.parse_args()
try:
    asyncio.run(main(args))
except (ConnectionError, InvalidHandshake) as error:
    raise SystemExit(f"{args.server}: expected a server (rest-fast serve) that takes us, got: {error}") from None
