"""Whether Triton can build its launcher: each cause is planted, and found before the first launch."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import triton_host, triton_kernels
from rest_fast.ops.dispatch import Spec

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
SPEC = Spec("cuda", torch.bfloat16, (("lengths", "on the device"),))


@pytest.fixture
def reason(monkeypatch, tmp_path):
    """() -> why a kernel cannot run on a GPU of this machine, tried anew. The cache lies in a folder of the test."""
    monkeypatch.setattr(triton_kernels, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "not" / "yet"))

    def tried() -> str:
        triton_host.unable.cache_clear()
        return triton_kernels.unfit(SPEC)

    yield tried
    triton_host.unable.cache_clear()


def program(folder: Path, text: str) -> str:
    """An executable script."""
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def compiles(monkeypatch, tmp_path):
    """A compiler that accepts whatever it is given, with headers: what the other causes are planted beside."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(triton_host, "headers", lambda: tmp_path)
    monkeypatch.setenv("CC", program(tmp_path, "exit 0"))


def test_nothing_is_missing(compiles, reason):
    assert reason() == ""


def test_no_compiler(monkeypatch, reason):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "expected gcc, clang or the variable CC, found none" in reason()


def test_a_compiler_that_is_not_there(monkeypatch, reason):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "expected a program in the variable CC, got 'no-such-compiler'" in reason()


def test_no_headers(compiles, monkeypatch, tmp_path, reason):
    monkeypatch.setattr(triton_host, "headers", lambda: tmp_path / "empty")
    assert reason() == f"Triton needs Python.h for its launcher, found none in {tmp_path / 'empty'}"


def test_a_compiler_that_compiles_nothing(compiles, monkeypatch, tmp_path, reason):
    """As one without libc's headers or a linker, which is found on the path all the same."""
    text = "fatal error: stdlib.h: No such file or directory"
    monkeypatch.setenv("CC", program(tmp_path, f"echo in file included; echo '{text}' >&2; exit 1"))
    assert reason().endswith(f"compiles nothing: {text}")
    monkeypatch.setenv("CC", program(tmp_path, "exec /no/such/interpreter"))
    assert "compiles nothing" in reason()


def test_a_compiler_that_hangs(compiles, monkeypatch, tmp_path, reason):
    monkeypatch.setattr(triton_host, "SECONDS", 0.05)
    monkeypatch.setenv("CC", program(tmp_path, "exec sleep 5"))
    assert "does not run" in reason()


def test_a_cache_that_cannot_be_written(compiles, monkeypatch, tmp_path, reason):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "a folder for its cache" in reason() and "cannot be written" in reason()


def test_a_driver_that_triton_does_not_find(compiles, monkeypatch, reason):
    """PyTorch has its GPU, but there is no ldconfig to ask, as in images without a shell."""
    driver = types.ModuleType("triton.backends.nvidia.driver")
    monkeypatch.setitem(sys.modules, driver.__name__, driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert reason() == "", "a Triton that finds it in another way"

    def asks():
        raise FileNotFoundError(2, "No such file or directory", "/sbin/ldconfig")

    driver.libcuda_dirs = asks
    assert "libcuda.so.1" in reason() and "/sbin/ldconfig" in reason()


def test_a_builder_of_the_user(monkeypatch, reason):
    triton = pytest.importorskip("triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert reason() != ""
    monkeypatch.setattr(triton.knobs.build, "impl", lambda *args: "built", raising=False)
    assert reason() == ""


def test_the_real_compiler_of_this_machine(monkeypatch, reason):
    """The trial says what compiling the same file by hand says."""
    monkeypatch.delenv("CC", raising=False)
    found = triton_host.shutil.which("gcc") or triton_host.shutil.which("clang")
    by_hand = False
    if found:
        command = [found, "-fsyntax-only", f"-I{triton_host.headers()}", "-x", "c", "-"]
        by_hand = subprocess.run(command, input=triton_host.SOURCE, text=True, capture_output=True).returncode == 0
    assert (reason() == "") == by_hand


def test_the_trial_is_made_once(compiles, monkeypatch, tmp_path, reason):
    marks = tmp_path / "marks"
    monkeypatch.setenv("CC", program(tmp_path, f"echo . >> {marks}"))
    reason()
    for op in ops.ALL:
        op.report(SPEC)
    assert marks.read_text() == ".\n"


def test_the_next_backend_runs(monkeypatch, reason):
    """And the reason stands in the table."""
    monkeypatch.setenv("CC", os.devnull)
    assert reason()
    for op in ops.ALL:
        assert op.choose(SPEC, None).name != "triton"
        entries = {name: (ok, why) for name, ok, why in op.report(SPEC)}
        if "triton" in entries:
            assert entries["triton"][0] is False and "variable CC" in entries["triton"][1]
