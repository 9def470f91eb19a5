"""What a model makes of photographs: videos of each photo with each sound, measured. Writes JSON, a table and strips.

The measuring knows nothing of models: it takes :class:`rest_fast.evaluation.photos.drivers.Driver`, so that a decoder
moved by known motion is measured like a model moved by a voice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rest_fast.evaluation import mouths
from rest_fast.evaluation.evaluate import jsonable
from rest_fast.evaluation.photos import measures, strips, tables
from rest_fast.evaluation.photos.drivers import Driver, Portrait, Sound, moved_photo, pictures, record, voices
from rest_fast.evaluation.photos.faces import FaceReader, Faces, find_reader
from rest_fast.evaluation.photos.readings import NO_INSTRUMENTS, STRIDE, Video
from rest_fast.evaluation.sources import EvaluationError
from rest_fast.media import MediaError
from rest_fast.media.faces import LONGEST, WIDER
from rest_fast.model import Model

log = logging.getLogger(__name__)
Array = NDArray[Any]
Progress = Callable[[int, int], None]
FRONTAL = 20  # degrees: what is turned further is read less well
WIDE = 0.25  # gap between the lips over the distance of the eyes: a photo's mouth that is open further is unusual


def evaluate_photos(
    model: Model,
    photos: Sequence[Path],
    sounds: Sequence[Path],
    out: Path,
    *,
    sentence: bool = True,
    interpreter: str | Path | None = None,
    seed: int = 0,
    guidance: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model on every photo with every sound. The result is what ``OUT/photos.json`` holds.

    Also written: ``photos.md``, a strip ``NAME.png`` of each photo, and ``videos/NAME_SOUND.mp4``.

    Args:
        photos: pictures, and folders of them.
        sounds: files of at least two seconds; ``sentence`` adds one whose phoneme times are known (extra ``synth``).
        interpreter: of the instruments (:mod:`rest_fast.evaluation.photos.faces`); found when None.
        progress: called with videos done and videos in all.
    Raises: :class:`EvaluationError` before any work, or where no photo could be measured; :class:`MediaError` for a
        sound that cannot be read. A photo that cannot be measured is named in the result, and the others are done.
    """
    config = model.config
    if config.height != config.width:
        raise EvaluationError(f"photos: expected a square model, got {config.height} x {config.width}")
    paths, heard, missing = pictures(photos), [Sound.load(path) for path in sounds], {}
    if sentence:
        try:
            heard.append(Sound.sentence())
        except ImportError as e:
            missing["closure"] = str(e)
    names = [sound.name for sound in heard]
    if not heard or len(set(names)) < len(names):
        raise EvaluationError(f"photos: sounds: expected at least one, and names that differ, got {names}")
    films = [f"{path.stem}_{name}" for path in paths for name in names]
    twice = sorted({film for film in films if films.count(film) > 1} | ({moved_photo().name} & set(names)))
    if twice:
        raise EvaluationError(f"photos: expected names of photos and sounds that make videos of their own, got {twice}")
    sampling = dataclasses.asdict(config.sampling) | ({} if guidance is None else {"guidance": guidance})
    about = {"name": config.name, "fingerprint": model.fingerprint, "sampling": sampling, "seed": seed}
    drivers = voices(model, heard, seed=seed, guidance=guidance)
    return measure(
        drivers,
        paths,
        out,
        size=config.height,
        cell=config.vae.spatial,
        reader=find_reader(interpreter),
        about={"model": about},
        missing=missing,
        progress=progress,
        wider=config.vae.framing,
    )


def measure(
    drivers: Sequence[Driver],
    paths: Sequence[Path],
    out: Path,
    *,
    size: int,
    cell: int,
    reader: FaceReader | None,
    about: dict[str, Any],
    missing: dict[str, str] | None = None,
    progress: Progress | None = None,
    wider: float = WIDER,
) -> dict[str, Any]:
    """Measure what drivers make of photos, at ``size`` pixels with latent cells of ``cell`` pixels.

    See :func:`evaluate_photos`; ``about`` stands in the result as it is, ``missing`` among what was not measured, and
    ``wider`` frames the faces (:func:`rest_fast.media.faces.find_face`).
    """
    everyone = [*drivers, moved_photo()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "videos").mkdir(exist_ok=True)
    portraits, failed = _portraits(paths, size, wider, reader, out)
    made: dict[str, Any] = {}
    for n, portrait in enumerate(portraits):
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            videos = []
            for i, driver in enumerate(everyone):
                frames = Path(scratch, f"{i}.npy")
                film = None if driver.control else out / "videos" / f"{portrait.name}_{driver.name}.mp4"
                record(driver, portrait, frames, film)
                videos.append(frames)
                if progress is not None:
                    progress(n * len(everyone) + i + 1, len(portraits) * len(everyone))
            made[portrait.name] = _read(portrait, everyone, videos, reader, cell, out)
    missing = dict(missing or {}) | ({} if reader else {"faces": NO_INSTRUMENTS})
    instruments = {} if reader is None else reader.versions
    about = about | {"size": size, "cell": cell, "wider": wider, "instruments": instruments}
    result: dict[str, Any] = jsonable(about | {"photos": made, "failed": failed, "not_measured": missing})
    (out / "photos.md").write_text(tables.markdown(result), encoding="utf-8")
    (out / "photos.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if not made:
        raise EvaluationError(f"photos: expected a photo that can be measured, got none: {'; '.join(failed.values())}")
    return result


def _read(
    portrait: Portrait,
    drivers: Sequence[Driver],
    videos: Sequence[Path],
    reader: FaceReader | None,
    cell: int,
    out: Path,
) -> dict[str, Any]:
    """What is known of a photo and its videos; draws the strip."""
    read: Sequence[Faces | None] = [None] * len(videos)
    if reader is not None:
        read = reader.read([(path, path.with_suffix(".npz")) for path in videos], STRIDE)
    sounds = [driver.sound for driver in drivers if driver.sound is not None]
    seen = []
    for driver, path, faces in zip(drivers, videos, read):
        # The next voice of the list: each one is the wrong one for another.
        others = [] if driver.sound is None else [*sounds, *sounds][sounds.index(driver.sound) + 1 :]
        wrong = others[0] if others and others[0] is not driver.sound else None
        seen.append(Video(portrait, driver, wrong, np.load(path, mmap_mode="r", allow_pickle=False), faces, cell))
    strips.draw([video for video in seen if not video.driver.control], out / f"{portrait.name}.png")
    about: dict[str, Any] = {"notes": portrait.notes, "box": list(portrait.box)}
    if read[0] is not None:
        about["turned_degrees"] = measures.turned(read[0].landmarks[0])
    return about | {"videos": {video.driver.name: video.report() for video in seen}}


def _portraits(
    paths: Sequence[Path], size: int, wider: float, reader: FaceReader | None, out: Path
) -> tuple[list[Portrait], dict[str, str]]:
    """Those with a face, with notes of what is unusual; and, by name, why the others are left out."""
    found: list[Portrait] = []
    failed: dict[str, str] = {}
    for path in paths:
        try:
            found.append(Portrait.load(path, size, wider))
        except MediaError as e:
            failed[path.stem] = str(e)
    if reader is not None and found:
        for portrait, (whole, crop) in zip(found, _look(found, reader, out)):
            if crop.found[0]:
                portrait.notes += _unusual(whole.count, crop.landmarks[:1])
            else:
                why = "; ".join(portrait.notes) or "OpenCV sees one there"
                expected = f"{portrait.name}: expected a face, got none in the square {portrait.box} of the photo"
                failed[portrait.name] = f"{expected} ({why})"
    found = [portrait for portrait in found if portrait.name not in failed]
    for why in failed.values():
        log.warning("left out: %s", why)
    for portrait in found:
        for note in portrait.notes:
            log.warning("%s: %s", portrait.name, note)
    return found, failed


def _look(portraits: Sequence[Portrait], reader: FaceReader, out: Path) -> list[tuple[Faces, Faces]]:
    """Faces in the whole photo (their number is what counts there) and in its crop."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        pairs = []
        for n, portrait in enumerate(portraits):
            whole = Image.fromarray(portrait.whole)
            whole.thumbnail((LONGEST, LONGEST))
            for kind, picture in (("whole", np.asarray(whole)), ("crop", portrait.picture)):
                np.save(Path(folder, f"{n}_{kind}.npy"), picture[None])
                pairs.append((Path(folder, f"{n}_{kind}.npy"), Path(folder, f"{n}_{kind}.npz")))
        found = reader.read(pairs, 1)
    return list(zip(found[::2], found[1::2]))


def _unusual(count: int, landmarks: Array) -> list[str]:
    """What the landmarks [1, 478, 3] of a crop say, of a photo with so many faces."""
    notes = []
    if count > 1:
        notes.append(f"{count} faces in the photo: the largest one is taken")
    if (turned := abs(measures.turned(landmarks[0]))) > FRONTAL:
        notes.append(f"turned by {turned:.0f} degrees: beyond {FRONTAL} the readings of lips and eyes are rough")
    if (tilted := abs(measures.tilted(landmarks[0]))) > FRONTAL:
        notes.append(f"tilted by {tilted:.0f} degrees: models expect upright heads")
    if (gap := float(mouths.opening(measures.mouth_points(landmarks), "photo")[0])) > WIDE:
        notes.append(f"mouth wide open: {gap:.2f} of the distance of the eyes")
    return notes
