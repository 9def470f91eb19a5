"""Peak memory of a streaming decode, of the variants of ``bench_vae.py``, beyond the weights."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import kit, vae_peers
from benchmarks.bench_vae import CASES, DTYPE, ON_GPU, Case, Chunk, Decode, in_last, settings

__all__ = ["settings"]  # a fixture, used by being here

# What a process does to find out what one variant needs; nothing else has filled its heap before.
PROGRAM = """
import sys, types
package = types.ModuleType("benchmarks")
package.__path__ = [sys.argv[1]]
sys.modules["benchmarks"] = package
from benchmarks import bench_vae, bench_vae_memory
print(bench_vae_memory.grown(bench_vae.CASES[int(sys.argv[2])], sys.argv[3]))
"""


@torch.no_grad()
def grown(case: Case, variant: str) -> float:
    """Megabytes at the peak of two chunks, from the first one on, beyond what there was before: the weights, and what
    is drawn."""
    decode, pieces = _alone(Case(case.release, case.mode, 16, 64), variant)
    for z in pieces:
        decode(z)  # code that is read from disk at its first call is no memory of a decode
    decode, pieces = _alone(case, variant)
    if ON_GPU:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, peak = _resident("VmRSS"), functools.partial(_resident, "VmHWM")
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):  # a search tries what is large
        for z in pieces[:2]:
            decode(z)
    return round((peak() - before) / 1e6, 1)


def _alone(case: Case, variant: str) -> tuple[Decode, list[torch.Tensor]]:
    """One variant, and what it is to be called with."""
    chunk = Chunk(case)
    own, others = chunk.streams(), chunk.concatenating()
    if variant in own:
        return own[variant](), chunk.latents
    if variant in others:
        return others[variant](), chunk.inside
    model = vae_peers.Diffusers(chunk.vae).to(memory_format=torch.channels_last_3d)
    return in_last(model), [chunk.clip(i) for i in range(len(chunk.latents))]


def _resident(field: str) -> int:
    """Bytes, as the kernel counts this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


@pytest.mark.skipif(not (ON_GPU or Path("/proc/self/clear_refs").exists()), reason="reads memory from /proc")
def test_memory(benchmark):
    """Peak of each variant beyond its weights. On a CPU each runs in a process of its own."""
    index = 0 if ON_GPU else next(i for i, case in enumerate(CASES) if case.side == 256)
    case, found, left_out = CASES[index], {}, {}
    # freed memory goes back at once; threads beside a busy neighbour would take long, and no more memory
    variables = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"}
    for name in ("ours", "concatenate", "diffusers, channels-last"):
        if ON_GPU:
            try:
                found[name] = grown(case, name)
            except (ImportError, RuntimeError) as e:
                left_out[name] = f"{type(e).__name__}: {e}"
            continue
        words = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(index), name]
        done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
        if done.returncode == 0:
            found[name] = float(done.stdout)
        else:
            left_out[name] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    assert "ours" in found, left_out
    chunk = Chunk(case)
    stream = chunk.vae.stream(mode=case.mode)
    for z in chunk.latents:
        stream.decode(z)
    weights = sum(p.nbytes for p in chunk.vae.decoder.parameters())
    sizes = {"weights": weights, "state": stream.state.nbytes, "workspace": stream.work.nbytes}
    about = {"dtype": kit.NAMES[DTYPE], "device": str(kit.device()), "peak_mb": found, "left_out": left_out}
    benchmark.extra_info |= {**asdict(case), **about, "ours_mb": {n: round(v / 1e6, 1) for n, v in sizes.items()}}
    benchmark.pedantic(stream.decode, args=(chunk.latents[0],), rounds=1)
