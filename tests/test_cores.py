"""How many cores a process may use, and how many of them are free: from files of a system that is made up here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rest_fast import cores


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A function that writes files of /proc and /sys below ``tmp_path``."""
    for name, path in (("CGROUPS", "sys"), ("OWN_GROUPS", "groups"), ("STAT", "stat")):
        monkeypatch.setattr(cores, name, tmp_path / path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3}, raising=False)

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("quota", "threads"), [("max 100000", 3), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)]
)
def test_a_container_of_version_2(system, quota, threads):
    system(groups="0::/\n", sys__cpu_dot_max=quota, sys__cpu_dot_stat="usage_usec 1500000\nuser_usec 7\n")
    assert cores.allowed() == threads
    assert (cores.quota() is None) == quota.startswith("max")
    if found := cores.quota():
        assert found.cores == int(quota.split()[0]) / 1e5
        assert found.used() == 1.5


def test_a_group_is_bound_by_the_one_around_it(system):
    system(
        groups="0::/outer/inner\n", sys__outer__inner__cpu_dot_max="max 100000", sys__outer__cpu_dot_max="100000 50000"
    )
    assert cores.quota().cores == 2


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_a_container_of_version_1_whose_path_is_the_hosts(system, tmp_path, mount):
    """Inside, the group of the file is not there; the mount shows the container's own at its root."""
    system(groups=f"4:memory:/x\n3:{mount}:/docker/abc\n0::/\n")
    (tmp_path / "sys" / mount).mkdir(parents=True)
    (tmp_path / "sys" / "cpuacct").mkdir(parents=True, exist_ok=True)
    (tmp_path / "sys" / mount / "cpu.cfs_quota_us").write_text("120000\n")
    (tmp_path / "sys" / mount / "cpu.cfs_period_us").write_text("60000\n")
    counter = tmp_path / "sys" / ("cpuacct" if mount == "cpu" else mount) / "cpuacct.usage"
    counter.write_text("2500000000\n")
    assert cores.quota().cores == 2
    assert cores.quota().used() == 2.5
    (tmp_path / "sys" / mount / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores.quota() is None


def test_a_system_that_says_nothing_has_all_its_cores(system, monkeypatch):
    assert cores.allowed() == 3
    assert cores.FreeCores().look(0.0) == math.inf
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores.allowed() == os.cpu_count()


def _stat(*idle: float) -> str:
    """/proc/stat after so many idle seconds of each core; a tenth of them waiting for a disk."""
    hertz = os.sysconf("SC_CLK_TCK")
    rows = [f"cpu{i} 1 2 3 {round(0.9 * s * hertz)} {round(0.1 * s * hertz)} 9 9 9 0 0" for i, s in enumerate(idle)]
    return "\n".join(["cpu 1 2 3 4 5 6 7 8 9 0", *rows, "intr 5"])


def test_free_cores_are_the_idle_and_the_own(system, monkeypatch):
    clock = iter([10.0, 12.0, 13.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    system(stat=_stat(50, 10, 10, 10))
    meter = cores.FreeCores()
    assert meter.look(5.0) == math.inf  # nothing to compare with
    system(stat=_stat(50, 12, 10, 10))  # of 3 x 2 s: 2 s idle; 1 s own; so others had 3 s
    assert meter.look(6.0) == pytest.approx(1.5)
    system(stat=_stat(99, 13, 11, 11))  # core 0 is not ours: what it does is not counted
    assert meter.look(6.0) == pytest.approx(3.0)


def test_a_made_up_file_of_zeros_says_nothing(system):
    system(stat="cpu 0 0 0 0\ncpu1 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0\n")
    meter = cores.FreeCores()
    assert [meter.look(0.0), meter.look(1.0)] == [math.inf, math.inf]


def test_neighbours_in_a_container_use_up_its_quota(system, monkeypatch):
    clock = iter([10.0, 11.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    system(groups="0::/\n", sys__cpu_dot_max="200000 100000", sys__cpu_dot_stat="usage_usec 0", stat=_stat(0, 1, 1, 1))
    meter = cores.FreeCores()
    meter.look(0.0)
    # the host is idle, but of the container's 2 cores others used 1.2 and this process 0.3
    system(stat=_stat(1, 1.9, 1.9, 1.9), sys__cpu_dot_stat="usage_usec 1500000")
    assert meter.look(0.3) == pytest.approx(0.8)


CHILD = """
import os, sys
with open(os.path.join(sys.argv[1], "cgroup.procs"), "w") as file:
    file.write(str(os.getpid()))
from rest_fast import cores
print(cores.allowed(), cores.quota().cores, cores.quota().used() >= 0)
"""


def test_a_real_quota_of_this_machine():
    """Where this user may make control groups of version 1: root on many a test machine."""
    root = Path("/sys/fs/cgroup/cpu")
    group = root / f"rest_fast_test_{os.getpid()}"
    if not (root / "cpu.cfs_quota_us").exists() or not os.access(root, os.W_OK):
        pytest.skip("control groups of version 1 cannot be made here")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"control groups of version 1 cannot be made here: {error}")
    try:
        (group / "cpu.cfs_quota_us").write_text("150000")
        (group / "cpu.cfs_period_us").write_text("100000")
        done = subprocess.run([sys.executable, "-c", CHILD, str(group)], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["1", "1.5", "True"]
    finally:
        group.rmdir()
