"""A recording as a microphone brings it: python examples/live_sound.py face.png speech.wav --seconds 5

Sound is pushed in pieces of 20 ms as it is spoken. Frames come at their times, 25 a second, each with its sound: before
the first words, between them and behind them, the face idles.
"""

import argparse
import asyncio

import rest_fast
from rest_fast import media
from rest_fast.serving.pacer import Pacer

PIECE = 0.02  # seconds


async def speak(session, sound):
    step = round(PIECE * sound.rate)
    for at in range(0, len(sound.mono), step):
        session.push_audio(sound.mono[at : at + step])
        await asyncio.sleep(PIECE)
    session.end_segment()


async def main(args):
    model = rest_fast.load(args.model)
    avatar, sound = model.prepare(args.photo), media.load_audio(args.sound)
    with model.engine(sessions=1, admission=False) as engine:  # a slow machine shows late frames
        async with await engine.asession(avatar, sample_rate=sound.rate) as session:
            speaking = asyncio.create_task(speak(session, sound))
            pacer = Pacer(session)
            async for shown in pacer:
                # shown.picture is uint8 [H, W, 3], shown.sound its int16 samples
                if shown.index % 25 == 0:
                    what = "idles" if shown.idle else "speaks"
                    print(f"{shown.time:5.2f} s: the face {what}, {pacer.held} frames were late")
                if shown.time >= args.seconds:
                    break
            speaking.cancel()


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("photo")
parser.add_argument("sound")
parser.add_argument("--seconds", type=float, default=10.0)
parser.add_argument("--model", default="demo")
asyncio.run(main(parser.parse_args()))
