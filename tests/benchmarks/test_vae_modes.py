"""The measures of the streaming modes against numbers known beforehand."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rest_fast.config import preset
from rest_fast.models.vae import TemporalVAE
from rest_fast.training.causal_decoder import causal_copy, save
from rest_fast.training.shards import MANIFEST
from tests.kit.clips import write_clips

PATH = Path(__file__).parents[2] / "benchmarks" / "vae_modes.py"
spec = importlib.util.spec_from_file_location("vae_modes", PATH)
modes = importlib.util.module_from_spec(spec)
sys.modules["vae_modes"] = modes  # dataclasses look their module up
spec.loader.exec_module(modes)


@pytest.fixture(scope="module")
def vae() -> TemporalVAE:
    torch.manual_seed(0)
    config = dataclasses.replace(preset("toy").vae, causal_decoder=False)
    return TemporalVAE(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(1, 8, 13, 1, 1, generator=torch.Generator().manual_seed(0))


def moving(steps: np.ndarray) -> torch.Tensor:
    """A flat picture [3, n + 1, 8, 8] whose brightness changes by steps [n]."""
    values = torch.from_numpy(np.concatenate([[0.0], np.cumsum(steps)]))
    return values.view(1, -1, 1, 1).expand(3, -1, 8, 8)


def test_the_seam_ratio_of_planted_steps():
    steps = np.full(96, 0.002)
    steps[[24, 48, 72]] = -0.007  # into frames 25, 49 and 73; a change has no sign
    video = moving(steps)
    assert modes.seam_ratio(video, [25, 49, 73]) == pytest.approx(3.5)
    assert modes.seam_ratio(video, [24, 48, 72]) < 1
    steps[[8, 16, 32, 40, 56, 64, 80, 88]] = 0.0035  # the other borders of latents
    assert modes.seam_ratio(moving(steps), [25, 49, 73], range(9, 97, 8)) == pytest.approx(2)
    assert modes.seam_ratio(moving(np.full(96, 0.002)), [25, 49, 73]) == pytest.approx(1)


def test_the_error_relative_to_what_it_should_be():
    want = torch.tensor([3.0, -4.0])
    assert modes.relative_rms(want + torch.tensor([0.3, 0.4]), want) == pytest.approx(0.1)


def test_means_by_place_in_the_chunk():
    values, places = np.arange(48.0), range(1, 49)
    means = modes.by_position(values, places, 17)  # place 17 is value 16; place 41 value 40
    assert means[0] == (16 + 40) / 2 and means[23] == (15 + 39) / 2
    some = modes.by_position(np.array([5.0, 7.0]), [30, 54], 25)
    assert some[5] == 6 and np.isnan(np.delete(some, 5)).all()


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
def test_borders_are_where_the_calls_of_a_stream_end(vae, latents, ahead):
    stream = vae.stream(mode=f"lookahead({ahead})")
    counts = [stream.decode(piece).shape[2] for piece in latents.split(modes.PLAN, 2)]
    assert modes.borders(ahead) == np.cumsum(counts)[:3].tolist()
    shown = modes.in_one(vae, f"lookahead({ahead})", ahead)(latents)
    assert shown.video.shape == (3, 97, 32, 32) and list(shown.places) == list(range(97))


def test_clips_of_their_own_lose_seven_frames_each(vae, latents):
    shown = modes.naive(vae)(latents)
    lost = [*range(25, 32), *range(49, 56), *range(73, 80)]
    assert sorted({*range(97)} - {*shown.places}) == lost and list(shown.places) == sorted(shown.places)
    assert [shown.places[b] for b in shown.borders] == [32, 56, 80]
    alone = vae.decode(latents[:, :, 4:7], mode="exact")[0].clamp(-1, 1)
    assert torch.equal(shown.video[:, [shown.places.index(p) for p in range(32, 49)]], alone)
    held = modes.held(shown)
    assert held.shape[1] == 97
    assert all(torch.equal(held[:, p], held[:, 24]) for p in lost[:7]) and torch.equal(held[:, 32], alone[:, 0])


def test_a_causal_decoder_is_the_same_in_pieces(vae, latents):
    causal = causal_copy(vae, "folded")
    pieces, whole = modes.in_pieces(causal)(latents), modes.in_one(causal, "causal")(latents)
    torch.testing.assert_close(pieces.video, whole.video, rtol=0, atol=1e-5)
    assert list(pieces.borders) == list(whole.borders) == [25, 49, 73]


def test_the_numbers_of_a_planted_clip():
    """Off by 0.1 from the whole and by 0.3 from the truth on live frames, by much more where the clip ends."""
    steps = np.where(np.arange(96) % 2, 0.01, -0.01)
    whole = moving(steps) + 0.5
    got, truth = whole + 0.1, whole - 0.2
    got[:, 49:] += 0.3
    numbers = modes.measure(modes.Shown(got, range(97), [25, 49, 73]), whole, truth)
    assert numbers["psnr_whole"] == pytest.approx(10 * math.log10(4 / 0.01))
    assert numbers["psnr_whole_mouth"] == pytest.approx(numbers["psnr_whole"])
    for name in ("psnr_truth", "psnr_truth_mouth", "psnr_truth_held"):
        assert numbers[name] == pytest.approx(10 * math.log10(4 / 0.09))
    size = float(whole[:, 1:49].square().mean().sqrt())
    assert numbers["relative_rms"] == pytest.approx(0.1 / size)
    assert numbers["seam"] == pytest.approx((0.01 + 0.29 + 0.01) / 3 / 0.01)  # into frame 49: -0.01 + 0.3
    assert numbers["chunk_seam"] == pytest.approx(numbers["seam"])  # other latent borders are like all frames
    assert numbers["motion"] == pytest.approx(1)  # of frames 1 to 48
    faster = modes.measure(modes.Shown(2 * got, range(97), [25, 49, 73]), whole, truth)
    assert faster["motion"] == pytest.approx(2)
    same = modes.measure(modes.Shown(whole, range(97), [25, 49, 73]), whole, truth)
    assert "psnr_whole" not in same and same["seam"] == same["latent_seam"] == 1


def test_the_profile_of_a_planted_clip():
    whole = moving(np.full(96, 0.01))
    got = whole.clone()
    got[:, [16, 40]] += 0.004  # the last frame before a border at 17 and 41
    curves = modes.profiles(modes.Shown(got, range(97), [17, 41, 65]), whole)
    np.testing.assert_allclose(curves["squares"], [0] * 23 + [0.004**2], atol=1e-12)
    ratio = curves["change"] / curves["change_whole"]
    np.testing.assert_allclose(ratio, [0.6, *[1] * 22, 1.4], rtol=1e-9)


def test_spread_and_cost():
    assert modes.spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": pytest.approx(math.sqrt(7), abs=1e-4)}
    found = modes.cost({"a": [2.0, 1.0, 3.0], "b": [5.0, 5.0, 90.0]}, "a")
    assert found["a"] == {"call_ms": 2.0, "relative": 1.0} and found["b"]["relative"] == 2.5


def test_the_whole_run(vae, tmp_path):
    """At toy size: everything asked for is in the file, and it is JSON for any reader."""
    data = write_clips(tmp_path / "data", preset("toy"), 2, fields=["video"])
    manifest = json.loads((data / MANIFEST).read_text())
    for shard in manifest["shards"]:
        shard["split"] = "test"
    (data / MANIFEST).write_text(json.dumps(manifest))
    for name, one in {"teacher": vae, "student": causal_copy(vae, "folded")}.items():
        (tmp_path / name).mkdir()
        save(one, tmp_path / name)
    words = ["--vae", str(tmp_path / "teacher"), "--data", str(data), "--causal", f"x={tmp_path / 'student'}"]
    modes.main([*words, "--out", str(tmp_path / "out.json"), "--figure", str(tmp_path / "out.png")])
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["about"]["clips"] == 2 and found["pieces_error"]["x"] < 1e-5
    table, same = found["modes"], found["modes"]["causal, folded, not trained"]
    assert table["causal, x"] == same  # the same weights, from a file
    assert [table[f"lookahead({n})"]["delay_ms"] for n in range(4)] == [0, 320, 640, 960]
    assert {name: mode["frames_lost"] for name, mode in table.items() if mode["frames_lost"]} == {"naive": 21}
    assert "psnr_whole" not in table["whole"] and table["whole"]["seam"] == {"mean": 1.0, "std": 0.0}
    assert found["cost"]["lookahead(0)"]["relative"] == 1 and (tmp_path / "out.png").stat().st_size > 1000
