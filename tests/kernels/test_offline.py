"""Every launch of the Triton kernels at the real model's shapes, compiled for GPUs that need not be there."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

import pytest

import rest_fast.kernels

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def packages() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(rest_fast.kernels.__path__) if m.ispkg]


def cases() -> list:
    """(op, case) of every package; empty without Triton, where this file is skipped."""
    if importlib.util.find_spec("triton") is None:
        return []
    found = [(op, case) for op in packages() for case in importlib.import_module(f"rest_fast.kernels.{op}.cases").CASES]
    return [pytest.param(op, case, id=f"{op}-{case.name}") for op, case in found]


def test_every_package_has_cases():
    assert packages(), "no kernel package found"
    assert {p.values[0] for p in cases()} == set(packages())
