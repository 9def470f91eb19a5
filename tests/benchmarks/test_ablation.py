"""The ablation study: what its report says, and that all of its trainings run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rest_fast import cli
from rest_fast.evaluation.readers import PixelReader
from tests.kit.bench import BENCHMARKS, script

report = script("ablation_report")


@pytest.mark.parametrize(("sign", "found", "says"), [
    (1, [0.3, 0.2, 0.1], "yes"),
    (-1, [0.3, 0.2, 0.1], "no: the opposite"),
    (1, [0.3, 0.2, -0.1], "unclear (2 of 3 seeds)"),
    (1, [0.01, 0.02, 0.01], "too small to tell"),
    (0, [0.3, 0.2, 0.1], "no: it changes"),
    (0, [0.1, 0.1, 0.1], "yes"),
    (0, [0.9, -0.2, 0.1], "yes"),
    (1, [], "not run"),
])  # fmt: skip
def test_verdicts(sign, found, says):
    """For a deviation of 0.3 over the seeds of the full model."""
    assert report.verdict(report.Claim("x", "", "m", sign), found, 0.3) == says


def test_differences_are_within_a_seed():
    table = {"full": {0: {"m": 1.0}, 1: {"m": 5.0}}, "x": {1: {"m": 7.0}, 2: {"m": 9.0}}}
    assert report.differences(table, "x", "m") == [2.0]


def test_stored_results():
    """9 variants, 3 seeds. (That docs/ablation.md shows them: test_tables.py.)"""
    table = report.read(BENCHMARKS / "results" / "ablation")
    assert list(table["full"]) == [0, 1, 2] and set(table) == set(report.ORDER)
    assert all(len(runs) == 3 for runs in table.values())


def test_the_error_of_a_velocity(model):
    """Of a DiT that says nothing, the mean square of what it should have said; of one that knows, none. References
    count for neither."""
    study, tokens, channels = script("ablation"), model.config.tokens, model.config.vae.latent_channels
    g = torch.Generator().manual_seed(1)
    latents = 13  # of a clip of 97 frames, the photo first
    clean = torch.randn(2, latents * tokens, channels, generator=g)
    samples = np.zeros((2, study.LEAD + study.FRAMES * study.FRAME + 4000), np.float32)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    photos = iter(clean[:, :tokens])

    class Told:
        """A model whose DiT is told the answer, times ``share``."""

        config, features, speech = model.config, model.features, model.speech
        vae = SimpleNamespace(encode=lambda pixels: study_latents(next(photos)))

        def __init__(self, share):
            self.share, self.layouts, self.levels = share, [], []

        def dit(self, z, t, codes, layout):
            self.layouts.append(layout)
            self.levels.append(float(t[0, -1]))
            assert not t[:, 0].any() and codes.shape[1] == latents
            mixed = (1 - t.repeat_interleave(tokens, 1)[..., None]) * clean
            assert torch.allclose(z, mixed + t.repeat_interleave(tokens, 1)[..., None] * noise, atol=1e-6)
            return self.share * (noise - clean) + 7 * (t.repeat_interleave(tokens, 1)[..., None] == 0)

    def study_latents(photo):
        return photo.T.reshape(1, channels, 1, *model.config.grid)

    clips = SimpleNamespace(samples=samples, pixels=lambda i, frames: torch.zeros(3, 1, 8, 8))
    truth = clean[:, tokens:].unflatten(1, (-1, tokens)).flatten(2)
    silent, knowing = Told(0.0), Told(1.0)
    want = float((noise - clean)[:, tokens:].square().mean())
    assert study.velocity_error(silent, clips, truth, "teacher") == pytest.approx(want, rel=1e-5)
    photos = iter(clean[:, :tokens])
    assert study.velocity_error(knowing, clips, truth) == 0
    assert set(silent.layouts) == {"teacher"} and set(knowing.layouts) == {"streaming"}
    assert silent.levels == pytest.approx(study.LEVELS)


def test_candidates_are_named(capsys):
    candidates = script("candidates")
    for words, says in (
        (["demo", "--velocity"], "expected NAME=CHECKPOINT, each name once, got demo"),
        (["a=demo", "a=demo", "--velocity"], "each name once"),
        (["a=demo"], "--data and --reader: expected both, or --velocity"),
    ):
        with pytest.raises(SystemExit):
            candidates.main([*words, "--test", "none"])
        assert says in capsys.readouterr().err
    rows = candidates.table({"a": {"streaming": 1.5, "teacher": 2.0}, "b": {"streaming": 0.25, "teacher": 3.0}})
    assert rows.splitlines()[0] == "| weights | velocity error, streaming | velocity error, all frames at once |"
    assert rows.splitlines()[3] == "| b | 0.25 | 3 |"


@pytest.mark.slow
def test_all_trainings_of_a_seed(tmp_path, monkeypatch):
    pytest.importorskip("skia")
    pytest.importorskip("espeakng_loader")
    study = script("ablation")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["synth", "clips", "--clips", "8", "--size", "256", "--quiet"]) == 0
    assert cli.main(["prepare-data", "clips", "data", "--config", "demo", "--weights", "demo", "--quiet"]) == 0
    short = study.schedule(0, "demo").replace(speech__steps=1, teacher__steps=1, student__steps=1, asd__steps=1)
    study.train(tmp_path / "data", tmp_path / "work", short, "demo", study.VARIANTS)
    for variant in study.VARIANTS:
        changes = {**variant.model, **variant.inference}
        assert study.load(tmp_path / "work", 0, variant).config == short.model.replace(**changes)

    # what the trainings left, as candidates: every number of both tables, of two stages
    candidates = script("candidates")
    assert cli.main(["synth", "test", "--clips", "2", "--split", "test", "--size", "256", "--quiet"]) == 0
    PixelReader().save(tmp_path / "reader.safetensors")
    shared = tmp_path / "work" / "seed_0" / "shared"
    named = [f"teacher={shared / 'teacher'}", f"ASD={shared.parent / 'full' / 'asd'}", "--test", "test"]
    candidates.main([*named, "--velocity", "--out", "velocity.json"])
    candidates.main([*named, "--data", "data", "--reader", "reader.safetensors", "--out", "all.json"])
    found, errors = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "velocity"))
    assert found["clips"] == errors["clips"] == 2 and list(found["candidates"]) == ["teacher", "ASD"]
    for name, row in found["candidates"].items():
        assert row["velocity_error"] == pytest.approx(errors["candidates"][name]["streaming"], rel=1e-3)
        assert set(row) == set(candidates.TITLES) - {"streaming", "teacher"}
