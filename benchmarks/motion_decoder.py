"""The motion VAE's decoder driven by known motion: people that it has never seen, and photographs.

    python benchmarks/motion_decoder.py --photos PORTRAITS --work build/motion/photos \\
        --store benchmarks/results/motion_decoder.json

A sentence gives the motion. Of drawn people the same motion is drawn, too, and read by the same instruments: that is
the truth of their lips. The decoder's time is measured, too. Needs ``make photo-instruments`` (docs/photos.md) and the
data of heads (docs/heads.md).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import where
from PIL import Image
from skimage.data import astronaut

import rest_fast
from rest_fast.config import MotionVAEConfig
from rest_fast.evaluation import mouths
from rest_fast.evaluation.photos import measures
from rest_fast.evaluation.photos.drivers import Sound, pictures
from rest_fast.evaluation.photos.faces import FaceReader, find_reader
from rest_fast.evaluation.photos.known_motion import from_photo, known_motion, labels_of, spoken_motion
from rest_fast.evaluation.photos.study import measure
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.state import StreamState
from rest_fast.ops import move_and_paint
from rest_fast.training.motion_vae import SIDE, load
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.heads.pairs import make_person, random_motion
from rest_fast.units import from_levels

WHOLE = 100.0  # frames so wide that a picture is taken as it is: the truth is drawn as the photo is
FIRST = 900_000  # seed of the first person that no training has seen


def drawn_person(seed: int, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A photo uint8 [256, 256, 3], and the frames [n, 256, 256, 3] that known motion [n, 14] should give of it."""
    own = random_motion(np.random.default_rng(seed), photo=True)
    rows = np.concatenate([own[None], from_photo(own, known)])
    images = make_person(seed, len(rows), SIDE, 64, motion=rows).images
    return images[0], images[1:]


def true_gap(reader: FaceReader, frames: np.ndarray, folder: Path) -> np.ndarray:
    """As the instruments read it off the true frames, [n]."""
    np.save(folder / "truth.npy", frames)
    (faces,) = reader.read([(folder / "truth.npy", folder / "truth.npz")], 1_000_000)
    gap: np.ndarray = mouths.opening(measures.mouth_points(faces.landmarks), "truth")
    return gap


def drawn_people(vae: TemporalVAE, count: int, sound: Sound, reader: FaceReader, work: Path) -> dict[str, Any]:
    """What :func:`measure` says of each."""
    known, found = spoken_motion(sound), {}
    for seed in range(FIRST, FIRST + count):
        photo, frames = drawn_person(seed, known)
        with tempfile.TemporaryDirectory() as folder:
            gap = true_gap(reader, frames, Path(folder))
            path = Path(folder, f"person_{seed}.png")
            Image.fromarray(photo).save(path)
            drivers = [known_motion(vae, known, name="known motion", sound=sound, gap=gap)]
            out = work / path.stem
            one = measure(drivers, [path], out, size=SIDE, cell=SIDE // 4, reader=reader, about={}, wider=WHOLE)
        found |= one["photos"]
        print(f"person {seed}", flush=True)
    return found


@torch.inference_mode()
def readings(vae: TemporalVAE, people: int = 24) -> dict[str, float]:
    """Correlation of what the encoder reads off four pictures each of unseen people with their true labels."""
    read, true = [], []
    for seed in range(FIRST, FIRST + people):
        person = make_person(seed, 4, SIDE, 64)
        pictures = from_levels(torch.from_numpy(person.images)).permute(0, 3, 1, 2)
        read.append(labels_of(vae.encoder.codes(pictures)).numpy())
        true.append(person.motion)
    pairs = zip(np.concatenate(read).T, np.concatenate(true).T)
    return {name: float(np.corrcoef(a, b)[0, 1]) for name, (a, b) in zip(HEAD_MOTION, pairs)}


def speed(vae: TemporalVAE) -> list[dict[str, Any]]:
    """Times by number of threads and dtype of the convolutions."""
    before, rows = torch.get_num_threads(), []
    for threads, dtype in itertools.product((1, 2), (torch.float32, torch.bfloat16)):
        torch.set_num_threads(threads)
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            parts = parts_of(vae)
        rows.append({"threads": threads, "dtype": str(dtype).removeprefix("torch."), **parts})
    torch.set_num_threads(before)
    return rows


def parts_of(vae: TemporalVAE) -> dict[str, float]:
    """Milliseconds of the photo branch, which runs once a stream, and of both parts of 24 frames: the least of 20."""
    decoder, state = vae.decoder, StreamState()
    photo, codes = torch.rand(1, 3, SIDE, SIDE) * 2 - 1, torch.randn(1, 24, vae.encoder.frame_channels, 4, 4)
    out = torch.empty(24, SIDE, SIDE, 3, dtype=torch.uint8)
    look = least(lambda: decoder.look(photo, codes[:, :1], state))
    maps = least(lambda: decoder.maps(photo, codes, state))
    made = [x.float().contiguous() for x in decoder.maps(photo, codes, state)]
    move = least(lambda: move_and_paint(photo, *made, out, window=decoder.window))
    return {"photo": look, "maps": maps, "move_and_paint": move}


def least(job: Callable[[], Any], count: int = 20) -> float:
    """Milliseconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return round(1000 * min(times), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, help="file of ``motion_vae join``; default: the demo's")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="beside the astronaut")
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--work", type=Path, required=True, help="folder of strips and videos")
    parser.add_argument("--store", type=Path, required=True, help="json")
    args = parser.parse_args()
    environment = where.environment(where.commit_info())  # as the run begins
    reader = find_reader(None)
    if reader is None:
        raise SystemExit("not measured: make photo-instruments")
    vae = rest_fast.load("demo", device="cpu", decoder_dtype=torch.float32).vae if args.vae is None else load(args.vae)
    sound = Sound.sentence()
    args.work.mkdir(parents=True, exist_ok=True)
    people = drawn_people(vae, args.people, sound, reader, args.work)
    first = args.work / "astronaut.jpg"
    Image.fromarray(astronaut()).save(first, quality=98)
    # the opening of a mouth of average size stands for the photographs' own, which nobody knows
    _, frames = drawn_person(FIRST, spoken_motion(sound))
    with tempfile.TemporaryDirectory() as folder:
        gap = true_gap(reader, frames, Path(folder))
    drivers = [known_motion(vae, spoken_motion(sound), name="known motion", sound=sound, gap=gap)]
    paths = pictures([first, *args.photos])
    found = measure(
        drivers, paths, args.work, size=SIDE, cell=SIDE // 4, reader=reader, about={}, wider=MotionVAEConfig.framing
    )
    found |= {"people": people, "read": readings(vae), "speed": speed(vae), "environment": environment}
    args.store.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
