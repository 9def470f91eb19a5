"""The measures on the toy model: what must hold on any machine, however busy."""

from __future__ import annotations

import dataclasses

import pytest

from rest_fast.latency import measures, suite
from rest_fast.latency.measures import Options
from rest_fast.latency.ways import WAYS

FEW = Options(chunks=2, crowd=4, rounds=1, seconds=1.4)


@pytest.mark.parametrize("way", WAYS)
def test_a_fresh_session(model, avatar, way):
    (seconds,) = measures.chunk_cold(model, avatar, FEW, way)
    assert seconds > 0


def test_ways_take_turns(model, avatar):
    found = measures.chunk_warm(model, avatar, FEW, tuple(WAYS))
    assert list(found) == list(WAYS) and all(len(t) == 2 and min(t) > 0 for t in found.values())


def test_the_first_frame_cannot_come_before_its_sound(model, avatar):
    found = measures.first_frame(model, avatar, FEW)
    ((whole,), (wait,)) = found.values()
    assert 0 < wait < whole and whole - wait == pytest.approx(1.04, abs=0.1), "52 pieces of 20 ms"


def test_speech_out_of_silence(model, avatar):
    ((whole,), (wait,)) = measures.onset(model, avatar, FEW).values()
    assert 0 < wait < whole and whole - wait == pytest.approx(1.04, abs=0.1)


@pytest.mark.parametrize("way", ["engine", "apart"])
def test_an_interrupt(model, avatar, way):
    times = measures.interrupt(model, avatar, dataclasses.replace(FEW, rounds=3), way)
    assert len(times) == 3 and min(times) > 0


def test_parts(model, avatar):
    found = measures.parts(model, avatar, FEW)
    assert list(found) == ["features", "denoise", "decode"] and all(len(t) == 2 and min(t) > 0 for t in found.values())


@pytest.mark.parametrize("way", ["engine", "apart", "batched"])
def test_a_crowd(model, avatar, way):
    found = measures.crowd(model, avatar, FEW, 2, way)
    assert len(found["seconds"]) == 4
    assert found["chunks_per_second"] >= 2 / (2 * max(found["seconds"])), "both wait at the same time"


@pytest.mark.parametrize("way", ["engine", "batched"])
def test_viewers(model, avatar, way):
    found = measures.live(model, avatar, FEW, 2, way)
    assert (found["way"], found["sessions"], found["seconds"]) == (way, 2, 1.4)
    assert 0 <= found["deadlines_met"] <= 1 and found["stalled_s"] >= 0 and found["blocks"] % 3 == 0
    assert ("capacity" in found) == (way == "engine")
    if found["blocks"]:
        assert found["count"] == found["blocks"] and 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]


def test_a_batch_that_fails_tells_every_viewer(model, avatar, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr("rest_fast.streaming.sampler.ChunkSampler.run", broken)
    with pytest.raises(RuntimeError, match="broken"):
        measures.crowd(model, avatar, FEW, 2, "batched")


def test_memory(model, avatar):
    found = measures.memory(model, avatar, FEW)
    assert set(found) == {"rss_anon_mib", "cuda_mib"} and (found["cuda_mib"] is None) == (model.device.type == "cpu")
    assert found["rss_anon_mib"] is None or -1 < found["rss_anon_mib"] < 100


def test_percentiles():
    found = measures.percentiles([0.001 * k for k in range(1, 102)])
    assert found == pytest.approx({"count": 101, "p50_ms": 51, "p95_ms": 96, "p99_ms": 100, "jitter_ms": 45})


def test_a_suite_names_its_measures():
    assert "chunk of 4 sessions, engine" in suite.quick((1, 4)) and "first frame" in suite.quick()
    assert list(suite.realtime((1, 2), peers=True)) == [
        "speech out of silence",
        *(f"{count} viewers, {way}" for count in (1, 2) for way in ("engine", "apart", "batched")),
    ]


def test_a_suite_is_run_in_order(model, avatar):
    seen: list[tuple[int, int]] = []
    steps = {
        "a": lambda *_: [0.5],
        "1 viewers": lambda *_: {"way": "engine", "sessions": 1, "deadlines_met": 1.0},
        "2 viewers": lambda *_: {"way": "engine", "sessions": 2, "deadlines_met": 0.5},
    }
    found = suite.run(steps, model, avatar, FEW, lambda done, total: seen.append((done, total)))
    assert found["a"] == [0.5] and [row["sessions"] for row in found["viewers"]] == [1, 2]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
