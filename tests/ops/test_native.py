"""The compiled modules: as many helpers in threads of Python as PyTorch was told; GPUs that nothing is compiled for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rest_fast.ops import native
from rest_fast.ops.dispatch import Spec

COUNT = """
import os, threading, torch
from rest_fast import ops
torch.set_num_threads(LIMIT)
x, out = torch.randn(8, 512, 1024), torch.empty(8, 512, 1024)  # enough for four threads
vectors = [torch.randn(8, 1, 1024) for _ in range(2)]
tasks = lambda: len(os.listdir("/proc/self/task"))
def work():
    before = tasks()
    ops.gate_norm_modulate(x, None, None, *vectors, out, eps=1e-6)
    print(tasks() - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads that Linux lists")
@pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")
@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_of_torch_holds_in_every_thread(limit):
    done = subprocess.run(
        [sys.executable, "-c", COUNT.replace("LIMIT", str(limit))],
        env=os.environ | {"OMP_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == limit - 1


@pytest.mark.parametrize("capability, fits", [((7, 5), False), ((8, 0), True), ((12, 0), True)], ids=str)
def test_a_gpu_for_which_nothing_is_compiled_is_refused_by_name(capability, fits, monkeypatch):
    monkeypatch.setattr(native, "module", lambda name: (object(), ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    ok, reason = native.supports(Spec("cuda", torch.bfloat16, device_index=1), [torch.bfloat16], "cuda")
    assert ok == fits and ("the GPU has 7.5" in reason) != fits
