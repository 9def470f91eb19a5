"""One engine, several viewers, and the refusal of one too many: python examples/many_sessions.py face.png speech.wav"""

import argparse
import asyncio

import rest_fast
from rest_fast import media


async def viewer(engine, avatar, sound, number, seconds):
    async with await engine.asession(avatar, sample_rate=sound.rate, seed=number) as session:
        session.push_audio(sound.mono)
        session.end_segment()
        shown = 0.0
        async for block in session.ablocks(idle=True):
            shown += block.duration
            if shown >= seconds:
                break
        metrics = session.metrics()
        print(f"viewer {number}: {shown:.1f} s, {metrics.held} frames held")


async def main(args):
    model = rest_fast.load(args.model)
    avatar, sound = model.prepare(args.photo), media.load_audio(args.sound)
    with model.engine(sessions=args.viewers) as engine:
        print(f"{engine.capacity()} of {args.viewers} viewers fit on this machine")
        tasks = [viewer(engine, avatar, sound, k, args.seconds) for k in range(args.viewers)]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, rest_fast.CapacityExhausted):
                print("refused:", result)
            elif result is not None:
                raise result


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("photo")
parser.add_argument("sound")
parser.add_argument("--viewers", type=int, default=3)
parser.add_argument("--seconds", type=float, default=5.0)
parser.add_argument("--model", default="demo")
asyncio.run(main(parser.parse_args()))
