"""What a model makes of scikit-image's astronaut and of other portraits, stored.

    python benchmarks/photo_study.py --photos PORTRAITS --sounds WOMAN.wav MAN.wav --work build/photos \\
        --store benchmarks/results/photos_demo.json --picture docs/photos.png

Strips and videos stay in ``--work``; what is stored has numbers and the names of files, no picture but the astronaut's
first row, who is in the public domain. Needs
``make photo-instruments`` (docs/photos.md).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import where
from PIL import Image
from skimage.data import astronaut

import rest_fast
from rest_fast.evaluation import figures
from rest_fast.evaluation.photos import strips
from rest_fast.evaluation.photos.study import evaluate_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="beside the astronaut")
    parser.add_argument("--sounds", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--work", type=Path, required=True, help="folder of strips and videos")
    parser.add_argument("--store", type=Path, required=True, help="json")
    parser.add_argument("--picture", type=Path, help="png of the astronaut with the first sound")
    args = parser.parse_args()
    environment = where.environment(where.commit_info())  # as the run begins
    args.work.mkdir(parents=True, exist_ok=True)
    first = args.work / "astronaut.jpg"
    Image.fromarray(astronaut()).save(first, quality=98)
    model = rest_fast.load(args.weights, device="cpu")
    found = evaluate_photos(
        model,
        [first, *args.photos],
        args.sounds,
        args.work,
        progress=lambda done, total: print(f"video {done} of {total}", flush=True),
    )
    if "faces" in found["not_measured"]:
        raise SystemExit(f"not stored: {found['not_measured']['faces']}")
    if args.picture:
        figures.save(strips.first_row(args.work / "astronaut.png", found["size"]), args.picture)
    for photo in found["photos"].values():
        for video in photo["videos"].values():
            del video["unknown"]  # docs/photos.md says what is known of which video
    args.store.write_text(json.dumps(found | {"environment": environment}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
