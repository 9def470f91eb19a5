"""For tests of engines: one that refuses nobody."""

from __future__ import annotations

import pytest


@pytest.fixture
def engine(model):
    with model.engine(sessions=3, admission=False) as opened:
        yield opened
