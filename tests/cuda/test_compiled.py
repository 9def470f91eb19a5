"""nvcc compiles the CUDA sources, without a GPU: no spills, the instructions that are meant, and the page says so."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("cuda_kernels", ROOT / "tools" / "cuda_kernels.py")
assert spec is not None and spec.loader is not None
tool = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
spec.loader.exec_module(tool)
PAGE = ROOT / "docs" / "kernels" / "cuda.md"

compiles = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")


@functools.cache
def compiled(source: Path, architecture: str) -> list:
    """Each is compiled once, for the table and for the assertions."""
    return tool.compile_source(source, architecture)


def check(source: Path, architecture: str) -> None:
    kernels = compiled(source, architecture)
    assert kernels, "no kernel in the compiler's report"
    if tool.disassembler() is None:
        pytest.skip("no cuobjdump on this machine: instructions were not looked at")
    found = {k.name: tool.faults(k) for k in kernels}
    assert not any(found.values()), found


@compiles
def test_the_kernels_with_the_most_to_lose_for_the_oldest_gpu():
    """Of all tests of nvcc this one alone is fast: a source takes from 3 to 20 s of a core for each architecture."""
    check(next(s for s in tool.SOURCES if s.stem == "sink_ring_attention"), tool.ARCHITECTURES[0])


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("architecture", tool.ARCHITECTURES)
@pytest.mark.parametrize("source", tool.SOURCES, ids=lambda p: p.stem)
def test_every_kernel_for_every_gpu(source, architecture):
    check(source, architecture)


@compiles
@pytest.mark.slow
def test_the_page_shows_what_the_compiler_makes():
    _, shown, _ = tool.between(PAGE.read_text())
    if not shown.startswith(f"Made by {tool.made_by()}."):
        pytest.skip(f"the page is by another compiler than {tool.made_by()}")
    kernels = [k for s in tool.SOURCES for a in tool.ARCHITECTURES for k in compiled(s, a)]
    assert shown == tool.table(kernels), "the table is out of date: make cuda-kernels"


REPORT = """ptxas info    : Compiling entry function '_Z3oneILi8EEvi' for 'sm_80'
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 496 bytes cmem[0]
"""
CODE = """Function : _Z3oneILi8EEvi
    /*0010*/ LDG.E.128 R4, [R2] ;
    LDG.E R1, [R2.64] ;
    HMMA.16816.F32 R0 ;
    LDSM.16.M88.4 R8 ;
"""


def test_what_the_tool_reads():
    (kernel,) = tool.read("one", "80", REPORT.format(stack=0, spill=0), CODE)
    assert (kernel.name, kernel.cell()) == ("one<8>", "40, 2, 0, 1/1/0, 1/2")
    assert tool.faults(kernel) == []
    (spilled,) = tool.read("one", "80", REPORT.format(stack=16, spill=8), CODE)
    assert tool.faults(spilled) == ["8 bytes spilled, a stack of 16: expected none"]
    lacking = dataclasses.replace(kernel, name="many_keys_kernel<8>")
    assert tool.faults(lacking) == ["no LDGSTS"]
