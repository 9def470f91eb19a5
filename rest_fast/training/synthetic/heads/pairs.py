"""Training pairs: a photo of a person and other frames of the same person, with flow, visibility and labels."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rest_fast.errors import ArgumentError, DataError
from rest_fast.training.synthetic.heads.draw import points_of
from rest_fast.training.synthetic.heads.mesh import load_head
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION, neutral
from rest_fast.training.synthetic.heads.studio import PLACES, Studio
from rest_fast.training.synthetic.portraits import GEOMETRY
from rest_fast.training.synthetic.visemes import VISEMES

Array = np.ndarray
T = TypeVar("T")
ABOUT, CHUNK = "pairs.json", 16  # people in a file
_FACTS = ("images", "flow", "visible", "matte", "motion", "geometry", "eyes", "places")


@dataclass(frozen=True, eq=False)
class Pairs:
    """K frames of one person; frame 0 is the photo. S: size of a picture, G: of the grid of labels.

    images: uint8 [K, S, S, 3]; flow: float16 [K, G, G, 2], for the middle of each cell of frame k where that point of
    the surface is in frame 0, minus where it is here, x and y in pixels of a 128 px picture, 0 outside the head;
    visible: uint8 [K, G, G], 0 background, 1 head that the photo hides (or the inside of a mouth that it does not
    show), 2 seen in the photo; matte: uint8 [K, G, G], share of the cell that the head covers, 255 all of it;
    motion: float32 [K, 14] (:data:`HEAD_MOTION`); geometry: float32 [K, 4] (:data:`GEOMETRY`); eyes: float32 [K, 2],
    opening of the right and of the left eye in pixels of a 128 px picture; places: float32 [K, 10, 2]
    (``studio.PLACES``), x and y in such pixels.
    """

    images: Array
    flow: Array
    visible: Array
    matte: Array
    motion: Array
    geometry: Array
    eyes: Array
    places: Array


def random_motion(rng: np.random.Generator, *, photo: bool = False) -> Array:
    """float32 [14]: one expression and one pose. Half of all photos are at rest; the others smile, talk or blink."""
    m = points_of(neutral()[0])
    if not photo or rng.random() < 0.5:
        _expression(rng, m, photo)
    m |= {"dx": rng.normal(0, 3.5), "dy": rng.normal(0, 2), "roll": rng.normal(0, 0.05)}
    m |= {"yaw": rng.normal(0, 0.5), "pitch": rng.normal(0, 0.4)}
    if rng.random() < 0.5:
        m["brow"] = float(np.clip(rng.normal(0, 0.45), -1, 1))
    return np.array([m[name] for name in HEAD_MOTION], np.float32)


def _expression(rng: np.random.Generator, m: dict[str, float], photo: bool) -> None:
    kinds = ["viseme", "free", "smile", "closed"]
    kind = rng.choice(kinds, p=[0.25, 0.15, 0.6, 0.0] if photo else [0.40, 0.27, 0.15, 0.18])
    if kind == "viseme":  # what speech looks like: a blend of two mouth shapes
        two = [np.array(VISEMES[str(name)][:6]) for name in rng.choice(list(VISEMES), 2)]
        share = rng.random() ** 2
        m |= dict(zip(HEAD_MOTION[:6], ((1 - share) * two[0] + share * two[1]).tolist()))
    elif kind == "free":
        m["open"] = rng.random() ** 1.3
        m["width"] = rng.uniform(-1, 1)
        m["round"] = max(0.0, -m["width"]) * rng.random()
        m["tongue"] = rng.random() * (rng.random() < 0.3)
    elif kind == "closed":  # lips that meet, whatever the photo shows
        m["press"] = float(rng.random() < 0.5)
    else:
        m["smile"] = rng.uniform(0.35, 1)
        m["open"] = 0.5 * rng.random() ** 2
        m["press"] = float(rng.random() < 0.2)
        m["open"] *= 1 - m["press"]
    if kind != "smile" and rng.random() < 0.35:
        m["smile"] = 0.5 * rng.random()
    if rng.random() < 0.3:
        m["blink"] = rng.random() ** 0.5


def make_person(
    seed: int | np.random.Generator,
    frames: int = 4,
    size: int = 192,
    grid: int = 96,
    *,
    motion: Array | None = None,
    backgrounds: list[Array] | None = None,
) -> Pairs:
    """Invent and draw one person, the same bits in every process.

    Args:
        seed: the source of everything random.
        motion: float32 [frames, 14] to draw; default: :func:`random_motion`.
        backgrounds: uint8 RGB pictures, at least `size` wide; one in two people stands before one of them.
    """
    if grid < 1 or (2 * size) % grid or frames < 1:
        raise ArgumentError(f"heads: expected frames and a grid that divides 2 x {size}, got {frames} and {grid}")
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    studio = Studio(rng, size, backgrounds)
    if motion is None:
        motion = np.stack([random_motion(rng, photo=k == 0) for k in range(frames)])
    if np.shape(motion) != (frames, len(HEAD_MOTION)):
        raise ArgumentError(f"heads: expected motion [{frames}, {len(HEAD_MOTION)}], got {list(np.shape(motion))}")
    rows: list[tuple[Array, ...]] = []
    photo = None
    for row in np.asarray(motion, np.float32):
        frame = studio.shoot(row)
        photo = photo or frame
        flow, visible, matte = studio.painter.flow(frame, photo, grid)
        labels = (flow.astype(np.float16), visible, matte, row, *studio.measure(frame))
        rows.append((studio.picture(frame), *labels))
    return Pairs(*(np.stack(values) for values in zip(*rows)))


def _shapes(frames: int, size: int, grid: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    return {
        "images": (np.uint8, (frames, size, size, 3)),
        "flow": (np.float16, (frames, grid, grid, 2)),
        "visible": (np.uint8, (frames, grid, grid)),
        "matte": (np.uint8, (frames, grid, grid)),
        "motion": (np.float32, (frames, len(HEAD_MOTION))),
        "geometry": (np.float32, (frames, len(GEOMETRY))),
        "eyes": (np.float32, (frames, 2)),
        "places": (np.float32, (frames, len(PLACES), 2)),
    }


def write_pairs(
    out: Path,
    count: int,
    *,
    first: int = 0,
    frames: int = 4,
    size: int = 192,
    grid: int = 96,
    workers: int = 0,
    backgrounds: list[Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write people ``first .. first + count - 1`` for :class:`PairsFolder`. The seed of a person is its number.

    A chunk of 16 people is a folder of arrays that appears whole; chunks that are there already are kept, so that the
    same call continues after a stop. A last chunk of fewer people is made again when more are asked for.

    Args:
        workers: processes of one thread each; 0: one for each core.
        backgrounds: see :func:`make_person`; they are part of the data, so give the same ones again.
    """
    if count < 1 or first < 0 or first % CHUNK:
        raise ArgumentError(f"heads: expected count >= 1 and first a multiple of {CHUNK}, got {count} and {first}")
    load_head()  # reads the wheel once, before many processes would
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{out}: expected a folder to write pairs to, got {e.strerror}") from None
    about = {
        "frames": frames,
        "size": size,
        "grid": grid,
        "motion": HEAD_MOTION,
        "geometry": GEOMETRY,
        "places": PLACES,
    }
    known = out / ABOUT
    if known.exists():
        found = _read_about(known)
        if found != json.loads(json.dumps(about)):
            raise DataError(f"{out}: expected pairs like these, {about}, found {found}")
    else:
        partial_about = known.with_suffix(f".{os.getpid()}.partial")
        partial_about.write_text(json.dumps(about))
        partial_about.replace(known)
    starts = range(first, first + count, CHUNK)
    ends = {s: min(s + CHUNK, first + count) for s in starts}
    todo = [s for s in starts if _people(out / f"{s:07d}") < ends[s] - s]
    write = partial(_write_chunk, out, frames=frames, size=size, grid=grid, backgrounds=backgrounds)
    done = count - sum(ends[s] - s for s in todo)
    for start in spread(write, [(s, ends[s]) for s in todo], workers):
        done += ends[start] - start
        if progress is not None:
            progress(done, count)


def _read_about(path: Path) -> dict[str, Any]:
    """What ``pairs.json`` says. DataError: it is none."""
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        _shapes(about["frames"], about["size"], about["grid"])
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise DataError(f"{path}: expected frames, size and grid of pairs in JSON, got {e}") from None
    return about


def spread(work: Callable[[tuple[int, int]], T], items: list[tuple[int, int]], workers: int) -> Iterator[T]:
    """The results of all items, as they come, by ``workers`` processes of one thread each (0: one for each core)."""
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # Ctrl-C is the parent's
    with multiprocessing.get_context("spawn").Pool(workers, **quiet) as pool:  # type: ignore[arg-type]
        yield from pool.imap_unordered(work, items)


def _people(chunk: Path) -> int:
    """How many a chunk holds; none if it is not there."""
    path = chunk / "motion.npy"
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False)) if chunk.exists() else 0
    except (OSError, ValueError, EOFError) as e:
        raise DataError(f"{path}: expected motion of people, got {e} (remove {chunk})") from None


def _write_chunk(
    out: Path, span: tuple[int, int], *, frames: int, size: int, grid: int, backgrounds: list[Array] | None
) -> int:
    first, end = span
    people = [make_person(seed, frames, size, grid, backgrounds=backgrounds) for seed in range(first, end)]
    partial_folder = out / f"{first:07d}.{os.getpid()}.partial"
    partial_folder.mkdir(exist_ok=True)
    for name in _FACTS:
        np.save(partial_folder / f"{name}.npy", np.stack([getattr(person, name) for person in people]))
    whole = out / f"{first:07d}"
    shutil.rmtree(whole, ignore_errors=True)  # of fewer people
    partial_folder.rename(whole)
    return first


def _read_fact(path: Path, dtype: type, shape: tuple[int, ...]) -> Array:
    """One array of a chunk, mapped from disk."""
    wanted = f"{np.dtype(dtype)} [n, {', '.join(map(str, shape))}]"
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise DataError(f"{path}: expected {wanted}, got {e}") from None
    if array.dtype != dtype or array.shape[1:] != shape:
        raise DataError(f"{path}: expected {wanted}, found {array.dtype} {list(array.shape)}")
    return array


class PairsFolder:
    """The people of a folder, mapped from disk: ``folder[i]`` is a :class:`Pairs`; ``about`` has its sizes."""

    def __init__(self, folder: Path) -> None:
        if not (folder / ABOUT).is_file():
            raise DataError(f"{folder}: expected pairs with {ABOUT} (write_pairs), found none")
        self.about = _read_about(folder / ABOUT)
        shapes = _shapes(self.about["frames"], self.about["size"], self.about["grid"])
        self._chunks: list[dict[str, Array]] = []
        for path in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
            self._chunks.append({name: _read_fact(path / f"{name}.npy", *shapes[name]) for name in _FACTS})
            counts = {name: len(array) for name, array in self._chunks[-1].items()}
            if len(set(counts.values())) > 1:
                raise DataError(f"{path}: expected as many people in each array, found {counts}")
        if not self._chunks:
            raise DataError(f"{folder}: expected pairs in it (write_pairs), found none")
        self._where = [(c, i) for c, arrays in enumerate(self._chunks) for i in range(len(arrays["images"]))]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Pairs:
        chunk, i = self._where[index]
        return Pairs(*(self._chunks[chunk][field.name][i] for field in fields(Pairs)))
