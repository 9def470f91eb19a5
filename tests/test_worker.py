"""The worker: one thread for all computation, its threads, and what of a caller does not reach it."""

from __future__ import annotations

import functools
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from rest_fast import checkpoint, preset
from rest_fast import worker as module
from rest_fast.models.rest import REST
from rest_fast.ops.dispatch import forced_backend, use_backend
from rest_fast.worker import Worker, worker


@pytest.fixture
def one():
    return Worker()


def test_all_callers_share_one_thread(one):
    seen: list[int] = []

    def call():
        seen.append(one.run(1, False, threading.get_ident))

    callers = [threading.Thread(target=call) for _ in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen
    assert one.run(1, False, one.run, 1, False, threading.get_ident) == seen[0]  # a job may ask for a job


def test_a_device_has_one_worker():
    assert worker(torch.device("cpu")) is worker(torch.device("cpu"))
    assert worker(torch.device("cpu")) is not worker(torch.device("cuda:0"))  # which a worker does not touch itself


def test_a_job_that_raises_raises_for_its_caller_and_for_nobody_else(one):
    with pytest.raises(ZeroDivisionError):
        one.run(1, False, lambda: 1 / 0)
    assert one.run(1, False, lambda: 7) == 7


def test_context_variables_come_along_and_thread_settings_do_not(one):
    with use_backend("reference"), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert one.run(1, False, forced_backend) == "reference"
        assert not one.run(1, False, torch.is_autocast_enabled, "cpu")
        assert one.run(1, False, lambda: torch.empty(0).device.type) == "cpu"
    assert one.run(1, False, forced_backend) != "reference"


def test_threads_are_the_jobs_own(one):
    before = torch.get_num_threads()
    assert [one.run(n, False, torch.get_num_threads) for n in (3, 1, 2)] == [3, 1, 2]
    assert torch.get_num_threads() == before
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [before]


def test_a_job_within_a_job_may_ask_for_fewer_threads_and_gets_no_more(one):
    def job() -> list[int]:
        asked = [one.run(n, False, torch.get_num_threads) for n in (1, 3)]
        with pytest.raises(ZeroDivisionError):
            one.run(1, False, lambda: 1 / 0)
        return [*asked, torch.get_num_threads(), mkl_threads(), one.threads]

    assert one.run(2, False, job) == [1, 2, 2, 2, 2]


def mkl_threads() -> int:
    found = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    return int(found[1]) if found else torch.get_num_threads()


def test_matrix_products_get_the_jobs_threads_too(one):
    """PyTorch fixes MKL's number in a new thread once somebody has called ``torch.set_num_threads``."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert [one.run(n, False, mkl_threads) for n in (1, 4, 2)] == [1, 4, 2]
    finally:
        torch.set_num_threads(before)


def test_without_the_compiled_module_the_setting_is_put_back(one, monkeypatch):
    monkeypatch.setattr(module.native, "module", lambda name="_cpu": (None, "not there"))
    before = torch.get_num_threads()
    assert one.run(3, False, torch.get_num_threads) == 3
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [before]


@pytest.mark.parametrize(
    ("most", "free", "threads"),
    [
        (2, math.inf, 2),  # the system does not say
        (2, 2.0, 2),
        (2, 1.8, 2),  # a neighbour that takes a fifth of a core
        (2, 1.5, 1),  # one that shares a core with us; without us it would take all of it
        (2, 0.3, 1),
        (8, 8.0, 8),
        (8, 6.5, 4),
        (1, 0.0, 1),
    ],
)
def test_flexible_jobs_take_what_neighbours_leave(one, monkeypatch, most, free, threads):
    monkeypatch.setattr(one.free, "look", lambda own: free)
    assert one.run(most, True, torch.get_num_threads) == threads
    assert one.run(most, False, torch.get_num_threads) == most


def test_a_job_that_got_fewer_threads_queues_jobs_that_may_have_more(monkeypatch):
    """As an engine's does, which goes on in job after job: while neighbours are there, and when they are gone."""
    with checkpoint.Unfilled():
        model = REST(preset("drawn"))  # whose frames do not depend on the number; nothing of it is computed here
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outside = model.team()
        for free in (1.0, 2.0):
            monkeypatch.setattr(model.worker.free, "look", lambda own, free=free: free)
            model.worker.looked -= module.WINDOW
            threads, inside = model.compute(lambda: (model.worker.threads, model.team()))
            assert (threads, inside) == (min(free, outside[0]), outside)
    finally:
        torch.set_num_threads(before)


def test_the_number_of_threads_settles(one, monkeypatch):
    """Whatever the free cores are, and whichever team counts: no going to and fro, as a wrong count once made it."""
    times = {"now": 100.0, "idle": 0.0, 1: 5.0, 2: 40.0}  # seconds: a clock, idle time, CPU time of either team
    monkeypatch.setattr(time, "monotonic", lambda: times["now"])
    monkeypatch.setattr(module.cores, "_idle_seconds", lambda: times["idle"])
    monkeypatch.setattr(module.native, "thread_seconds", lambda count: times[count])
    one.free.quota = None
    chosen = []
    for i, neighbour in enumerate((0.0,) * 8 + (1.0,) * 8 + (0.0,) * 8):  # cores that others would take
        if i in (4, 5, 11, 12, 19):  # as `prepare` does, or a model whose threads are given
            one.run(1 + i % 2, False, int)
        threads = one.run(2, True, torch.get_num_threads)
        chosen.append(threads)
        own = min(threads, 2 - neighbour / 2 if threads == 2 else 1)  # two threads share a core with the neighbour
        for team in (1, 2):
            times[team] += own / team if team < threads else own
        times["idle"] += 2 - own - min(neighbour, 2 - own)
        times["now"] += 1.0
    assert chosen == [2] * 9 + [1] * 8 + [2] * 7


def test_free_cores_are_looked_up_once_in_a_while(one, monkeypatch):
    looks = []
    monkeypatch.setattr(one.free, "look", lambda own: looks.append(own) or math.inf)
    for _ in range(20):
        one.run(2, True, int)
    assert len(looks) == 1
    one.looked -= module.WINDOW
    one.run(2, True, int)
    assert len(looks) == 2
    assert looks[1] >= looks[0] >= 0  # CPU time of the team goes one way


def test_a_busy_neighbour_is_seen(one):
    """On the cores of this process: as many busy processes as cores leave nothing to spare."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if count < 2 or not module.cores.STAT.exists():
        pytest.skip("needs two cores and a system that counts idle time")
    spin = "while True: pass"
    neighbours = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        deadline = time.monotonic() + 20
        while one.run(count, True, torch.get_num_threads) == count:
            assert time.monotonic() < deadline, "the neighbours were never seen"
            time.sleep(module.WINDOW)
    finally:
        for process in neighbours:
            process.kill()
            process.wait()


def test_ctrl_c_ends_the_wait_and_not_the_job(one, request):
    # A shell starts what runs in the background with SIGINT ignored, and Python leaves that so.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = threading.Event()

    def job():
        time.sleep(0.3)
        done.set()

    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        one.run(1, False, job)
    assert not done.is_set()
    assert done.wait(5)  # what the job was changing is whole
    assert one.run(1, False, lambda: 3) == 3


FORK = """
import hashlib, os, sys, threading, time, warnings
import numpy as np
import rest_fast
from rest_fast.model import ASSETS

warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: a process with threads forks
model = rest_fast.load("demo", threads=2)
avatar = model.prepare(ASSETS / "demo" / "portrait.png", crop="center")
pcm = (np.random.default_rng(0).standard_normal(18000) * 0.05).astype(np.float32)
live = model.session(avatar)

def digest(session):
    session.push_audio(pcm)
    return hashlib.sha256(next(iter(session.blocks())).video.tobytes()).hexdigest()

def child(answer):
    with model.session(avatar) as session:
        os.write(answer, digest(session).encode() + digest(live).encode())
    os._exit(0)

expected = digest(model.session(avatar))
other = threading.Thread(target=digest, args=[model.session(avatar)])  # computes while the process forks
for busy in (False, True):
    if busy:
        other.start()
        started, done = threading.Event(), []
        model.submit(lambda: (started.set(), time.sleep(0.5), done.append(1)))
        started.wait()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(write)
    assert not busy or done, "the process forked in the middle of a job"
    os.close(write)
    found = os.read(read, 200).decode()
    assert found == 2 * expected, (busy, found, expected)
    os.wait()
assert digest(live) == expected  # the child's copy was another
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes_what_its_parent_does():
    """With sessions opened before and after, while another thread computes."""
    patient = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # two threads beside other tests: waiting must not take cores
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, env=patient)
    assert done.stdout == "same\n", done.stderr[-2000:]


LEAKS = """
import contextlib, hashlib, os, sys, tempfile
import numpy as np, torch
import rest_fast
from rest_fast.model import ASSETS

pcm = (np.random.default_rng(0).standard_normal(12000) * 0.05).astype(np.float32)

def digest():
    model = rest_fast.load("demo", threads=1)
    avatar = model.prepare(ASSETS / "demo" / "portrait.png", crop="center")
    with model.session(avatar, sample_rate=24000) as session:
        session.push_audio(pcm)
        session.end_segment()
        return hashlib.sha256(b"".join(block.video.tobytes() for block in session.blocks())).hexdigest()

@contextlib.contextmanager
def default(setting, value, before):
    setting(value)
    try:
        yield
    finally:
        setting(before)

expected = digest()
settings = {
    "float64": default(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": default(torch.set_default_dtype, torch.float16, torch.float32),
    "meta": default(torch.set_default_device, "meta", None),
    "autocast": torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode(),
}
for name, setting in settings.items():
    with setting:
        assert digest() == expected, name
gone = tempfile.mkdtemp()
os.chdir(gone)
os.rmdir(gone)
assert digest() == expected
print("same")
"""


def test_a_callers_defaults_and_a_deleted_folder_change_nothing():
    done = subprocess.run([sys.executable, "-c", LEAKS], capture_output=True, text=True, timeout=240)
    assert done.stdout == "same\n", done.stderr[-2000:]


LATE = """
import atexit, threading, time
import torch
from rest_fast.worker import worker

one = worker(torch.device("cpu"))
one.run(1, False, int)

def late():
    threading.main_thread().join()
    time.sleep(0.2)  # the interpreter ends its pools meanwhile
    print(one.run(1, False, lambda: "a thread that outlives the main thread"), flush=True)

threading.Thread(target=late).start()
atexit.register(lambda: print(one.run(1, False, lambda: "an exit handler"), flush=True))
"""


def test_threads_that_outlive_the_main_thread_compute():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["a thread that outlives the main thread", "an exit handler"], done.stderr


ASKS = """
import os, threading, time
import torch
from rest_fast.worker import hold_over_fork, worker

cpu = torch.device("cpu")
started, inbox = threading.Event(), threading.Lock()
hold_over_fork(inbox)

def job():
    started.set()
    time.sleep(0.3)
    return worker(cpu).run(1, False, lambda: 5)  # while the fork below waits for this job

thread = threading.Thread(target=lambda: print(worker(cpu).run(1, False, job), flush=True))
thread.start()
started.wait()
inbox.acquire()
threading.Timer(0.6, inbox.release).start()  # a push that is under way
pid = os.fork()
if pid == 0:
    with inbox:
        os._exit(worker(cpu).run(1, False, lambda: 7))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_waits_for_jobs_and_locks_without_a_deadlock():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ASKS], capture_output=True, text=True, timeout=60)
    assert sorted(done.stdout.split()) == ["5", "7"], done.stderr


def test_two_threads_may_ask_for_the_fingerprint():
    """A job that asks for it, while another thread holds the lock of a cached property, once hung for ever."""
    from tests.kit.toys import toy

    model, asked = toy(), threading.Event()

    def job() -> str:
        asked.set()
        time.sleep(0.2)
        return model.fingerprint

    future = model.submit(job)
    asked.wait(5)
    assert model.fingerprint == future.result(20)
