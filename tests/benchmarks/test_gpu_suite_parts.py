"""The parts of the GPU suite: order, time, what each step depends on, and the whole of it where there is no GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.fitness import unfit
from tests.kit.suite import (
    ROOT,
    SUITE,
    command,
    compiled,
    exhaustive,
    gpu_here,
    machine,
    parts,
    place,
    places,
    short,
    steps,
)

H200 = {"name": "NVIDIA H200", "capability": [9, 0]}


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", text)


def test_the_order_of_the_short_part_and_what_it_takes(tmp_path, monkeypatch):
    """Two calls, of 560 and of 150 s: in the first every measurement begins, in the second any one alone may."""
    monkeypatch.setattr(machine, "tool", lambda name: f"/cuda/bin/{name}")
    monkeypatch.setattr(compiled, "misfit", lambda *_: "")
    found = parts.listed("short", place(tmp_path, gpu=H200))
    steps.check(found)
    names = [step.name for step in found]
    watched = [f"memcheck/{op}" for op in short.WATCHED]
    first, then = ["compile", "right", "captured", "engine", "attention"], ["layers", "decode", "block", "flashhead"]
    measured = [*first, "products", "products table", *then]
    assert names == [
        "wheels",
        "build",
        "loaded",
        *measured,
        "sanitizer/planted",
        "sanitizer/memcheck",
        *watched,
        "parity",
    ]
    assert not any(step.skip for step in found)
    until = names.index("block")
    start = 30  # the record of the machine, and ends of processes
    assert sum(step.least for step in found[: until + 1]) + start < command.SECONDS
    assert all(step.least < 150 - 60 for step in found), "after what a fresh machine has to repeat"
    for step in found:
        assert all(Path(word).exists() for word in step.command if word.endswith(".py")), step.command


def test_the_page_has_the_seconds_of_every_step(tmp_path):
    page = (ROOT / "docs" / "gpu_suite.md").read_text().partition("## What comes out")[0]
    rows = {row.split("|")[1].strip(" `"): row.split("|")[-3:-1] for row in page.splitlines() if row.startswith("| `")}
    found = {step.name: step for step in short.short(place(tmp_path, gpu=H200))}
    for name in ("compile", "products table", *(one.name for one in short.MEASUREMENTS)):
        assert [float(cell) for cell in rows[name]] == [found[name].least, found[name].limit], name


def test_a_step_depends_on_what_it_runs(tmp_path):
    files = ("kernels/a/kernel.py", "csrc/a.cu", "tests/kernels/kit.py", "benchmarks/kit.py", "benchmarks/peers.py")
    for name in (*files, "benchmarks/device/products.py", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")

    watched = [f"memcheck/{op}" for op in short.WATCHED]

    def changed(name: str) -> set[str]:
        here = dataclasses.replace(place(tmp_path, gpu=H200), root=tmp_path)
        before = {step.name: step.digest for step in parts.listed("short", here)}
        (tmp_path / name).write_text("after")
        return {step.name for step in parts.listed("short", here) if step.digest != before[step.name]} - {
            "products table"
        }

    assert changed("docs/page.md") == set()
    assert changed("benchmarks/device/products.py") == {"products"}
    assert changed("tests/kernels/kit.py") == {"parity", "sanitizer/planted", "sanitizer/memcheck", *watched}
    assert changed("benchmarks/peers.py") == {"compile", "right", "attention", "layers", "block"}
    touched = changed("kernels/a/kernel.py")
    assert {"build", "compile", "right", "block", "parity"} <= touched and not {"products", "attention"} & touched
    assert "wheels" not in changed("csrc/a.cu")


def test_another_machine_or_work_folder_is_another_digest(tmp_path):
    here = place(tmp_path, gpu=H200)
    digest = here.digest("pyproject.toml")
    assert digest == here.digest("pyproject.toml") != place(tmp_path).digest("pyproject.toml")
    elsewhere = dataclasses.replace(here, work=tmp_path / "other")
    assert elsewhere.digest("pyproject.toml") == digest
    assert elsewhere.digest("pyproject.toml", here=True) != here.digest("pyproject.toml", here=True)


def test_every_file_that_a_measurement_uses_is_there():
    for one in (short.COMPILE, *short.MEASUREMENTS):
        assert all((ROOT / name).exists() for name in one.files()), one.files()


def test_without_a_gpu_everything_on_one_is_skipped_and_said_so(tmp_path):
    found = {step.name: step for step in exhaustive.ops(place(tmp_path))}
    here = {"wheels", "build", "loaded", "sanitizer/planted"}
    assert {name for name, step in found.items() if step.skip != "no CUDA device"} <= here
    steps.check(list(found.values()))


def test_with_a_gpu_every_kernel_is_tested_and_sanitized(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "tool", lambda name: f"/cuda/bin/{name}")
    found = {step.name: step for step in exhaustive.ops(place(tmp_path, gpu=H200))}
    packages = {p.parent.name for p in (ROOT / "kernels").glob("*/cases.py")}
    assert packages
    for op in packages:
        for group in ("parity", "memcheck", "racecheck"):
            assert not found[f"{group}/{op}"].skip
    assert not found["memcheck/_cuda"].skip
    assert any(path.endswith("test_cuda_module.py") for path in found["gpu tests"].command)
    gates = {name for name in found if name.startswith("parity/")}
    for name in found:
        if name.startswith("bench/"):
            assert gates <= set(found[name].needs)
    free = exhaustive.ops(dataclasses.replace(place(tmp_path, gpu=H200), ungated=True))
    assert not any(need in gates for step in free if step.name.startswith("bench/") for need in step.needs)


def test_the_decode_is_right_before_it_is_timed(tmp_path):
    found = {step.name: step for step in exhaustive.vae(place(tmp_path, gpu=H200))}
    steps.check(list(found.values()))
    gates = {name for name in found if name.startswith("parity/")}
    assert gates == {"parity/causal_conv3d", "parity/decode"} and not any(step.skip for step in found.values())
    timed = [step for name, step in found.items() if name.startswith("bench/")]
    for step in (*timed, *(found[name] for name in gates)):
        assert Path(step.command[-1]).exists()
    assert timed and all(gates <= set(step.needs) for step in timed)
    without = {step.name: step.skip for step in exhaustive.vae(place(tmp_path))}
    assert {name for name, skip in without.items() if not skip} <= {"wheels", "build", "loaded"}


def test_every_bench_of_the_decode_is_in_one_step(tmp_path):
    for file in ("vae", "vae_memory", "vae_layers"):
        text = (ROOT / "benchmarks" / f"bench_{file}.py").read_text()
        functions = re.findall(r"^def test_(\w+)", text, re.M)
        chosen = [chosen for name, chosen in exhaustive.VAE_BENCHMARKS if name == file]
        words = [word for one in chosen for word in re.split(" and | or ", one) if not word[0].isdigit()]
        assert functions and set(functions) <= set(words)
    cases = [f"chunk and {release} and {mode}" for release in ("0.9.5", "0.9.1") for mode in ("causal", "lookahead")]
    assert {one for name, one in exhaustive.VAE_BENCHMARKS if "chunk" in one} == set(cases)


def test_the_tables_are_in_the_log_and_the_json(tmp_path):
    """The step's own command on a stored result that is there and others that are not."""
    step = next(step for step in exhaustive.vae(place(tmp_path, gpu=H200)) if step.name == "tables")
    layer = {"stage": "S3", "channels": 128, "outputs": 128, "rows": 128, "columns": 128, "ends": "normed"}
    medians = {"triton": {"median_us": 200.0}, "library": {"median_us": 300.0}}
    info = {"layer": layer, "latents": 1, "dtype": "bf16", "variants": medians, "ideal_us": 150.0, "device": "cuda"}
    result = {"name": "test_layer[S3-1]", "extra_info": info}
    Path(step.command[-1]).write_text(json.dumps({"benchmarks": [result]}))
    done = subprocess.run(step.command, capture_output=True, text=True, check=True)
    assert "| 128 to 128 at 128 x 128, normed | bf16 | 1 | triton | 75% | 1.50 | 1.00 |" in done.stdout
    outcome = step.judge(steps.Ended(0, done.stdout))
    (chosen,) = outcome.results["layers"]
    assert outcome.status == "passed" and (chosen["fastest"], chosen["channels"]) == ("triton", 128)


@pytest.mark.parametrize(
    "capability, built", [((8, 0), "80-real"), ((8, 9), "89-real"), ((9, 0), "90a-real"), ((12, 0), "120a-real")]
)
def test_the_build_is_for_the_card_that_is_there(tmp_path, monkeypatch, capability, built):
    monkeypatch.setattr(machine, "tool", lambda name: f"/cuda/bin/{name}")
    gpu = H200 | {"capability": list(capability)}
    (build,) = [step for step in places.built(place(tmp_path, gpu=gpu)) if step.name == "build"]
    assert f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={built}" in build.command
    assert build.environment["REST_FAST_CUDA"] == "ON"


def test_without_nvcc_the_build_has_no_cuda_module(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "tool", lambda name: None)
    found = {step.name: step for step in exhaustive.ops(place(tmp_path, gpu=H200))}
    assert found["build"].environment["REST_FAST_CUDA"] == "OFF"
    assert "rest_fast._cuda" not in found["loaded"].command
    assert found["sanitizer/memcheck"].skip == "compute-sanitizer is not installed"


# --- the whole of it, here ---


def test_a_package_just_built_wins_over_an_editable_install(tmp_path):
    (tmp_path / "rest_fast").mkdir()
    (tmp_path / "rest_fast" / "__init__.py").write_text("made = 'just now'")
    (tmp_path / "look.py").write_text("import sys, rest_fast; print(rest_fast.made, sys.argv[1:])")
    words = [sys.executable, SUITE / "child.py", tmp_path, tmp_path / "look.py", "a", "b"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "just now ['a', 'b']\n"


@pytest.mark.skipif(gpu_here(), reason="would run the suite on the GPU")
def test_the_cheap_steps_run_where_there_is_no_gpu(tmp_path, monkeypatch, capsys):
    """The real table, record and command line, without the compilers' minutes."""
    quick = {
        "build": {"command": script(""), "product": None},
        "loaded": {"command": script("print('{}')")},
        "sanitizer/planted": {"command": script("")},
    }

    def table(part):
        return lambda place: [dataclasses.replace(s, **quick.get(s.name, {})) for s in part(place)]

    monkeypatch.setattr(parts, "PARTS", {name: table(part) for name, part in parts.PARTS.items()})
    monkeypatch.setattr(machine, "graphics", lambda: [])
    code = command.main(["--part", "all", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "GPU: NOT RUN, no CUDA device" in shown
    stored = json.loads((tmp_path / "out" / "ops.json").read_text())
    assert stored["counts"]["failed"] == 0 and stored["complete"] and not stored["gpu_used"]
    states = {record["name"]: (record["status"], record["reason"]) for record in stored["steps"]}
    assert states["environment"][0] == states["wheels"][0] == "passed"
    assert states["parity/sink_ring_attention"] == ("skipped", "no CUDA device")
    assert len(stored["environment"]["source"]["digest"]) == 16 and stored["environment"]["torch"]
    decode = json.loads((tmp_path / "out" / "vae.json").read_text())
    assert decode["complete"] and {"parity/decode", "tables"} <= {record["name"] for record in decode["steps"]}
    names = {f"{part}.{end}" for part in ("short", "ops", "vae") for end in ("json", "log")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names


@pytest.mark.slow
@pytest.mark.packaging
@pytest.mark.skipif(bool(unfit()), reason=unfit() or "the interpreter works")
def test_a_rehearsal_builds_the_package_and_runs_every_step(tmp_path):
    words = [sys.executable, SUITE, "--rehearse", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"REST_FAST_BACKEND": "nonsense"})
    assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads((tmp_path / "out" / "rehearsal" / "short.json").read_text())
    records = {r["name"]: r for r in stored["steps"]}
    assert stored["complete"] and {r["status"] for r in records.values()} == {"passed"} and not stored["gpu_used"]
    assert records["build"]["status"] == records["loaded"]["status"] == "passed"
    assert "rest_fast._cpu" in records["loaded"]["results"]["modules"]
