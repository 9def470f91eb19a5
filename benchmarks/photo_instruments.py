"""What the instruments of photographs read off drawn people whose motion is known, stored.

    python benchmarks/photo_instruments.py --work build/instruments --store benchmarks/results/photo_instruments.json

People of the split `test` speak for eight seconds, blink three times, sway and turn: what a perfect model would show.
So the numbers are ceilings, or floors, of what ``rest-fast evaluate --photos`` can say of any model. Needs
``make photo-instruments`` and the extra ``synth``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import where
from PIL import Image

from rest_fast.evaluation.photos.drivers import Driver, Portrait, Sound
from rest_fast.evaluation.photos.faces import CURE, find_reader
from rest_fast.evaluation.photos.study import measure
from rest_fast.training.synthetic.clips import generator
from rest_fast.training.synthetic.portraits import GEOMETRY, MOTION, Identity, draw, mouth_geometry, neutral
from rest_fast.training.synthetic.speech import utterance
from rest_fast.training.synthetic.visemes import MOUTH, mouth_track
from rest_fast.units import FPS

PEOPLE, FIRST = 4, 30_000  # clips of the split `test` that nobody writes
SECONDS, SIDE = 8, 256
BLINKS, BLINK = (40, 90, 150), 8  # first frames, and frames of each


def person(index: int, folder: Path) -> tuple[Path, Driver]:
    """A drawing at rest, in a file, and who moves it."""
    rng, frames = generator("test", FIRST + index), SECONDS * FPS
    who, said = Identity.random(rng), utterance(rng, "test", SECONDS)
    motion = np.zeros((frames, len(MOTION)), np.float32)
    motion[:, [MOTION.index(name) for name in MOUTH]] = mouth_track(said.phonemes, said.samples, frames)
    for first in BLINKS:
        motion[first : first + BLINK, MOTION.index("blink")] = np.sin(np.linspace(0, np.pi, BLINK))
    sway = np.sin(np.arange(frames) / FPS)
    motion[:, MOTION.index("dx")], motion[:, MOTION.index("yaw")] = 4 * sway, 0.5 * sway
    path = folder / f"person_{index}.png"
    Image.fromarray(draw(who, neutral(), SIDE)[0]).save(path)

    def film(_: Portrait) -> Iterator[np.ndarray]:
        for first in range(0, frames, FPS):
            yield draw(who, motion[first : first + FPS], SIDE)

    gap = mouth_geometry(who, motion)[:, GEOMETRY.index("gap")]
    return path, Driver("drawing", frames, film, Sound("voice", said.samples, said.phonemes), gap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of strips and videos")
    parser.add_argument("--store", type=Path, required=True, help="json")
    args = parser.parse_args()
    environment = where.environment(where.commit_info())  # as the run begins
    reader = find_reader()
    if reader is None:
        raise SystemExit(f"no instruments: {CURE}")
    args.work.mkdir(parents=True, exist_ok=True)
    people = {}
    for index in range(PEOPLE):
        path, driver = person(index, args.work)
        out = args.work / path.stem
        found = measure([driver], [path], out, size=SIDE, cell=64, reader=reader, about={})
        row = found["photos"][path.stem]["videos"][driver.name]
        del row["unknown"], row["seams"], row["truth_amplitude"]  # the true gap is in pixels
        people[path.stem] = row
        print(f"{path.stem}: r with the true gap {row['truth_r']:.3f}", flush=True)
    stored = {"people": people, "blinks": len(BLINKS), "instruments": reader.versions, "environment": environment}
    args.store.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
