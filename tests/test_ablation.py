"""The ablation study: what its report says, and that all of its trainings run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from rest_fast import cli

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


report = module("ablation_report")


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


def test_the_page_is_what_the_results_say():
    """The tables of docs/ablation.md are those of the stored results: 9 variants, 3 seeds."""
    table = report.read(BENCHMARKS / "results" / "ablation")
    assert list(table["full"]) == [0, 1, 2] and set(table) == set(report.ORDER)
    assert all(len(runs) == 3 for runs in table.values())
    page = (BENCHMARKS.parent / "docs" / "ablation.md").read_text()
    assert report.numbers(table) in page and report.comparison(table) in page


@pytest.mark.slow
def test_all_trainings_of_a_seed(tmp_path, monkeypatch):
    pytest.importorskip("skia")
    pytest.importorskip("espeakng_loader")
    study = module("ablation")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["synth", "clips", "--clips", "8", "--quiet"]) == 0
    assert cli.main(["prepare-data", "clips", "data", "--config", "demo", "--weights", "demo", "--quiet"]) == 0
    short = study.schedule(0).replace(speech__steps=1, teacher__steps=1, student__steps=1, asd__steps=1)
    monkeypatch.setattr(study, "schedule", lambda seed: short)
    study.train(tmp_path / "data", tmp_path / "work", 0, "demo")
    for variant in study.VARIANTS:
        changes = {**variant.model, **variant.inference}
        assert study.load(tmp_path / "work", 0, variant).config == short.model.replace(**changes)
