"""The driver of the GPU suite with steps that stand in for the real ones: order, resuming, limits, verdicts, record."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.kit.suite import FOUND, SUITE, command, judges, reports, steps

Step, NO_TIME = steps.Step, reports.NO_TIME


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
