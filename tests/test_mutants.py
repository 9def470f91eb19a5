"""The list of mutants cannot rot: each fault still has its place and its tests. ``make mutants`` runs them."""

from __future__ import annotations

import ast
import re

import pytest

from tests.mutants import ROOT, Mutant
from tests.mutants.session import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_can_be_planted(mutant):
    text = mutant.planted()
    if mutant.file.endswith(".py"):
        ast.parse(text)
    for test in mutant.tests.split():
        path, _, name = test.partition("::")
        source = (ROOT / path).read_text()
        assert not name or re.search(rf"^def {name.partition('[')[0]}\(", source, re.MULTILINE), test


def test_names_are_distinct():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) > 40


@pytest.mark.parametrize("old, new", [("not there", "x"), ("import", "x"), ("def normal(\n", "def normal(\n")])
def test_a_fault_without_its_place_is_an_error(old, new):
    with pytest.raises(ValueError, match=r"mutant 'x': rest_fast/noise.py: expected .* once, got \d+"):
        Mutant("x", "rest_fast/noise.py", old, new, "").planted()
