"""The tests of the CUDA sources once more, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_shim import built

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
# An allocation of 4 GB that nobody fills: a sanitizer would, with what it knows of it.
LEFT_OUT = "not beyond_32_bits"
PROBE = """
import ctypes, torch
from tests.cuda_shim import built
given, out = torch.zeros(16), torch.zeros(16)
library = ctypes.CDLL(str(built.library("probes", [built.HERE / "probes.cu"])))
library.mistakes(ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr()), None, FAULT)
"""


def environment() -> dict[str, str]:
    """With the sanitizers' library loaded first, and that of C++, whose exceptions it watches."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [built.compiler(), f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True).stdout.strip())
        if not path.is_absolute():
            pytest.skip(f"{built.compiler()} has no {name}")
        found.append(str(path.resolve()))
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "PYTHONMALLOC": "malloc"}
    return os.environ | options | {"LD_PRELOAD": " ".join(found), "REST_FAST_SHIM_SANITIZE": "address,undefined"}


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], env=environment(), cwd=built.ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("fault", [5, 6], ids=["shared", "global"])
def test_a_read_outside_is_seen(fault):
    done = run("-c", PROBE.replace("FAULT", str(fault)))
    assert done.returncode and "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("path", sorted(HERE.glob("test_*.py")), ids=lambda p: p.stem)
def test_every_kernel(path):
    if path.stem in ("test_sanitized", "test_compiled"):
        pytest.skip("it runs no kernel")
    done = run("-m", "pytest", "-q", "-x", "-m", "not slow", "-k", LEFT_OUT, "-p", "no:cacheprovider", str(path))
    assert not done.returncode, (done.stdout + done.stderr)[-6000:]
