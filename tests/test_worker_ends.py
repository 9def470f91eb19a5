"""Worker: jobs that go on when a process ends or forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE_ENDS = """
from tests.kit import toys
model = toys.toy()
engine = model.engine(sessions=2, admission=False)
session = engine.session(model.prepare(toys.photo(), crop="center"))
session.push_audio(toys.sound(16000, 10.0))
"""


def test_a_process_ends_while_an_engine_computes():
    """Without closing anything: a job that makes way for others must not wait for itself."""
    words = [sys.executable, "-c", ENGINE_ENDS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


ENDS = """
import time
import torch
from rest_fast.worker import worker

one = worker(torch.device("cpu"))

def job():
    time.sleep(1.0)  # the main thread ends
    one.submit(1, False, print, "queued by a job", flush=True)
    print("waited for:", one.waited_for, flush=True)

one.submit(1, False, job)
"""


def test_a_job_that_queues_another_one_at_the_exit_does_not_hang():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["queued by a job", "waited for: False"], done.stderr


GOES_ON = """
import os, threading, time
import torch
from rest_fast.worker import worker

one = worker(torch.device("cpu"))
end = time.monotonic() + 10

def job():  # as an engine that has always something to do
    while time.monotonic() < end:
        time.sleep(0.01)
        if one.waited_for:
            one.submit(1, False, job)
            return

one.submit(1, False, job)
time.sleep(0.3)
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(worker(torch.device("cpu")).run(1, False, lambda: 7))
    assert os.waitpid(pid, 0)[1] >> 8 == 7
print("in time" if time.monotonic() < end else "late", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_waits_for_a_piece_and_not_for_all_that_is_to_do():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", GOES_ON], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["in time"], done.stderr
