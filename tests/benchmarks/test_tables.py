"""Numbers of the pages are those that are stored, and every stored file can be read: as tables, and by
pytest-benchmark."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.bench import BENCHMARKS, module, script

ROOT = BENCHMARKS.parent
COMPARE = Path(sys.executable).parent / "pytest-benchmark"
STORED = sorted((BENCHMARKS / "results").rglob("*.json"))
stored, tables = script("stored"), script("tables")


# -- pages


def test_pages_say_what_is_stored():
    results = tables.Results()
    for page in tables.pages(ROOT):
        text = page.read_text(encoding="utf-8")
        assert tables.rewritten(text, results) == text, f"{page}: run `python benchmarks/tables.py`"


def test_every_table_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in tables.pages(ROOT))
    shown = {found["name"] for found in tables.MARKED.finditer(text)}
    assert set(tables.TABLES) <= shown


def test_a_changed_result_changes_its_pages(tmp_path):
    """As a copy, whose demo takes 123.4 ms and whose fastest peers are slow."""
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for name in ("demo_stream_cpu", "vae_cpu"):
        text = (BENCHMARKS / "results" / f"{name}.json").read_text()
        found = json.loads(text)
        for result in found["benchmarks"]:
            for variant, times in result["extra_info"].get("variants", {}).items():
                times["median_us"] = 123_400 if variant in ("preset", "ours") else 1_234_000
        (folder / f"{name}.json").write_text(json.dumps(found))
    results = tables.Results(tmp_path)
    page = (
        "A chunk: <!-- table: demo-chunk -->1 ms<!-- end -->, <!-- table: vae-fairest --><!-- end --> times.\n\n"
        "<!-- table: demo-stream -->\nold\n\n| a |\n<!-- end -->\nAfter.\n"
    )
    made = tables.rewritten(page, results)
    assert made.startswith("A chunk: <!-- table: demo-chunk -->123 ms (p95 ")
    assert "<!-- table: vae-fairest -->10.0 to 10.0<!-- end --> times.\n" in made
    assert "old" not in made and "| preset | 123 / " in made and made.endswith("<!-- end -->\nAfter.\n")
    assert tables.rewritten(made, results) == made, "a second time changes nothing"


def test_marks_that_cannot_be_filled(tmp_path):
    results = tables.Results(tmp_path)
    with pytest.raises(ValueError, match="table none: expected one of demo-stream, "):
        tables.rewritten("<!-- table: none --><!-- end -->", results)
    with pytest.raises(ValueError, match="expected <!-- end --> after every"):
        tables.rewritten("<!-- table: block -->", results)
    text = tables.rewritten("<!-- table: block -->3<!-- end -->", results)
    assert text == "<!-- table: block -->(not measured: no block_cpu.json)<!-- end -->"


def test_a_file_of_no_table_is_shown_whole(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "more.json").write_text('{"idle": {"p50_ms": 1.5, "p95_ms": 2.0}, "busy": {"p50_ms": 3.0, "p95_ms": 9}}')
    made = tables.rewritten("<!-- table: more --><!-- end -->", tables.Results(tmp_path))
    assert made.splitlines()[2:] == [
        "|  | p50_ms | p95_ms |",
        "| --- | --- | --- |",
        "| idle | 1.5 | 2 |",
        "| busy | 3 | 9 |",
        "",
        "<!-- end -->",
    ]


def test_the_command(tmp_path):
    """Says which page differs, with an exit code; nothing differs here."""
    command = [sys.executable, BENCHMARKS / "tables.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


# -- what the tables say


def info(name="op[a]", **more):
    base = {"base": "op", "rounds": 9, "variants": {"op": {"median_us": 1234.0}}, "ratios": {"eager_over_op": 2.5}}
    return {"name": name} | base | more


def test_ratios():
    results = [
        info(of_roof=0.5),
        info(
            "op[b]", variants={"op": {"median_us": 999.6}}, ratios={"eager_over_op": 3.0, "compiled_over_op": 1.0},
            outside_ratios={"eager_over_op": 4.0},
        ),
        info("op[c]", variants={"op": {"median_us": 5.26e6}}, ratios={}),
    ]  # fmt: skip
    assert stored.ratio_table(results).splitlines() == [
        "| case | median of op | rounds | eager / op | compiled / op | outside: eager / op | of the roofline |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| op[a] | 1.23 ms | 9 | 2.50 |  |  | 50% |",
        "| op[b] | 1 ms | 9 | 3.00 | 1.00 | 4.00 |  |",
        "| op[c] | 5.26 s | 9 |  |  |  |  |",
    ]


def test_the_cheapest_cache_stands_beside_the_dearest():
    ratios = {f"{name}_over_op": r for name, r in {"roll": 2.0, "clone": 3.0, "write": 1.1, "dense": 0.9}.items()}
    shape = {"lanes": 2, "queries": 48, "heads": 3, "slots": 112}
    row = script("cpu_tables").attention_table([info(shape=shape, dtype="fp32", ratios=ratios)]).splitlines()[2]
    want = "2 x 48 queries of 3 heads, 112 slots, fp32 | 9 | 1.23 ms"
    assert row == f"| {want} | 1.10: write in place, slice | 3.00: clone, concatenate | 0.90 |  |  |"


def test_where_a_number_comes_from():
    about = {"cpu": "CPU", "threads": 1, "torch": "2.0", "commit": "0123456789", "uncommitted_changes": True}
    assert stored.source(about) == "CPU, 1 thread, torch 2.0, commit 0123456 with changes"
    assert stored.source({"cpu": "CPU", "threads": 2, "gpu": "GPU"}) == "GPU beside CPU, 2 threads"


# -- files


def small(**extra):
    """A file of pytest-benchmark with one result, as conftest.py leaves it."""
    stats = dict.fromkeys(("min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "ops", "total"), 0.25)
    stats |= {"rounds": 4, "outliers": "0;0", "iqr_outliers": 0, "stddev_outliers": 0, "iterations": 1}
    name = {"group": None, "name": "test_it", "fullname": "bench_it.py::test_it", "params": None, "param": None}
    return {"benchmarks": [{**name, "stats": stats, "extra_info": extra}], "datetime": "", "version": "5"}


@pytest.mark.parametrize(("extra", "lines"), [
    ({}, ["| case | median | min | max | rounds |", "| it | 250 ms | 250 ms | 250 ms | 4 |"]),
    (
        {"stages": {"decode": {"p50_ms": 2.5, "p99_ms": 30}}},
        ["|  | p50_ms | p99_ms |", "| it, stages, decode | 2.5 | 30 |"],
    ),
    (
        {"seconds": {"load": [3.0, 1.0, 2.0]}},
        ["|  | median | least | most | count |", "| it, seconds, load | 2 | 1 | 3 | 3 |"],
    ),
    (
        {"base": "op", "rounds": 3, "variants": {"op": {"median_us": 2.0, "p95_us": 5}}, "ratios": {"b_over_op": 2.0}},
        ["| it | 2 us | 3 | 2.00 |", "| it, variants, op | 2 | 5 |"],
    ),
], ids=["nothing more", "stages", "lists", "ratios"])  # fmt: skip
def test_any_file_becomes_tables(tmp_path, extra, lines):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small(**extra)))
    text = stored.markdown(path)
    assert set(lines) <= set(text.splitlines()), text


def test_what_is_kept_can_be_compared(tmp_path):
    """The hook of conftest.py on what pytest-benchmark hands it: raw data go, the rest is compared and cited."""
    conftest, found = module("conftest"), small(rounds=4)
    result = found["benchmarks"][0]
    result["stats"]["data"], result["options"] = [0.25] * 4, {"timer": "perf_counter"}
    found |= {"machine_info": {"node": "host", "cpu": {"flags": ["x"] * 200}}, "commit_info": {"id": "abc", "dirty": 0}}
    conftest.pytest_benchmark_update_machine_info(None, found["machine_info"])
    conftest.pytest_benchmark_update_json(None, [], found)
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(found))
    assert not {"data", "node", "flags", "options"} & set(re.findall(r'"(\w+)":', path.read_text()))
    done = subprocess.run([COMPARE, "compare", path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and re.search(r"test_it \S+ +250\.0000", done.stdout), done.stdout + done.stderr
    assert "commit abc" in stored.markdown(path)


def test_a_file_without_a_number(tmp_path):
    path = tmp_path / "empty.json"
    path.write_text('{"benchmarks": []}')
    with pytest.raises(ValueError, match=r"empty\.json: expected results, got no number"):
        stored.markdown(path)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_every_stored_file_becomes_tables(path):
    text = stored.markdown(path)
    assert text.count("| --- |") and all(line == "" or line.endswith(("|", ".")) for line in text.splitlines())


def test_pytest_benchmark_reads_every_stored_file(tmp_path):
    """All results of all files are in its table, and none was skipped with a warning."""
    found = {path: json.loads(path.read_text()) for path in STORED}
    found = {path: written["benchmarks"] for path, written in found.items() if "benchmarks" in written}
    done = subprocess.run([COMPARE, "compare", *found], cwd=tmp_path, capture_output=True, text=True, check=False)
    names = [result["name"] for results in found.values() for result in results]
    assert done.returncode == 0 and not done.stderr and len(found) >= 5, done.stderr
    missing = [name for name in names if f"\n{name} (" not in done.stdout]
    assert not missing, missing
