"""nvcc compiles the CUDA sources, without a GPU and without spills."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.cuda_shim import built

SOURCES = [source for source in built.KERNELS if "__global__" in source.read_text()]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_nvcc_compiles_without_spills(source, tmp_path):
    command = ["nvcc", "-std=c++17", "-O3", "-DNDEBUG", "-Xptxas", "-v", "--threads", "0", "-c"]
    for arch in ("80", "90a"):
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command += [str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "warning" not in log, log

    for arch in ("sm_80", "sm_90a"):
        assert f"for '{arch}'" in log, f"nothing was compiled for {arch}"
    spills = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill \w+)", log)]
    assert spills and not any(spills), log
