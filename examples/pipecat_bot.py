"""A bot of pipecat with a face. What it says is a recording, so no account is needed; what it shows is counted.

python examples/pipecat_bot.py face.png speech.wav

In a bot of yours, a transport of pipecat's takes the place of Screen, with the same params, and your speech synthesis
stands in front of the face: [transport.input(), stt, llm, tts, face, transport.output()].
"""

import argparse
import asyncio
import time

import numpy as np
from pipecat.frames.frames import EndFrame, TTSAudioRawFrame, TTSStartedFrame, TTSStoppedFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

import rest_fast
from rest_fast import media
from rest_fast.serving.pipecat_avatar import FaceProcessor, video_params


class Screen(BaseOutputTransport):
    """An output that shows nothing, and plays sound in as much time as it lasts."""

    def __init__(self, params):
        super().__init__(params)
        self.pictures, self.sound, self.free = set(), 0.0, 0.0

    async def start(self, frame):
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_video_frame(self, frame):
        self.pictures.add(frame.id)  # each is drawn twice
        return True

    async def write_audio_frame(self, frame):
        seconds = len(frame.audio) / 2 / self.sample_rate
        self.sound += seconds
        self.free = max(self.free, time.monotonic()) + seconds
        await asyncio.sleep(max(0.0, self.free - time.monotonic()))
        return True


async def main(args):
    model, sound = rest_fast.load(args.model), media.load_audio(args.sound)
    avatar = model.prepare(args.photo)
    with await asyncio.to_thread(model.engine, sessions=1, admission=False) as engine:
        screen = Screen(TransportParams(**video_params(avatar), audio_out_end_silence_secs=0))
        worker = PipelineWorker(Pipeline([FaceProcessor(engine, avatar), screen]))
        pcm, size = (sound.mono.clip(-1, 1) * 32767).astype(np.int16), sound.rate // 2
        pieces = [pcm[first : first + size].tobytes() for first in range(0, len(pcm), size)]
        voice = [TTSAudioRawFrame(piece, sound.rate, 1) for piece in pieces]
        await worker.queue_frames([TTSStartedFrame(), *voice, TTSStoppedFrame(), EndFrame()])
        runner = WorkerRunner()
        await runner.add_workers(worker)
        await runner.run()
    print(f"{len(screen.pictures)} pictures, {screen.sound:.1f} s of sound")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("photo", "sound"):
    parser.add_argument(name)
parser.add_argument("--model", default="demo")
asyncio.run(main(parser.parse_args()))
