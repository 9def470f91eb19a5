"""The program that reads faces: how it is found and called, what of it is refused; and the real one, where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rest_fast.evaluation.photos import faces, measures
from rest_fast.evaluation.sources import EvaluationError
from tests.kit.faces import interpreter, mesh, reader_script

ROOT = Path(__file__).parents[3]


@pytest.fixture
def reader(tmp_path):
    return faces.FaceReader(sys.executable, reader_script(tmp_path))


def frames_of(folder: Path, *levels: int, side: int = 40) -> tuple[Path, Path]:
    """Grey frames of these levels."""
    path = folder / f"{'_'.join(map(str, levels))}.npy"
    np.save(path, np.stack([np.full((side, side, 3), level, np.uint8) for level in levels]))
    return path, path.with_suffix(".npz")


def test_several_videos_in_one_call(reader, tmp_path):
    one, two = reader.read([frames_of(tmp_path, 255, 0, 51), frames_of(tmp_path, 102, side=20)], 2)
    assert reader.versions == {"reader": "of colours"}
    np.testing.assert_array_equal(one.found, [True, False, True])
    np.testing.assert_allclose(one.landmarks[0, 14], mesh(gap=0.3, side=40)[14], rtol=1e-6)
    np.testing.assert_allclose(two.landmarks[0, 152], mesh(side=20)[152], rtol=1e-6)
    np.testing.assert_allclose(one.descriptors[[0, 2], 0], [1, 0.2], rtol=1e-6)
    assert np.isnan(one.descriptors[1]).all() and (one.count, two.count) == (1, 1)


@pytest.mark.parametrize(("program", "says"), [
    ("raise SystemExit('no mediapipe here')", r"expected a Python with mediapipe and dlib, got exit code 1 \(no media"),
    ("raise ImportError('dlib')", r"got exit code 1 \(ImportError: dlib\); make photo-instruments"),
    ("print('ready')", "expected a line of versions, got 'ready'"),
    ("", "expected a line of versions, got ''"),
])  # fmt: skip
def test_programs_that_do_not_work(tmp_path, program, says):
    (tmp_path / "program.py").write_text(program)
    with pytest.raises(EvaluationError, match=says):
        faces.FaceReader(sys.executable, tmp_path / "program.py")


def test_an_interpreter_that_is_not_there(tmp_path):
    with pytest.raises(EvaluationError, match=r"nowhere: expected a run that ends.*make photo-instruments"):
        faces.FaceReader(tmp_path / "nowhere")


@pytest.mark.parametrize(("arrays", "says"), [
    ("landmarks=np.zeros((2, 478, 3)), descriptors=np.zeros((1, 128)), faces=1", "expected arrays of"),
    ("landmarks=np.zeros((1, 468, 3)), descriptors=np.zeros((1, 128)), faces=1", "expected arrays of"),
    ("landmarks=np.zeros((1, 478, 3)), faces=1", "expected landmarks and descriptors"),
    ("landmarks=np.array([None]), descriptors=1, faces=1", "Object arrays cannot be loaded"),
    (None, "No such file"),
])  # fmt: skip
def test_answers_that_are_refused(tmp_path, arrays, says):
    made = "pass" if arrays is None else f"[np.savez(made, {arrays}) for made in sys.argv[3::2]]"
    (tmp_path / "program.py").write_text(f"import sys\nimport numpy as np\n{made}\nprint('{{}}')\n")
    reader = faces.FaceReader(sys.executable, tmp_path / "program.py")
    with pytest.raises(EvaluationError, match=says):
        reader.read([frames_of(tmp_path, 9)], 1)


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    """What is named comes first, then the variable, then the folder that the make target writes to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(faces.VARIABLE, raising=False)
    assert faces.find_reader() is None
    script = reader_script(tmp_path)
    here = tmp_path / faces.DEFAULT.parent
    here.mkdir(parents=True)
    interpreter(here, script)
    assert faces.find_reader().versions == {"reader": "of colours"}
    monkeypatch.setenv(faces.VARIABLE, "nowhere")
    with pytest.raises(EvaluationError, match="instruments: nowhere"):
        faces.find_reader()
    assert faces.find_reader(interpreter(tmp_path, script)).versions == {"reader": "of colours"}


# -- the real one


@pytest.fixture(scope="module")
def real():
    """Made by ``make photo-instruments`` in the clone; CI does without."""
    path = ROOT / faces.DEFAULT
    if not path.exists():
        pytest.skip(f"no {faces.DEFAULT}: make photo-instruments")
    return faces.FaceReader(path)


def test_the_astronaut(real, tmp_path):
    """Moved by a known path, her landmarks move by it; a descriptor does not; in noise there is nobody."""
    from skimage.data import astronaut

    photo = astronaut()[:256, 96:352]
    paths = [measures.rolled(256, 0.0, 0.0), measures.rolled(256), measures.rolled(256, -0.05, -6.0)]
    noise = np.random.default_rng(0).integers(0, 256, photo.shape, np.uint8)
    frames = [np.rint(measures.moved(photo, path)).astype(np.uint8) for path in paths]
    np.save(tmp_path / "frames.npy", np.stack([*frames, noise]))
    np.save(tmp_path / "small.npy", photo[None, ::2, ::2])
    pairs = [(tmp_path / f"{name}.npy", tmp_path / f"{name}.npz") for name in ("frames", "small")]
    found, small = real.read(pairs, 1)
    np.testing.assert_array_equal(found.found, [True, True, True, False])
    assert found.count == 1 and set(real.versions) == {"mediapipe", "dlib-bin"}
    moves = measures.similarity(found.landmarks[1:3], found.landmarks[0])
    middle = found.landmarks[0, 168, :2]
    for move, path in zip(moves, paths[1:]):
        # a pixel of 256: the trembling of the landmarks
        np.testing.assert_allclose(move[:, :2] @ middle + move[:, 2], path[:, :2] @ middle + path[:, 2], atol=1.0)
    # of the same picture at half the size: same face, half the pixels
    np.testing.assert_allclose(small.landmarks[0, :, :2] * 2, found.landmarks[0, :, :2], atol=3.0)
    mean, most = measures.identity(found.descriptors[1:3], found.descriptors[0])
    assert 0 < mean <= most < 0.3  # dlib calls it another person from 0.6 on
    assert np.isnan(found.descriptors[3]).all()
    assert abs(measures.turned(found.landmarks[0])) < 10
