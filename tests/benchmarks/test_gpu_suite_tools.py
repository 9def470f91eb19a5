"""What the GPU suite's steps stand on: the list of wheels, verdicts on real output, the record of the machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

from tests.kit.suite import ROOT, SUITE, compiled, evidence, gpu_here, judges, machine, place, steps, wheels

Ended = steps.Ended

# --- wheels ---


def test_the_list_brings_what_the_suite_imports():
    brought = {plain(name) for name in wheels.pinned()}
    assert {plain(name) for name in wheels.NEEDED.values()} - brought == {"pytorch", "numpy"}


def plain(name: str) -> str:
    """A package's name as an index compares it."""
    return name.lower().replace("_", "-")


def test_the_list_is_whole_and_new_enough():
    """Nothing is resolved where it is installed: what these packages require is in the list, in a version that fits."""
    requirements, tomllib = (pytest.importorskip(name) for name in ("packaging.requirements", "tomllib"))
    pins = {plain(name): version for name, version in wheels.pinned().items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += project["project"]["optional-dependencies"]["test"]
    for name in pins:
        try:
            wanted += importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not in this environment
    there = {"numpy", "torch", "huggingface-hub", "httpx"}  # of the machine itself; the last two only diffusers wants
    for text in wanted:
        need = requirements.Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"python_version": "3.12", "extra": ""}):
            continue
        if plain(need.name) in pins:
            assert need.specifier.contains(pins[plain(need.name)]), f"{text}, pinned to {pins[plain(need.name)]}"
        elif text not in project["project"]["dependencies"] + project["project"]["optional-dependencies"]["test"]:
            assert plain(need.name) in there, f"{text} is not in the list"


@pytest.mark.parametrize("line", ["pytest", "pytest>=9", "pytest==", "==9", "pytest==9 ; extra", "a==1\na==2"])
def test_a_line_that_is_no_pin_is_named(tmp_path, line):
    path = tmp_path / "wheels.txt"
    path.write_text(f"# fine\n{line}\n")
    with pytest.raises(ValueError, match=r"wheels\.txt, line [23]: expected "):
        wheels.pinned(path)


def wheel(folder: Path, name: str, version: str) -> None:
    """A package of one empty module."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture
def toy_list(tmp_path, monkeypatch):
    """A list of one package, which is not installed anywhere, for this Python."""
    path = tmp_path / "wheels.txt"
    path.write_text("rest_fast_toy==1.0\n")
    monkeypatch.setattr(wheels, "LIST", path)
    monkeypatch.setattr(wheels, "PYTHON", sys.version_info[:2])
    monkeypatch.setattr(wheels, "NEEDED", {"rest_fast_toy": "rest-fast-toy"})
    return tmp_path


def test_wheels_are_installed_without_an_index(toy_list, capfd):
    wheel(toy_list / "wheels", "rest_fast_toy", "1.0")
    wheel(toy_list / "wheels", "rest_fast_toy", "2.0")  # the list decides, not the newest
    for _ in range(2):  # and again, over what is there
        assert wheels.install(toy_list / "site", toy_list / "wheels") == 0, capfd.readouterr()
        assert [p.name for p in (toy_list / "site").glob("*.dist-info")] == ["rest_fast_toy-1.0.dist-info"]


def test_what_is_missing_is_named_with_the_cure(toy_list, capfd):
    assert wheels.install(toy_list / "site", toy_list / "wheels") == 1
    assert "missing: rest-fast-toy; run `make gpu-wheels`" in capfd.readouterr().out


def test_wheels_of_another_python_are_left_alone(toy_list, monkeypatch, capfd):
    wheel(toy_list / "wheels", "rest_fast_toy", "1.0")
    monkeypatch.setattr(wheels, "PYTHON", (3, 2))
    monkeypatch.setattr(wheels, "NEEDED", {"pytest": "pytest"})
    assert wheels.install(toy_list / "site", toy_list / "wheels") == 0
    assert "the wheels are for Python 3.2" in capfd.readouterr().out
    assert not list((toy_list / "site").glob("rest_fast_toy*"))


def test_a_folder_of_somebody_else_is_not_cleared(toy_list, capfd):
    (toy_list / "mine").mkdir()
    (toy_list / "mine" / "thesis.txt").touch()
    assert wheels.install(toy_list / "mine", toy_list / "wheels") == 1
    assert (toy_list / "mine" / "thesis.txt").exists()
    assert "expected a folder that this script has made" in capfd.readouterr().out


# --- verdicts ---


def pytest_run(tmp_path: Path, text: str):
    """The verdict on a test file, by pytest's own report."""
    path, junit = tmp_path / "test_toy.py", tmp_path / "junit.xml"
    path.write_text("import pytest\n" + text)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "--junitxml", junit]
    done = subprocess.run([*words, path], capture_output=True, text=True, cwd=tmp_path)
    return judges.tests(junit)(Ended(done.returncode, done.stdout))


SKIPS = "@pytest.mark.skip(reason='no bf16 here')\ndef test_b(): pass\n"


def test_counts_come_from_pytest_itself(tmp_path):
    outcome = pytest_run(tmp_path, "def test_a(): pass\ndef test_c(): assert 0\n" + SKIPS)
    assert (outcome.status, outcome.reason) == ("failed", "1 of 3 tests failed (exit code 1)")
    assert outcome.results == {"passed": 1, "failed": ["test_toy::test_c"], "skipped": {"no bf16 here": 1}}


def test_tests_that_were_all_skipped_have_not_passed(tmp_path):
    outcome = pytest_run(tmp_path, SKIPS)
    assert (outcome.status, outcome.reason) == ("skipped", "every test was skipped: no bf16 here")


def test_a_file_that_cannot_be_collected_fails(tmp_path):
    assert pytest_run(tmp_path, "import nonsense\n").status == "failed"


def test_no_test_at_all_is_said(tmp_path):
    assert pytest_run(tmp_path, "").reason == "no test was collected"


HEAD = "========= COMPUTE-SANITIZER\n"
WRITE = "========= Invalid __global__ write of size 4 bytes\n=========     at kernel+0x50\n"
REFUSAL = "========= Error: Device not supported. Please refer to the documentation\n"


@pytest.mark.parametrize(
    "code, text, status, reason",
    [
        (0, HEAD + "ran\n========= ERROR SUMMARY: 0 errors\n", "passed", "no errors"),
        (0, HEAD + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed", "no errors"),
        (
            99,
            HEAD + WRITE + "========= ERROR SUMMARY: 2 errors\n",
            "failed",
            "2 errors, first: Invalid __global__ write",
        ),
        (99, HEAD + "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", "failed", "1 errors"),
        (1, HEAD + "ImportError: x\n========= ERROR SUMMARY: 0 errors\n", "failed", "exit code 1"),
        (0, "ran\n", "failed", "no summary of compute-sanitizer"),
    ],
)
def test_a_program_is_clean_only_by_the_sanitizers_own_summary(code, text, status, reason):
    outcome = judges.clean(Ended(code, text))
    assert outcome.status == status and outcome.reason.startswith(reason), outcome


@pytest.mark.parametrize(
    "code, text, status, reason",
    [
        (99, HEAD + WRITE + "========= ERROR SUMMARY: 1 error\n", "passed", "the planted error was found"),
        (1, HEAD + REFUSAL, "skipped", "compute-sanitizer is refused here: Error: Device not supported"),
        (0, HEAD + "========= ERROR SUMMARY: 0 errors\n", "skipped", "compute-sanitizer did not find a planted error"),
        (127, "", "skipped", "compute-sanitizer did not find a planted error (exit code 127)"),
    ],
)
def test_a_sanitizer_is_believed_once_it_has_found_something(code, text, status, reason):
    outcome = judges.caught(Ended(code, text))
    assert outcome.status == status and outcome.reason.startswith(reason), outcome


def test_benchmarks_are_taken_over_whole(tmp_path, monkeypatch):
    stored = tmp_path / "bench.json"
    monkeypatch.setattr(machine, "graphics", lambda: [{"clocks.sm": "1980 MHz"}])
    content = {"version": "5", "benchmarks": [{"name": "test_op[a]", "extra_info": {"ratio": 2.5}}]}
    stored.write_text(json.dumps(content))
    outcome = judges.benchmarks(stored)(Ended(0, ""))
    assert outcome.status == "passed"
    assert outcome.results == content | {"after": [{"clocks.sm": "1980 MHz"}]}
    stored.write_text(json.dumps({"benchmarks": []}))
    assert judges.benchmarks(stored)(Ended(0, "")).status == "skipped"
    assert judges.benchmarks(stored)(Ended(5, "")).status == "skipped"
    assert judges.benchmarks(stored)(Ended(1, "boom")).reason == "exit code 1: boom"


# --- the record ---


def tree(root: Path) -> Path:
    for name in ("csrc/a.cu", "rest_fast/b.py", "docs/c.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_the_digest_is_of_what_is_built_and_run(tmp_path):
    root = tree(tmp_path)
    digest = machine.source(root)["digest"]
    (root / "docs/c.md").write_text("other words")
    assert machine.source(root)["digest"] == digest
    (root / "csrc/a.cu").write_text("other code")
    assert machine.source(root)["digest"] != digest


def test_a_tree_without_history_takes_the_commit_that_was_noted_for_it(tmp_path):
    root = tree(tmp_path)
    bare = machine.source(root)
    assert bare["commit"] is None
    note = root / "build/gpu-wheels/source.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(bare | {"commit": "abc"}))
    assert machine.source(root)["commit"] == "abc"
    (root / "rest_fast/b.py").write_text("changed since")
    assert machine.source(root)["commit"] is None


def fake_tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)


def test_what_nvidia_smi_says_is_in_the_record(tmp_path, monkeypatch):
    values = "NVIDIA H200, 580.159.04, 143771 MiB, 700.00 W, 345 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 31"
    fake_tool(tmp_path, "nvidia-smi", values)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (shown,) = machine.graphics()
    assert (shown["name"], shown["driver_version"], shown["clocks.mem"]) == ("NVIDIA H200", "580.159.04", "3201 MHz")
    fake_tool(tmp_path, "nvcc", "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88")
    assert machine.version("nvcc") == "Cuda compilation tools, release 13.0, V13.0.88"


@pytest.mark.skipif(gpu_here(), reason="PyTorch sees a GPU")
def test_a_gpu_that_pytorch_does_not_see_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "graphics", lambda: [{"name": "NVIDIA H200", "driver_version": "580"}])
    found = machine.record(ROOT)
    assert "nvidia-smi shows NVIDIA H200, but PyTorch" in found["problem"]


def test_a_python_without_pytorch_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "PROBE", "import torch_that_is_not_there")
    assert "ModuleNotFoundError: No module named 'torch_that_is_not_there'" in machine.record(ROOT)["problem"]


def test_files_of_results_stay_in_the_work_folder(tmp_path):
    here = place(tmp_path)
    assert here.result("parity/op.xml") == tmp_path / "work" / "parity-op.xml"


# --- our own wheel ---


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A tree, and a folder with a wheel of its modules: this environment's own, for this Python."""
    root, folder = tree(tmp_path / "tree"), tmp_path / "wheels"
    (root / "kernels").mkdir()
    (root / "kernels" / "k.py").write_text("")
    monkeypatch.setattr(compiled, "ROOT", root)
    monkeypatch.setattr(wheels, "PYTHON", sys.version_info[:2])
    monkeypatch.setattr(compiled, "VERSION", ".".join(map(str, sys.version_info[:2])))
    folder.mkdir()
    module = Path(importlib.import_module("rest_fast._cpu").__file__)
    whole = tmp_path / "rest_fast-0.1.0-cp3-cp3-linux_x86_64.whl"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.write(module, f"rest_fast/{module.name}")
        for name in ("rest_fast/b.py", "rest_fast/_build_info.py", "rest_fast-0.1.0.dist-info/METADATA"):
            archive.writestr(name, "of the wheel")
    compiled.compiled_only(whole, folder / whole.name)
    (folder / compiled.NOTE).write_text(json.dumps(compiled.note("90a-real")))
    return root, folder, module.name


def test_the_wheel_brings_what_was_compiled_and_the_tree_the_rest(made, tmp_path):
    root, folder, module = made
    site = tmp_path / "site"
    (site / "rest_fast").mkdir(parents=True)
    (site / "rest_fast" / "stale.py").touch()
    (root / "rest_fast" / "b.py").write_text("changed since: needs no new wheel")
    assert compiled.lay(site, "90a-real", folder) == ""
    files = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    brought = {f"rest_fast/{module}", "rest_fast/_build_info.py", "rest_fast-0.1.0.dist-info/METADATA"}
    assert files == brought | {"rest_fast/b.py", "rest_fast/kernels/k.py"}
    assert (site / "rest_fast" / "b.py").read_text() == "changed since: needs no new wheel"


def test_a_wheel_of_something_else_is_not_used(made, tmp_path, monkeypatch):
    root, folder, _ = made
    assert compiled.misfit(folder, "80-real") == "architecture: expected 80-real, got 90a-real"
    assert compiled.misfit(tmp_path, "90a-real") == "there is none"
    (root / "csrc" / "a.cu").write_text("other code")
    assert compiled.misfit(folder, "90a-real").startswith("sources: expected ")
    monkeypatch.setattr(wheels, "PYTHON", (3, 2))
    assert compiled.misfit(folder, "90a-real").startswith("it is for Python ")


def test_modules_that_cannot_be_loaded_are_compiled_again(made, tmp_path, capfd):
    _, folder, module = made
    (wheel_,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel_, "w") as archive:
        archive.writestr(f"rest_fast/{module}", b"of another system")
    mark = [sys.executable, "-S", "-c", f"open({str(tmp_path / 'compiled')!r}, 'w')"]
    assert compiled.main(["lay", str(tmp_path / "site"), "90a-real", str(folder), "--", *mark]) == 0
    assert (tmp_path / "compiled").exists()
    assert (
        f"compiled here, as the wheel made beforehand cannot be used: {module}: ImportError" in capfd.readouterr().out
    )


def test_a_wheel_is_made_of_this_tree_and_fits_it(made, tmp_path, monkeypatch):
    """The commands themselves are played: the list is unpacked, then pip leaves a wheel of the whole package."""
    root, folder, _ = made
    before = (folder / compiled.NOTE).read_text()
    (root / "csrc" / "a.cu").write_text("other code")
    monkeypatch.setattr(compiled, "python", lambda: "python3.12")
    monkeypatch.setattr(machine, "tool", lambda name: "/cuda/bin/nvcc")
    commands = []

    def run(command: list[str], **options):
        commands.append(command)
        if "wheel" in command:
            assert options["env"]["REST_FAST_CUDA"] == "ON" and command[-1] == str(root)
            target = Path(command[command.index("--wheel-dir") + 1])
            target.mkdir()
            (tmp_path / "rest_fast-0.1.0-cp3-cp3-linux_x86_64.whl").rename(target / "rest_fast-0.1.0-cp3.whl")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(compiled, "subprocess", types.SimpleNamespace(run=run))
    assert compiled.build(folder) == 0
    assert [p.name for p in folder.glob("*.whl")] == ["rest_fast-0.1.0-cp3.whl"] and len(commands) == 2
    assert compiled.misfit(folder, "90a-real") == "" and (folder / compiled.NOTE).read_text() != before
    monkeypatch.setattr(compiled.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    assert compiled.build(folder) == 3 and compiled.misfit(folder, "90a-real") == "there is none", "nothing half made"


def test_without_that_python_no_wheel_is_made_and_how_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPU_BUILD_PYTHON", sys.executable)
    monkeypatch.setattr(compiled, "VERSION", "3.2")
    assert compiled.build(tmp_path) == 0 and not list(tmp_path.iterdir())
    assert "expected Python 3.2 (name one with GPU_BUILD_PYTHON=...), found none" in capsys.readouterr().out


def test_what_is_carried_is_weighed(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.whl").write_bytes(bytes(1 << 20))
    assert wheels.main(["carried", str(tmp_path)]) == 0
    assert re.search(r"the tree has \d+\.\d MiB, .* 1\.0 MiB: of 64 MiB that can be carried", capsys.readouterr().out)
    monkeypatch.setattr(wheels, "CARRIED", 1 << 20)
    assert wheels.main(["carried", str(tmp_path)]) == 1
    assert "expected at most 1 MiB" in capsys.readouterr().out


# --- tests as evidence ---

TESTS = """
import pathlib, pytest
from hypothesis import given, settings, strategies as st
drawn = pathlib.Path(__file__).with_name("drawn")
def test_good(): pass
def test_bad(): assert pathlib.Path(__file__).with_name("cured").exists(), "shape 3"
@pytest.mark.skip(reason="no bf16 here")
def test_skipped(): pass
@settings(max_examples=50, database=None)
@given(st.integers())
def test_drawn(n):
    with drawn.open("a") as file: file.write("x")
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two workers"])
def test_tests_leave_lines_and_those_that_passed_are_not_repeated(tmp_path, workers):
    if workers:
        pytest.importorskip("xdist")
    path, here = tmp_path / "test_toy.py", evidence.Evidence(tmp_path / "part.jsonl", "parity", "digest")
    path.write_text(TESTS)
    variables = os.environ | here.environment() | {"PYTHONPATH": str(SUITE.parent)}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu_suite.recorded", *workers]

    def once() -> steps.Ended:
        done = subprocess.run(
            [*words, "--rootdir", tmp_path, path], capture_output=True, text=True, cwd=tmp_path, env=variables
        )
        return steps.Ended(done.returncode, done.stdout, here.progress())

    first = judges.found(once())
    assert first.status == "failed" and first.reason.startswith("1 of 4 failed, first test_toy.py::test_bad: ")
    found = first.results["found"]
    assert "shape 3" in found["test_toy.py::test_bad"]["failed"]
    assert "no bf16 here" in found["test_toy.py::test_skipped"]["reason"]
    assert len((tmp_path / "drawn").read_text()) == 10, "examples"
    (tmp_path / "cured").touch()
    second = judges.found(once())
    assert (second.status, second.reason) == ("passed", "4 done")
    assert len((tmp_path / "drawn").read_text()) == 10


def test_a_program_passes_once_all_of_its_jobs_are_there():
    def verdict(code: int, found: dict, jobs: int | None):
        return judges.found(Ended(code, "last words", evidence.Progress(found, jobs)))

    assert verdict(0, {"a": {}, "b": {}}, 2).status == "passed"
    assert verdict(0, {"a": {}}, 2).reason == "ended early; 1 of 2 done"
    assert verdict(1, {"a": {}}, 2).reason == "exit code 1: last words; 1 of 2 done"
    assert verdict(1, {}, None).status == "failed"
    assert verdict(1, {"a": {"failed": "shape 3"}, "b": {}}, 2).reason == "1 of 2 failed, first a: shape 3"
