"""The compiled CPU module in threads of Python: as many helpers as PyTorch was told, and no more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rest_fast.ops import native

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
