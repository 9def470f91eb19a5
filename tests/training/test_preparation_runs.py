"""A preparation that is stopped goes on; bad arguments are refused before anything is done."""

from __future__ import annotations

import multiprocessing
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from tests.kit.films import TOY, boxes, run, speaking
from tests.kit.toys import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four whole videos, one of them of two clips, one with a name of its own, and one that is short."""
    source = tmp_path_factory.mktemp("videos") / "in"
    (source / "more").mkdir(parents=True)
    speaking(source / "a.mov", 200)
    speaking(source / "b b.mkv", 97, sound_at=Fraction(1, 8))
    speaking(source / "c.mov", 50)
    speaking(source / "more/é.mp4", 110)
    speaking(source / "z.mov", 98)
    (source / "notes.txt").write_text("no video")
    (source / ".hidden.mov").write_text("no video")
    return source


@pytest.fixture(scope="module")
def prepared(folder):
    out = folder.parent / "out"
    return out, run(folder, out, boxes=boxes(folder), video=True)


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "journal.jsonl"}


# -- stopped and started again


class Stop(Exception):
    pass


def stop_at(count: int):
    def progress(done: int, total: int) -> None:
        if done == count:
            raise Stop

    return progress


def test_a_stopped_run_ends_with_the_same_bytes(folder, prepared, tmp_path):
    out, calls = tmp_path / "out", []
    options = {"boxes": boxes(folder), "video": True}
    with pytest.raises(Stop):
        run(folder, out, **options, progress=stop_at(2))
    assert not (out / "manifest.json").exists()
    journal = out / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 3
    with journal.open("a") as file:  # killed while it wrote the next line
        file.write('{"source": "c.mov", "sha')
    report = run(folder, out, **options, progress=lambda *done: calls.append(done))
    assert calls == [(3, 5), (4, 5), (5, 5)]
    assert contents(out) == contents(prepared[0]) and report == prepared[1]
    assert journal.read_bytes() == (prepared[0] / "journal.jsonl").read_bytes()
    assert run(folder, out, **options) == report and contents(out) == contents(prepared[0])


def test_a_lost_shard_is_made_again(folder, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    (out / "clips_000001_00.safetensors").unlink()
    (out / "clips_000004_00.safetensors").write_bytes(b"torn")
    run(folder, out, boxes=boxes(folder), video=True)
    assert contents(out) == contents(prepared[0])


def test_processes_give_the_same_bytes_and_one_that_is_killed_is_noticed(folder, prepared, tmp_path):
    out, options = tmp_path / "out", {"boxes": boxes(folder), "video": True, "workers": 2}

    def kill(done: int, total: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(RuntimeError, match=r"in/.*: the process that prepared it ended \(exit code -9"):
        run(folder, out, **options, progress=kill)
    assert not multiprocessing.active_children()
    run(folder, out, **options)
    assert contents(out) == contents(prepared[0])
    assert not multiprocessing.active_children()


# -- bad arguments


def not_square(tmp: Path) -> dict:
    return {"config": TOY.replace(width=128)}


def with_boxes(text: str):
    def make(tmp: Path) -> dict:
        (tmp / "b.json").write_text(text)
        return {"boxes": tmp / "b.json"}

    return make


def taken(tmp: Path) -> dict:
    (tmp / "out").mkdir()
    (tmp / "out" / "letter.txt").write_text("dear")
    return {}


def other_vae(tmp: Path) -> dict:
    toy(height=128, width=128).save(tmp / "toy")
    return {"weights": tmp / "toy"}


REFUSED = [
    (lambda tmp: {"source": tmp / "nothing"}, r"nothing: expected a folder of videos or a video, found none"),
    (lambda tmp: {"source": tmp / "empty"}, r"empty: expected videos \(.3g2 .*\), found none in 1 files"),
    (lambda tmp: {"out": tmp / "in" / "out"}, r"out: expected an output folder outside of .*in"),
    (lambda tmp: {"out": tmp / "in" / "a.mov" / "x"}, r"x: expected|outside"),
    (taken, r"out: expected an empty folder or one begun by prepare-data"),
    (not_square, r"expected a square model, got 64 x 128"),
    (lambda tmp: {"workers": -1}, r"workers >= 0.*got -1"),
    (lambda tmp: {"min_face": -1}, r"min_face >= 0.*-1"),
    (lambda tmp: {"validation": 1.5}, r"validation: expected a share in 0..1, got 1.5"),
    (lambda tmp: {"detector": "dlib", "boxes": None}, r"detector: expected one of .*got 'dlib'"),
    (lambda tmp: {"boxes": tmp / "none.json"}, r"none.json: expected JSON of boxes, got No such file"),
    (with_boxes("[1"), r"b.json: expected JSON of boxes"),
    (with_boxes("[1]"), r"b.json: expected \{.file name.*got list"),
    (with_boxes('{"b.mov": [0, 0, 9, 9]}'), r"b.json: b.mov: expected the name of a video as in \['a.mov'\]"),
    (with_boxes('{"a.mov": [0, 0, 9, 8]}'), None),
    (with_boxes('{"a.mov": [0, 0, 9, 7]}'), r"a.mov: expected a square .*got \[0, 0, 9, 7\]"),
    (with_boxes('{"a.mov": [9, 0, 0, -9]}'), r"a.mov: expected a square"),
    (with_boxes('{"a.mov": [0, 0, 9]}'), r"a.mov: expected a square"),
    (with_boxes('{"a.mov": [0, 0, true, 1]}'), r"a.mov: expected a square"),
    (lambda tmp: {"whisper": "tiny"}, r"whisper: expected no Whisper model for speech.features 'logmel', got tiny"),
    (lambda tmp: {"config": TOY.replace(speech__features="whisper")}, r"whisper: expected --whisper MODEL"),
    (lambda tmp: {"weights": tmp / "in"}, r"in: expected a folder with config.json"),
    (other_vae, r"weights .*toy: expected a VAE of height 64, got 128"),
]


@pytest.mark.parametrize("change, words", REFUSED)
def test_refused_before_anything_is_done(tmp_path, change, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    (tmp_path / "in" / "a.mov").write_bytes(b"")
    options = {"source": tmp_path / "in", "out": tmp_path / "out", "boxes": boxes(tmp_path / "in")} | change(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    if words is None:
        run(options.pop("source"), options.pop("out"), **options)
        return
    with pytest.raises(ValueError, match=words):
        run(options.pop("source"), options.pop("out"), **options)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change, words",
    [
        ({"video": False}, "video true, got false"),
        ({"min_face": 50}, "min_face 43, got 50"),
        ({"validation": 0.5}, "validation 0.0, got 0.5"),
        ({"config": TOY.replace(speech__positions=16)}, "speech.positions 20, got 16"),
        ({"boxes": None, "detector": "opencv"}, r"boxes \{.*, got null; detector null, got .opencv"),
    ],
)
def test_other_arguments_are_refused(folder, prepared, change, words):
    if "detector" in change:
        pytest.importorskip("cv2")
    before = contents(prepared[0])
    with pytest.raises(ValueError, match=f"out: begun with other arguments .*expected {words}"):
        run(folder, prepared[0], **({"boxes": boxes(folder), "video": True} | change))
    assert contents(prepared[0]) == before


def test_other_files_are_refused(folder, prepared, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "a.mov").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"expected files .*, got "):
        run(tmp_path / "in", prepared[0], boxes=boxes(folder), video=True)


def test_two_runs_do_not_write_one_folder(folder, tmp_path):
    def second(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="expected a folder that no other run writes"):
            run(folder, tmp_path / "out", boxes=boxes(folder))
        raise Stop

    with pytest.raises(Stop):
        run(folder, tmp_path / "out", boxes=boxes(folder), progress=second)
