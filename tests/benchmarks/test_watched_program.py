"""The program that compute-sanitizer watches in the GPU suite, on the CPU: it runs what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import mock

import pytest

from benchmarks.gpu_suite import sanitize
from rest_fast import ops
from tests.cuda_shim import built
from tests.kernels import kit
from tests.kernels.fitness import unfit
from tests.kit.suite import SUITE


@pytest.mark.skipif(bool(unfit()), reason=unfit() or "the interpreter works")
@pytest.mark.parametrize(
    "op, strays",
    [("rotate_context", ("row_index = 1073741824", "skip_slot = -1")), ("causal_conv3d", ())],
    ids=["rotate_context", "causal_conv3d"],
)
def test_the_watched_program_runs_a_kernel_and_follows_no_stray_index(tmp_path, op, strays):
    """In Triton's interpreter, which reads and writes where the kernel says: a stray index would end the process."""
    variables = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, SUITE / "sanitize.py", op]
    done = subprocess.run(words, capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for what in ("torch.float32", "torch.float16", *strays):
        assert what in done.stdout


def test_it_runs_every_kernel_in_cuda():
    """Through the shim, in the dtypes that each takes, then with stray indices."""
    copied = kit.copied
    with mock.patch.object(kit, "copied", lambda call, device: copied(call, "cpu")), built.everywhere() as ran:
        assert len(list(sanitize.cuda_calls())) == sum(ran.values())
    assert set(ran) == {op.name for op in ops.ALL if "cuda" in [b.name for b in op.backends]}
