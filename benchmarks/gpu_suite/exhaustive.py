"""The parts for a machine that is there for hours: everything is tested before anything is measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from . import judges, machine
from .place import HERE, NO_GPU, Place, architecture, built
from .steps import Step

# File bench_NAME.py and what pytest's -k takes of it: each a step, so that one can be cut off or repeated alone.
BENCHMARKS = (
    ("block", "bf16"),
    ("attention", "bf16"),
    ("ops", "bf16 and rest-512"),
    ("ops", "bf16 and not rest-512"),
    ("step", "lanes2 or lanes4"),
    ("step", "lanes8 or lanes16"),
    ("block", "not bf16"),
    ("attention", "not bf16"),
    ("ops", "not bf16"),
)
# The same of the VAE: a case compiles diffusers' decoder, which takes a minute or two.
VAE_BENCHMARKS = (
    ("vae", "chunk and 0.9.5 and causal"),
    ("vae", "chunk and 0.9.5 and lookahead"),
    ("vae", "chunk and 0.9.1 and causal"),
    ("vae", "chunk and 0.9.1 and lookahead"),
    ("vae", "stages or demo"),
    ("vae_memory", "memory"),
    ("vae_layers", "layer"),
)
# In cudaMalloc's own blocks, with some space after each, a stray access meets no neighbour.
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
TOOLS: dict[str, tuple[str, ...]] = {"memcheck": ("--padding", "256"), "racecheck": ()}
PLANTED = {"memcheck": "write", "racecheck": "race"}  # what planted.cu does wrong for each


def gpu_tests(place: Place, name: str, *words: str | Path, limit: float, skip: str = "") -> Step:
    """Tests on the GPU, as a step of its own: a kernel that breaks the device breaks no other step."""
    junit = place.result(f"{name}.xml")
    return Step(
        name,
        place.pytest("--junitxml", junit, *words),
        limit=limit,
        needs=("loaded",),
        skip=skip if place.gpu else NO_GPU,
        judge=judges.tests(junit),
        beside=True,
        # The reference runs on the CPU, at the real model's sizes.
        environment={"OMP_NUM_THREADS": str(max(1, place.cores // place.workers))},
    )


def parity(place: Place) -> list[Step]:
    """Every kernel against the reference on the device, and the tests that ask for a GPU by their mark."""
    tests = place.root / "tests"
    steps = []
    for path in sorted((tests / "kernels" / "parity").glob("test_*.py")):
        steps.append(gpu_tests(place, f"parity/{path.stem.removeprefix('test_')}", path, limit=150))
    marked = [p for p in sorted(tests.rglob("test_*.py")) if "mark.gpu" in p.read_text(encoding="utf-8")]
    skip = "" if marked else "no test is marked gpu"
    return [*steps, gpu_tests(place, "gpu tests", "-m", "gpu", *marked, limit=150, skip=skip)]


def sanitized(place: Place, tools: Mapping[str, str] = PLANTED, chosen: tuple[str, ...] = ()) -> list[Step]:
    """Kernels, all or those chosen, on small shapes under memcheck and racecheck, if these find what was planted."""
    program, nvcc = machine.tool("compute-sanitizer"), machine.tool("nvcc")
    planted, code = place.result("planted"), architecture(place.found).removesuffix("-real")
    compiled = (str(nvcc), f"-gencode=arch=compute_{code},code=sm_{code}", str(HERE / "planted.cu"), "-o", str(planted))
    no_nvcc = "" if nvcc else "no nvcc"
    steps = [Step("sanitizer/planted", compiled, limit=60, skip=no_nvcc, product=planted)]
    skip = NO_GPU if not place.gpu else "" if program else "compute-sanitizer is not installed"
    tool = (str(program), "--report-api-errors", "no", "--error-exitcode", str(judges.FOUND_ERRORS), "--tool")
    for name, error in tools.items():
        command, needs = (*tool, name, *TOOLS[name], str(planted), error), ("sanitizer/planted",)
        steps.append(Step(f"sanitizer/{name}", command, limit=45, needs=needs, skip=skip, judge=judges.caught))
    kernels = sorted(p.parent.name for p in (place.root / "kernels").glob("*/__init__.py"))
    for name in tools:
        for op in chosen or [*kernels, "_cuda"]:
            step = Step(
                f"{name}/{op}",
                (*tool, name, *TOOLS[name], *place.python(HERE / "sanitize.py", op)),
                limit=120,
                needs=("loaded", f"sanitizer/{name}"),
                skip=skip or (no_nvcc if op == "_cuda" else ""),
                judge=judges.clean,
                beside=True,
                environment=SANITIZED,
            )
            steps.append(step)
    return steps


def measured(
    place: Place, gates: tuple[str, ...], table: tuple[tuple[str, str], ...] = BENCHMARKS, limit: float = 240
) -> list[Step]:
    """The benchmarks of a table, one at a time, once all that is measured is known to be right."""
    steps = []
    for file, chosen in table:
        path, stored = place.root / "benchmarks" / f"bench_{file}.py", stored_by(place, file, chosen)
        step = Step(
            f"bench/{file}, {chosen}",
            place.pytest("--benchmark-only", f"--benchmark-json={stored}", "-k", chosen, path),
            limit=limit,
            needs=("loaded",) if place.ungated else ("loaded", *gates),
            skip=NO_GPU if not place.gpu else "" if path.exists() else f"{path.name} is not there",
            judge=judges.benchmarks(stored),
        )
        steps.append(step)
    return steps


def stored_by(place: Place, file: str, chosen: str) -> Path:
    """Where a benchmark's JSON lies."""
    return place.result(f"bench-{file}-{chosen.replace(' ', '-')}.json")


def ops(place: Place) -> list[Step]:
    """The fused ops: built, right, clean, and how fast."""
    right = parity(place)
    gates = tuple(step.name for step in right if step.name.startswith("parity/"))
    return [*built(place), *right, *sanitized(place), *measured(place, gates)]


def vae(place: Place) -> list[Step]:
    """The streaming decode: its convolution and the whole of it against the reference, then how fast, and tables."""
    tests, convolution = place.root / "tests", "test_causal_conv3d.py"
    right = [
        gpu_tests(place, "parity/causal_conv3d", tests / "kernels" / "parity" / convolution, limit=150),
        gpu_tests(place, "parity/decode", tests / "models" / "test_vae_device.py", limit=300),
    ]
    timed = measured(place, tuple(step.name for step in right), VAE_BENCHMARKS, limit=300)
    stored = [stored_by(place, file, chosen) for file, chosen in VAE_BENCHMARKS]
    tables = Step(
        "tables",
        (sys.executable, str(HERE.parent / "vae_tables.py"), *map(str, stored)),
        limit=30,
        needs=tuple(step.name for step in timed[-3:]),
        skip="" if place.gpu else NO_GPU,
        judge=judges.printed,
    )
    return [*built(place), *right, *timed, tables]
