"""The driver of the GPU suite with steps that stand in for the real ones: order, resuming, limits, verdicts, record."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kernels.fitness import unfit
from tests.kit.suite import (
    FOUND,
    ROOT,
    SUITE,
    command,
    compiled,
    gpu_here,
    judges,
    machine,
    parts,
    place,
    reports,
    steps,
)

Step, NO_TIME = steps.Step, reports.NO_TIME
H200 = {"name": "NVIDIA H200", "capability": [9, 0]}


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", text)


def run(out: Path, *todo, seconds: float = 90.0, workers: int = 1):
    """(exit code, {name: record}) of one call."""
    report = reports.Report(out, "toy", FOUND)
    steps.check(list(todo))
    runner = steps.Runner(report, out, seconds=seconds, workers=workers)
    runner.run(list(todo))
    code = report.close()
    return code, {record["name"]: record for record in json.loads((out / "toy.json").read_text())["steps"]}


def count(path: Path) -> int:
    return len(path.read_text()) if path.exists() else 0


def counting(name: str, path: Path, code: int = 0, **more) -> steps.Step:
    """Leaves a letter in ``path`` each time that it runs."""
    return Step(name, script(f"open({str(path)!r}, 'a').write('x'); raise SystemExit({code})"), **more)


def test_verdicts_and_reasons_are_in_the_json_and_the_log(tmp_path, capsys):
    code, records = run(
        tmp_path,
        Step("good", script("print('fine')")),
        Step("bad", script("import sys; print('shape 3'); sys.exit(7)")),
        Step("after", script(""), needs=("bad",)),
        Step("after that", script(""), needs=("after",)),
        Step("apart", script(""), needs=("good",)),
        Step("not here", ("/nonexistent",), skip="no CUDA device"),
        Step("no such tool", ("/nonexistent/tool",)),
    )
    assert code == 1
    states = {name: record["status"] for name, record in records.items()}
    assert states == {
        "good": "passed",
        "bad": "failed",
        "after": "skipped",
        "after that": "skipped",
        "apart": "passed",
        "not here": "skipped",
        "no such tool": "failed",
    }
    assert records["bad"]["reason"] == "exit code 7: shape 3"
    assert records["after"]["reason"] == "needs bad, which failed"
    assert records["after that"]["reason"].startswith("needs after, which was skipped (needs bad")
    assert records["not here"]["reason"] == "no CUDA device"
    assert "/nonexistent/tool" in records["no such tool"]["reason"]
    log, shown = (tmp_path / "toy.log").read_text(), capsys.readouterr().out
    assert "fine" in log and "shape 3" in log and "2.11.0+cu130" in log
    assert "NOT RUN, no CUDA device" in shown and "    | shape 3" in shown and "fine" not in shown
    whole = json.loads((tmp_path / "toy.json").read_text())
    assert whole["counts"] == {"passed": 2, "failed": 2, "skipped": 3, "cut off": 0}
    assert whole["complete"] is True and whole["gpu_used"] is False
    assert whole["environment"]["source"]["commit"] == "abc"


def test_skipped_for_a_reason_is_no_failure(tmp_path):
    code, _ = run(tmp_path, Step("a", script("")), Step("b", skip="no CUDA device"), Step("c", needs=("b",)))
    assert code == 0


def test_what_passed_is_not_repeated(tmp_path):
    kept, again, made = tmp_path / "kept", tmp_path / "again", tmp_path / "made"
    made.touch()
    todo = [counting("kept", kept), counting("again", again, code=1), counting("made", tmp_path / "m", product=made)]
    run(tmp_path, *todo)
    _, first = run(tmp_path, *todo)
    assert (count(kept), count(again), count(tmp_path / "m")) == (1, 2, 1)
    made.unlink()  # the machine has lost what was built
    _, records = run(tmp_path, *todo)
    assert (count(kept), count(again), count(tmp_path / "m")) == (1, 3, 2)
    assert records["kept"] == first["kept"]


def test_a_change_repeats_only_what_depends_on_it_and_loses_nothing(tmp_path):
    def judge(ended: steps.Ended) -> reports.Outcome:
        return reports.Outcome("passed", "", {"us": 7})

    touched = counting("touched", tmp_path / "a", digest="one", judge=judge)
    other = counting("other", tmp_path / "b", digest="one")
    run(tmp_path, touched, other)
    _, records = run(tmp_path, dataclasses.replace(touched, digest="two"), other)
    assert (count(tmp_path / "a"), count(tmp_path / "b")) == (2, 1)
    assert records["touched"]["digest"] == "two" and records["touched"]["commit"] == "abc"
    (old,) = map(json.loads, (tmp_path / "toy-earlier.jsonl").read_text().splitlines())
    assert (old["name"], old["digest"], old["results"]) == ("touched", "one", {"us": 7})


def test_what_is_to_run_in_every_call_does(tmp_path):
    for _ in range(2):
        run(tmp_path, counting("again", tmp_path / "a", again=True))
    assert count(tmp_path / "a") == 2


def test_an_interrupted_call_keeps_what_was_done_before(tmp_path, monkeypatch):
    """Ctrl-C during the second step of the second call: the JSON still has the third step of the first."""
    pid = tmp_path / "pid"
    waits = script(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    todo = [Step("a", script("")), Step("b", script("raise SystemExit(1)")), Step("c", script(""))]
    run(tmp_path, *todo)
    real = time.sleep

    def ctrl_c(seconds: float) -> None:
        if count(pid):
            raise KeyboardInterrupt
        real(seconds)

    monkeypatch.setattr(steps.time, "sleep", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, todo[0], dataclasses.replace(todo[1], command=waits), todo[2])
    states = {r["name"]: r["status"] for r in json.loads((tmp_path / "toy.json").read_text())["steps"]}
    assert states["a"] == states["c"] == "passed"
    assert gone(int(pid.read_text()))


def gone(pid: int) -> bool:
    """Dead, or about to be: a child of a killed process is reaped by whoever inherits it."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_step_over_its_limit_is_stopped_with_what_it_started(tmp_path):
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    text = (
        f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    )
    start = time.monotonic()
    code, records = run(tmp_path, Step("slow", script(text), limit=1.5), Step("next", script("")))
    assert time.monotonic() - start < 20
    assert code == 1
    assert (records["slow"]["status"], records["slow"]["reason"]) == ("failed", "stopped after 1.5 s")
    assert records["next"]["status"] == "passed"
    assert "begun" in (tmp_path / "toy.log").read_text()
    assert gone(int(pid.read_text()))


def test_a_call_ends_in_time_and_the_next_one_goes_on(tmp_path):
    todo = [
        counting("short", tmp_path / "a", limit=5),
        counting("long", tmp_path / "b", limit=50),
        counting("then", tmp_path / "c", limit=5, needs=("long",)),
        counting("likely short", tmp_path / "d", limit=50, expected=5),
    ]
    code, records = run(tmp_path, *todo, seconds=20)
    assert code == 3
    assert [records[s.name]["reason"].startswith(NO_TIME) for s in todo] == [False, True, True, False]
    assert re.fullmatch(rf"{NO_TIME}: 1\d s of about 50", records["long"]["reason"])
    assert json.loads((tmp_path / "toy.json").read_text())["complete"] is False
    code, _ = run(tmp_path, *todo)
    assert code == 0
    assert [count(tmp_path / n) for n in "abcd"] == [1, 1, 1, 1]


# Three jobs through the suite's own evidence. The second waits for a file, and is asked to end.
JOBS = """
import pathlib, signal, sys, time
from gpu_suite.evidence import Evidence
folder = pathlib.Path({folder!r})
def stopped(number, frame):
    (folder / "asked").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, stopped)
def job(name):
    (folder / "ran").open("a").write(name)
    while name == "b" and not (folder / "go").exists():
        time.sleep(0.01)
    return {{"us": 5}}
sys.exit(Evidence.here().run({{name: lambda name=name: job(name) for name in "abc"}}))
"""


def measuring(folder: Path, **more) -> steps.Step:
    command = (sys.executable, "-c", JOBS.format(folder=str(folder)))
    variables = {"PYTHONPATH": str(SUITE.parent)}
    return Step("measure", command, environment=variables, judge=judges.found, **({"digest": "one"} | more))


def test_what_the_end_of_a_call_cuts_off_keeps_its_evidence_and_goes_on(tmp_path):
    """Also after a call that has no time for it."""
    code, records = run(tmp_path, measuring(tmp_path, expected=1), seconds=6)
    cut = records["measure"]
    assert code == 3 and (tmp_path / "asked").exists(), "asked first"
    assert cut["status"] == "cut off" and re.fullmatch(r"after \d s, 1 of 3 done", cut["reason"])
    assert cut["results"]["jobs"] == 3 and cut["results"]["found"]["a"]["us"] == 5
    _, records = run(tmp_path, measuring(tmp_path, limit=50), seconds=20)
    assert records["measure"]["status"] == "skipped" and records["measure"]["results"] == cut["results"]
    (tmp_path / "go").touch()
    code, records = run(tmp_path, measuring(tmp_path))
    assert (
        code == 0
        and records["measure"]["reason"] == "3 done"
        and set(records["measure"]["results"]["found"]) == set("abc")
    )
    assert (tmp_path / "ran").read_text() == "abbc", "what was done is not repeated"


def test_evidence_of_other_sources_counts_for_nothing(tmp_path):
    (tmp_path / "go").touch()
    run(tmp_path, measuring(tmp_path))
    run(tmp_path, measuring(tmp_path, digest="two"))
    assert (tmp_path / "ran").read_text() == "abcabc"
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert {line["digest"] for line in lines} == {"one", "two"}


def test_over_its_limit_a_step_keeps_its_evidence_too(tmp_path):
    _, records = run(tmp_path, measuring(tmp_path, limit=1.5))
    assert (records["measure"]["status"], records["measure"]["reason"]) == (
        "failed",
        "stopped after 1.5 s, 1 of 3 done",
    )
    assert records["measure"]["results"]["found"]["a"]["us"] == 5


def test_what_runs_is_recorded_when_the_suite_is_ended(tmp_path, monkeypatch):
    real = time.sleep

    def ended(seconds: float) -> None:
        if count(tmp_path / "ran") == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        real(seconds)

    monkeypatch.setattr(steps.time, "sleep", ended)
    with pytest.raises(SystemExit), command.ended_by_exit():
        run(tmp_path, measuring(tmp_path))
    (record,) = json.loads((tmp_path / "toy.json").read_text())["steps"]
    assert record["status"] == "cut off" and set(record["results"]["found"]) == {"a"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_steps_beside_each_other_run_at_once_and_others_alone(tmp_path):
    """Two that wait for each other pass only together; the third looks whether anything else is still running."""

    def meet(mine: str, other: str) -> tuple[str, ...]:
        here, there = str(tmp_path / mine), str(tmp_path / other)
        wait = f"while not os.path.exists({there!r}): time.sleep(0.01)"
        return script(
            f"import os, time; open({here!r}, 'w')\n{wait}\ntime.sleep(0.2); os.rename({here!r}, {here!r} + '.end')"
        )

    ended = [str(tmp_path / f"{n}.end") for n in "ab"]
    # b waits for the end of a, which waits for b to begin
    together = [Step(n, meet(n, o), beside=True, limit=20) for n, o in (("a", "b"), ("b", "a.end"))]
    alone = Step("alone", script(f"import os; raise SystemExit(not all(map(os.path.exists, {ended})))"))
    after = Step(
        "after", script(f"import os; raise SystemExit(not os.path.exists({ended[0]!r}))"), needs=("a",), beside=True
    )
    code, records = run(tmp_path, *together, after, alone, workers=3)
    assert code == 0, records


@pytest.mark.parametrize(
    "todo, says",
    [
        ([Step("a"), Step("a")], "every name once, got a again"),
        ([Step("a", needs=("b",)), Step("b")], r"step a: expected needs among the steps before it, got \('b',\)"),
        ([Step("a", limit=10, expected=20)], "step a: expected a limit of at least 20 s, got 10 s"),
    ],
)
def test_a_list_that_cannot_run_is_refused(todo, says):
    with pytest.raises(ValueError, match=says):
        steps.check(todo)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"steps": [3]}'])
def test_a_state_that_is_none_is_refused_and_left_alone(tmp_path, text):
    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(ValueError, match=r"toy\.json: expected the JSON of an earlier run, got "):
        run(tmp_path)
    assert (tmp_path / "toy.json").read_text() == text


def test_a_judge_that_finds_no_result_fails_its_step_alone(tmp_path):
    def judge(ended: steps.Ended) -> reports.Outcome:
        return reports.Outcome("passed", "", json.loads((tmp_path / "absent.json").read_text()))

    code, records = run(tmp_path, Step("a", script(""), judge=judge), Step("b", script("")))
    assert code == 1 and records["b"]["status"] == "passed"
    assert records["a"]["reason"].startswith("exit code 0, and its result cannot be read: FileNotFoundError")


# --- the table of parts ---


def test_the_order_of_the_short_part_and_what_it_takes(tmp_path, monkeypatch):
    """Two calls, of 560 and of 150 s: in the first every measurement begins, in the second any one alone may."""
    monkeypatch.setattr(machine, "tool", lambda name: f"/cuda/bin/{name}")
    monkeypatch.setattr(compiled, "misfit", lambda *_: "")
    found = parts.listed("short", place(tmp_path, gpu=H200))
    steps.check(found)
    names = [step.name for step in found if step.name != "captured"]
    watched = [f"memcheck/{op}" for op in parts.WATCHED]
    measured = ["compile", "right", "attention", "products", "products table", "layers", "decode", "block"]
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
    until = names.index("sanitizer/planted")
    captured = 80  # whether it is there or not
    start = 30  # the record of the machine, and ends of processes
    assert (
        sum(step.least for step in found[: until + 1] if step.name != "captured") + captured + start < command.SECONDS
    )
    assert all(step.least < 150 - 60 for step in found), "after what a fresh machine has to repeat"
    for step in found:
        assert all(Path(word).exists() for word in step.command if word.endswith(".py")), step.command


def test_the_captured_step_is_there_once_its_file_is(tmp_path):
    here = dataclasses.replace(place(tmp_path, gpu=H200), root=tmp_path)
    assert "captured" not in {step.name for step in parts.short(here)}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "captured.py").touch()
    (step,) = [step for step in parts.short(here) if step.name == "captured"]
    assert step.command[-1].endswith("captured.py") and (step.least, step.judge) == (80, judges.found)


def test_a_step_depends_on_what_it_runs(tmp_path):
    files = ("kernels/a/kernel.py", "csrc/a.cu", "tests/kernels/kit.py", "benchmarks/kit.py", "benchmarks/peers.py")
    for name in (*files, "benchmarks/device/products.py", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")

    watched = [f"memcheck/{op}" for op in parts.WATCHED]

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
    for one in (parts.COMPILE, parts.RIGHT, *parts.MEASUREMENTS):
        assert all((ROOT / name).exists() for name in one.files()), one.files()


def test_without_a_gpu_everything_on_one_is_skipped_and_said_so(tmp_path):
    found = {step.name: step for step in parts.ops(place(tmp_path))}
    here = {"wheels", "build", "loaded", "sanitizer/planted"}
    assert {name for name, step in found.items() if step.skip != "no CUDA device"} <= here
    steps.check(list(found.values()))


def test_with_a_gpu_every_kernel_is_tested_and_sanitized(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "tool", lambda name: f"/cuda/bin/{name}")
    found = {step.name: step for step in parts.ops(place(tmp_path, gpu=H200))}
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
    free = parts.ops(dataclasses.replace(place(tmp_path, gpu=H200), ungated=True))
    assert not any(need in gates for step in free if step.name.startswith("bench/") for need in step.needs)


def test_the_decode_is_right_before_it_is_timed(tmp_path):
    found = {step.name: step for step in parts.vae(place(tmp_path, gpu=H200))}
    steps.check(list(found.values()))
    gates = {name for name in found if name.startswith("parity/")}
    assert gates == {"parity/causal_conv3d", "parity/decode"} and not any(step.skip for step in found.values())
    timed = [step for name, step in found.items() if name.startswith("bench/")]
    for step in (*timed, *(found[name] for name in gates)):
        assert Path(step.command[-1]).exists()
    assert timed and all(gates <= set(step.needs) for step in timed)
    without = {step.name: step.skip for step in parts.vae(place(tmp_path))}
    assert {name for name, skip in without.items() if not skip} <= {"wheels", "build", "loaded"}


def test_every_bench_of_the_decode_is_in_one_step(tmp_path):
    for file in ("vae", "vae_memory", "vae_layers"):
        text = (ROOT / "benchmarks" / f"bench_{file}.py").read_text()
        functions = re.findall(r"^def test_(\w+)", text, re.M)
        chosen = [chosen for name, chosen in parts.VAE_BENCHMARKS if name == file]
        words = [word for one in chosen for word in re.split(" and | or ", one) if not word[0].isdigit()]
        assert functions and set(functions) <= set(words)
    cases = [f"chunk and {release} and {mode}" for release in ("0.9.5", "0.9.1") for mode in ("causal", "lookahead")]
    assert {one for name, one in parts.VAE_BENCHMARKS if "chunk" in one} == set(cases)


def test_the_tables_are_in_the_log_and_the_json(tmp_path):
    """The step's own command on a stored result that is there and others that are not."""
    step = next(step for step in parts.vae(place(tmp_path, gpu=H200)) if step.name == "tables")
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
    (build,) = [step for step in parts.built(place(tmp_path, gpu=gpu)) if step.name == "build"]
    assert f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={built}" in build.command
    assert build.environment["REST_FAST_CUDA"] == "ON"


def test_without_nvcc_the_build_has_no_cuda_module(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "tool", lambda name: None)
    found = {step.name: step for step in parts.ops(place(tmp_path, gpu=H200))}
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
