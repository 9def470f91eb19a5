"""A session inside an asyncio program: speech, idling, and a viewer who interrupts.

python examples/asyncio_service.py face.png speech.wav
"""

import argparse
import asyncio

import rest_fast
from rest_fast import media
from rest_fast.serving.viewer import Viewer


async def watch(viewer, seconds):
    """Take frames for so long; a service would send them somewhere."""
    start = viewer.pacer.media_time
    async for shown in viewer.frames():
        while viewer.finished:
            print("finished:", viewer.finished.popleft())
        if shown.time - start >= seconds:
            return


async def main(args):
    model = rest_fast.load(args.model)
    avatar, sound = model.prepare(args.photo), media.load_audio(args.sound)
    with model.engine(sessions=2, admission=False) as engine:  # also on a slow machine
        viewer = await Viewer.open(engine, avatar, sample_rate=sound.rate)
        watching = asyncio.create_task(watch(viewer, args.seconds))
        viewer.push(sound.mono)  # all of it at once, as from a speech synthesiser
        viewer.end("greeting")
        await asyncio.sleep(args.seconds / 2)
        print(f"interrupted; the picture goes on at {viewer.interrupt():.2f} s")
        await watching
        print(viewer.stats())
        viewer.close()


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("photo")
parser.add_argument("sound")
parser.add_argument("--seconds", type=float, default=8.0)
parser.add_argument("--model", default="demo")
asyncio.run(main(parser.parse_args()))
