"""Reports of documents made by hand: text, comparison, curves, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rest_fast.errors import ArgumentError
from rest_fast.latency import report, where
from rest_fast.latency.measures import Options


def waits(p50: float) -> dict[str, float]:
    return {"count": 20, "p50_ms": p50, "p95_ms": p50 + 10, "p99_ms": p50 + 20, "jitter_ms": 10.0}


def viewers(way: str, sessions: int, underruns: int) -> dict:
    served = {"capacity": 5} if way == "engine" else {}
    met = 1 - underruns / 100
    return {
        **{"way": way, "sessions": sessions, "seconds": 20.0, "blocks": 100, "deadlines_met": met},
        **{"underruns": underruns, "stalled_s": 0.5 * underruns, **waits(50.0 * sessions), **served},
    }


def made(p50: float = 150.0, **measured) -> dict:
    where = {"cpu": "CPU", "torch": "2.0", "rest_fast": "1", "commit": "0123456789", "uncommitted_changes": True}
    about = {"model": "demo", "device": "cpu", "dtype": "float32", "threads": 2}
    found = {"chunk, warm": {"engine": waits(p50)}, "memory": {"rss_anon_mib": 9.5, "cuda_mib": None}}
    fixed = {"kind": report.KIND, "date": "2026", "excluded": "the opening"}
    return {**fixed, "environment": where, "about": about, "measured": found | measured}


def test_text():
    lines = report.text(made(viewers=[viewers("engine", 1, 0), viewers("apart", 1, 3)])).splitlines()
    assert lines[0] == (
        "demo in float32 on cpu, 2 threads, CPU, torch 2.0, rest_fast 1, commit 0123456 with changes, 2026"
    )
    assert lines[2] == "not counted: the opening"
    assert lines[4].split() == ["milliseconds", "count", "p50", "p95", "p99", "jitter"]
    assert lines[5].split() == ["chunk,", "warm,", "engine", "20", "150", "160", "170", "10"]
    assert lines[7] == "memory: rss_anon_mib 9.5, cuda_mib -"
    assert lines[9] == "viewers, 20 s each"
    assert lines[10].split()[:4] == ["way", "sessions", "deadlines", "met"] and lines[10].endswith("capacity")
    assert lines[11].split()[:5] == ["engine", "1", "100%", "0", "0"] and lines[11].endswith(" 5")
    assert lines[12].split()[:5] == ["apart", "1", "97%", "3", "1.5"] and lines[12].endswith(" -")


def test_a_gpu_is_named():
    found = made()
    found["environment"] |= {"gpu": "H200", "driver": "570", "triton": "3.6"}
    assert ", H200 (driver 570), triton 3.6, CPU, " in report.heading(found)


def test_comparison():
    a, b = made(150.0, viewers=[viewers("engine", 4, 2)]), made(300.0, viewers=[viewers("engine", 8, 0)])
    text = report.comparison(a, b)
    rows = [line.split() for line in text.splitlines()]
    assert ["chunk,", "warm,", "engine,", "p50_ms", "150", "300", "2.00"] in rows
    assert "only in A: viewers, engine x 4, blocks" in text and "only in B: viewers, engine x 8, blocks" in text
    assert "count" not in text and text.startswith("A: demo in float32") and "\nB: demo" in text


def test_a_ratio_to_nothing():
    a = made(viewers=[viewers("engine", 4, 0)])
    rows = [line.split() for line in report.comparison(a, made(viewers=[viewers("engine", 4, 2)])).splitlines()]
    assert ["viewers,", "engine", "x", "4,", "underruns", "0", "2", "-"] in rows


def test_curves(tmp_path):
    rows = [viewers(way, n, n * (way == "apart")) for n in (1, 2, 4, 8) for way in ("engine", "apart")]
    path = report.plot(made(viewers=rows), tmp_path / "curves.png")
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape == (280, 920, 3)
    coloured = (np.ptp(picture.astype(int), axis=-1) > 60).any(0)
    assert coloured[60:440].any() and coloured[520:900].any(), "both panels have curves"


@pytest.mark.parametrize("rows", [
    [viewers("engine", 1, 0)],
    [viewers("engine", 1, 0), {k: v for k, v in viewers("engine", 2, 0).items() if k != "p95_ms"}],
], ids=["one number of sessions", "nobody got a block"])  # fmt: skip
def test_curves_of_little(tmp_path, rows):
    assert report.plot(made(viewers=rows), tmp_path / "curves.png").stat().st_size > 1000


def test_a_document_survives_a_file(model, tmp_path):
    measured = {"chunk": {"engine": [0.1, 0.2, 0.3]}, "viewers": [viewers("engine", 1, 0)]}
    found = report.document(model, Options(), measured)
    assert found["measured"]["chunk"]["engine"]["p50_ms"] == pytest.approx(200)
    assert {"cpu", "torch", "threads", "commit", "gpu" if model.device.type == "cuda" else "cores"} <= set(
        found["environment"]
    )
    assert found["about"]["options"]["lanes"] == 2
    report.write(found, tmp_path / "a.json")
    assert report.read(tmp_path / "a.json") == json.loads(json.dumps(found))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "rest_fast latency"}', "\x00"])
def test_another_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=r"a\.json: expected a file that rest-fast bench --json has written"):
        report.read(path)


def test_a_commit_is_that_of_these_sources(monkeypatch):
    answers = {"--show-toplevel": "/elsewhere", "HEAD": "abc", "--porcelain": ""}
    monkeypatch.setattr(where, "asked", lambda root, *words: answers[words[1]])
    assert where.commit_info() == {}, "a folder within another's clone"
    answers["--show-toplevel"] = str(where.ROOT)
    assert where.commit_info() == {"id": "abc", "dirty": False}
    monkeypatch.setattr(where, "asked", lambda *_: None)
    assert where.commit_info() == {}
