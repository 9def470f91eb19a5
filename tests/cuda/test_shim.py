"""The shim itself: products against torch, and that each mistake it promises to show is seen."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cuda_shim import built
from tests.kit.compare import assert_close, assert_same_bits


@functools.cache
def library() -> Path:
    return built.library("probes", [built.HERE / "probes.cu"])


def probe_value(kind: type, name: str):
    """A number that the shim shares with Python."""
    return kind.in_dll(ctypes.CDLL(str(library())), name)


def probe(name: str, given: torch.Tensor, out: torch.Tensor, more: torch.Tensor | None = None, fault: int = 0) -> int:
    address = [ctypes.c_void_p(0 if t is None else t.data_ptr()) for t in (given, out, more)]
    return getattr(ctypes.CDLL(str(library())), name)(*address, fault)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_are_those_of_torch(dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    out = torch.full((16, 8), torch.nan)
    assert probe(f"product_{str(dtype).removeprefix('torch.')}", a, out, b) == 0
    assert_close(out, a.double() @ b.double(), rtol=2**-24, reason="a sum of exact products, rounded once")


ALL_WELL = torch.arange(512.0).view(2, 64, 4)[:, :, 0].flip(1)


def copied(fault: int, backwards: int) -> torch.Tensor:
    """[2, 64], equal to the reversed first numbers of each 16 bytes if nothing is wrong."""
    order = probe_value(ctypes.c_int, "cuda_on_cpu_backwards")
    given, out = torch.arange(512.0), torch.zeros(2, 64)
    order.value = backwards
    try:
        assert probe("copies", given, out, fault=fault) == 0
    finally:
        order.value = 0
    return out


@pytest.mark.parametrize("backwards", [0, 1])
def test_a_copy_is_there_after_wait_and_barrier(backwards):
    assert_same_bits(copied(0, backwards), ALL_WELL)


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("fault", [1, 2], ids=["no_wait", "no_barrier"])
def test_what_is_read_too_early_is_nan(fault, backwards):
    assert copied(fault, backwards).isnan().any()


@pytest.mark.parametrize("backwards", [0, 1])
def test_what_is_read_too_late_is_of_the_next_tile(backwards):
    got = copied(3, backwards)
    assert torch.equal(got[1], ALL_WELL[1])
    assert not torch.equal(got[0], ALL_WELL[0])


@pytest.mark.parametrize("pending", [0, 1, 2])
def test_a_wait_delivers_all_groups_but_the_last(pending):
    given, out = torch.arange(1.0, 13.0), torch.zeros(12)
    given[7] = torch.nan  # the second copy reads 12 bytes, and makes the rest zero
    assert probe("groups", given, out, fault=pending) == 0
    want = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12])
    want[4 * (3 - pending) :] = torch.nan
    assert_close(out[: 4 * (3 - pending)], want[: 4 * (3 - pending)], reason="copied")
    assert out[4 * (3 - pending) :].isnan().all()


def test_bank_conflicts_are_counted():
    count = probe_value(ctypes.c_int64, "cuda_on_cpu_bank_conflicts")
    for fault, conflicts in ((0, 0), (1, 4 * 7)):
        before = count.value
        assert probe("conflicts", torch.zeros(1), torch.zeros(1), fault=fault) == 0
        assert count.value - before == conflicts


def test_sums_are_over_the_block_and_the_same_in_every_thread():
    given, out = torch.randn(96), torch.zeros(96, 2)
    assert probe("sums", given, out) == 0
    assert_close(out[0, 0], given.double().sum(), atol=96 * 2**-24 * 4, reason="96 fp32 roundings below 4")
    assert_same_bits(out, out[:1].expand(96, 2).contiguous())
    assert out[0, 1] == 96


@pytest.mark.parametrize("name", ["too_much_shared", "too_many_threads"])
def test_the_limits_of_a_launch_are_those_of_a_gpu(name):
    assert probe(name, torch.zeros(2000), torch.zeros(4000)) in (1001, 1009)


DEAD = """
import ctypes, sys
memory = (ctypes.c_float * 1024)()
getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(memory, memory, None, int(sys.argv[3]))
print("lived")
"""


@pytest.mark.parametrize(
    "name, fault, says",
    [
        ("copies", 4, "a cp.async that nobody waited for"),
        ("mistakes", 1, ""),
        ("mistakes", 2, "that some threads never reach"),
        ("mistakes", 3, "different collectives"),
        ("mistakes", 4, "not aligned to 16 bytes"),
        ("mistakes", 7, "a vector is not aligned to its size"),
        ("mistakes", 8, "a vector is not aligned to its size"),
    ],
)
def test_what_hardware_leaves_undefined_ends_the_program(name, fault, says):
    """Half of the warps at a barrier while the others have ended is no mistake on a GPU, and none here."""
    command = [sys.executable, "-c", DEAD, str(library()), name, str(fault)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert ("lived" in done.stdout) == (not says), done.stderr
    assert says in done.stderr
