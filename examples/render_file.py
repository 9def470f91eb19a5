"""A photo and a recording become a video: python examples/render_file.py face.jpg speech.wav talking.mp4"""

import argparse

import rest_fast

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("photo")
parser.add_argument("sound")
parser.add_argument("video")
parser.add_argument("--model", default="demo", help="folder of a checkpoint, or demo")
args = parser.parse_args()

model = rest_fast.load(args.model)
avatar = model.prepare(args.photo)
rest_fast.render(model, avatar, args.sound, args.video, progress=True)
