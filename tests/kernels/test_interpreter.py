"""The parity tests of the Triton kernels, in processes of their own: ``TRITON_INTERPRET`` goes before the import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.fitness import unfit

PARITY = Path(__file__).parent / "parity"
# Those of long tests have a process each, so that they can run side by side; the others share one, as importing
# PyTorch and Triton costs more than their tests.
LONG = ("causal_conv3d", "frame_audio_update", "frame_cross_attention", "sink_ring_attention", "vae_decode")
ALL = {path.stem.removeprefix("test_"): path for path in sorted(PARITY.glob("test_*.py"))}
PROCESSES = {name: [ALL[name]] for name in LONG} | {"others": [path for name, path in ALL.items() if name not in LONG]}


@pytest.mark.skipif(bool(unfit()), reason=unfit() or "the interpreter works")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PROCESSES)
def test_parity_in_the_interpreter(name, which):
    command = [sys.executable, "-c", "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"]
    command += ["-v", "-m", which, "-p", "no:cacheprovider", "--import-mode=importlib", *map(str, PROCESSES[name])]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=PARITY.parents[2])
    if which == "slow" and done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip("none of these is slow")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    if which == "slow":
        return
    for path in PROCESSES[name]:
        passed = re.search(rf"\b{path.name}::.* PASSED", done.stdout)
        assert passed, f"nothing ran of {path.name}:\n{done.stdout[-6000:]}"
