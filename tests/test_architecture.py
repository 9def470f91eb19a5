"""The laws of CONTRIBUTING.md and the arrows of docs/design.md, read off the sources."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rest_fast"

# Lowest first. A module imports from its own layer's folder and from layers above it in this list, in no case from one
# that comes later; of two names in one row neither imports the other.
LAYERS = [
    {"errors", "units"},
    {"config", "noise", "cores", "files"},
    {"checkpoint", "ops"},
    {"worker", "processor", "media", "hub", "model_card"},
    {"models"},
    {"avatar"},
    {"streaming"},
    {"model"},
    {"rendering", "diagnostics", "convert"},
    {"training", "pipeline"},
    {"evaluation", "modular"},
    {"latency", "serving"},
    {"cli"},
    {"__main__"},
]
LIMITS = {".py": 450, ".cpp": 500, ".cu": 500, ".h": 500, ".cuh": 500}  # lines of a file
FOLDERS = ["benchmarks", "csrc", "kernels", "rest_fast", "tests", "tools"]
LONGEST_FUNCTION = 60

# Longer than a screen. Drawings are one list of shapes after the other; the others have many arguments to explain.
LONG_FUNCTIONS = {
    "rest_fast/evaluation/evaluate.py": {"evaluate"},
    "rest_fast/rendering.py": {"render"},
    "rest_fast/training/preparation/prepare.py": {"prepare"},
    "rest_fast/training/synthetic/features.py": {"draw"},
    "rest_fast/training/synthetic/hair.py": {"shapes"},
    "rest_fast/training/synthetic/portraits.py": {"frame"},
    "rest_fast/training/synthetic/scenery.py": {"background", "clothes"},
}
# Tests that stop a thread between two steps of an object, or count what has no other sign.
PRIVATE = {
    "benchmarks/bench_step.py": {"_check", "_entries"},  # the host's part of a step, timed by itself
    "tests/cli/test_cli.py": {"_start", "_bar"},
    "tests/evaluation/test_demo_report.py": {"_stream"},
    "tests/training/test_causal_decoder_runs.py": {"_step"},
    "tests/training/test_chain.py": {"_step"},
}
FOREIGN = {"_apply", "_replace", "_version"}  # names that PyTorch and tuples have, too


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    return [path for path in found if not (folder == "rest_fast" and "kernels" in path.parts)]


def dotted(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {dotted(path): path for path in sources("rest_fast")}


def imported(path: Path) -> set[str]:
    """Modules of the package, at whatever depth: those for types only and those within functions, too."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & set(MODULES) - {dotted(path)}


def test_imports_point_down():
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for name, path in MODULES.items():
        if name == "rest_fast":
            continue  # it names what apps use, and imports at the first use
        here = name.split(".")[1]
        assert here in rank, f"{name}: expected to be part of a layer"
        for target in imported(path) - {"rest_fast"}:
            there = target.split(".")[1]
            if there != here and rank[there] >= rank[here]:
                wrong.append(f"{name} -> {target}")
    assert not wrong


def test_no_circle_of_imports():
    graph = {name: imported(path) - {"rest_fast"} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_timeline_knows_nothing_of_torch():
    text = (PACKAGE / "streaming" / "timeline.py").read_text()
    assert "torch" not in re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE)


def test_files_stay_short():
    """A file that outgrows this holds two subjects."""
    too_long = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            limit = LIMITS.get(path.suffix)
            if limit is not None and "__pycache__" not in path.parts:
                lines = len(path.read_text().splitlines())
                if lines > limit:
                    too_long[str(path.relative_to(ROOT))] = lines
    assert not too_long


def test_functions_fit_on_a_screen():
    long = {}
    for path in sources("rest_fast"):
        functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        beyond = {n.name for n in functions if (n.end_lineno or 0) - n.lineno >= LONGEST_FUNCTION}
        if beyond:
            long[str(path.relative_to(ROOT))] = beyond
    assert long == LONG_FUNCTIONS


def test_no_test_imports_another():
    for path in sources("tests"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
                taken = [n for n in names if n.startswith("tests.") and n.rpartition(".")[2].startswith("test_")]
                assert not taken, f"{path}: {taken}"


def test_nobody_reaches_for_what_is_private_elsewhere():
    """An attribute with an underscore is used by ``self``, or in the file that defines it."""
    homes: dict[str, set[Path]] = {}
    for path in sources("rest_fast"):
        for node in ast.walk(tree(path)):
            stored = isinstance(getattr(node, "ctx", None), ast.Store)
            name = getattr(node, "attr", "") if stored else getattr(node, "name", "")
            if isinstance(name, str) and re.match(r"_[a-z]", name):
                homes.setdefault(name, set()).add(path)
    found: dict[str, set[str]] = {}
    for path in [p for folder in ("rest_fast", "tests", "benchmarks") for p in sources(folder)]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr in homes and path not in homes[node.attr]:
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if not own and node.attr not in FOREIGN:
                    found.setdefault(str(path.relative_to(ROOT)), set()).add(node.attr)
    assert found == PRIVATE
