"""The table of parts: what each one runs, in which order, and how long a step may take."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import compiled, judges, machine, wheels
from .report import PASSED, Outcome
from .steps import Ended, Step, by_exit_code

HERE = Path(__file__).parent
CHILD = "benchmarks/gpu_suite/child.py"
NO_GPU = "no CUDA device"
# File bench_NAME.py and what pytest's -k takes of it: each a step, so that one can be cut off or repeated alone.
BENCHMARKS = (
    ("block", "bf16"),
    ("attention", "bf16"),
    ("ops", "bf16 and rest-512"),
    ("ops", "bf16 and not rest-512"),
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


@dataclass(frozen=True)
class Place:
    """Where a part runs, and on what."""

    root: Path  # the repository
    work: Path  # for what is built and kept between calls
    out: Path  # for results
    found: Mapping[str, Any]  # machine.record()
    ungated: bool = False
    rehearse: bool = False  # the short part at tiny sizes, on the CPU

    @property
    def site(self) -> Path:
        return self.work / "site"

    @property
    def gpu(self) -> bool:
        return "gpu" in self.found

    @property
    def path(self) -> str:
        """PYTHONPATH of a process that imports what was built, and ``gpu_suite`` by its name."""
        return os.pathsep.join((str(self.site), str(HERE.parent)))

    @property
    def cores(self) -> int:
        return os.cpu_count() or 1

    @property
    def absent(self) -> str:
        """Why what asks for a GPU cannot run, or an empty string."""
        return "" if self.gpu or self.rehearse else NO_GPU

    def digest(self, *names: str, here: bool = False) -> str:
        """Of this machine, how steps run on it, and these files; ``here``: of this work folder, too."""
        words = [*machine.identity(self.found), "tiny" if self.rehearse else "real"]
        return machine.digest(self.root, (CHILD, *names), *words, *([self.token] if here else []))

    @property
    def token(self) -> str:
        """A name for this work folder: what was made in another one is not here."""
        path = self.result("token")
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
        return path.read_text()

    @property
    def workers(self) -> int:
        """Steps at a time, for those that may run beside each other."""
        return max(1, min(4, self.cores // 2))

    def python(self, *words: str | Path) -> tuple[str, ...]:
        """A module or a script in a process that sees the package just built."""
        return (sys.executable, str(HERE / "child.py"), str(self.site), *map(str, words))

    def pytest(self, *words: str | Path) -> tuple[str, ...]:
        return self.python("pytest", "-q", "-p", "no:cacheprovider", *words)

    def result(self, name: str) -> Path:
        """A file for what a step leaves."""
        self.work.mkdir(parents=True, exist_ok=True)
        return self.work / name.replace("/", "-")


def environment(place: Place) -> dict[str, str]:
    """The variables of every step: those of this process without what would change a result."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("REST_FAST_")}
    return kept | {
        "PYTHONPATH": str(place.site),
        "PYTHONUNBUFFERED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TRITON_CACHE_DIR": str(place.work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(place.work / "inductor"),
        **({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if place.rehearse else {}),
    }


def architecture(found: Mapping[str, Any]) -> str:
    """What CMake builds for: the GPU that is there; Hopper where there is none."""
    major, minor = found["gpu"]["capability"] if "gpu" in found else (9, 0)
    return f"{major}{minor}{'a' if major >= 9 else ''}-real"


def built(place: Place) -> list[Step]:
    """The wheels, the package with its extension modules, and a look at what was loaded."""
    nvcc = machine.tool("nvcc")
    variables = {"REST_FAST_CUDA": "ON" if nvcc else "OFF", "REST_FAST_REQUIRE_EXT": "1", "PYTHONPATH": place.path}
    kept = f"cmake-{sys.implementation.cache_tag}-{architecture(place.found)}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    pip += ["--no-cache-dir", "--upgrade", "--target", str(place.site), f"-Cbuild-dir={place.work / kept}"]
    pip += [f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={architecture(place.found)}", str(place.root)]
    fits = not compiled.misfit(wheels.FOLDER, architecture(place.found))
    lay = [sys.executable, "-m", "gpu_suite.compiled", "lay", str(place.site), architecture(place.found)]
    modules = ["rest_fast._cpu", *(["rest_fast._cuda"] if nvcc or fits else [])]
    fetched = (sys.executable, str(HERE / "wheels.py"), "install", str(place.site))
    package = place.digest(*machine.PACKAGE, "benchmarks/gpu_suite/compiled.py", here=True)
    return [
        Step(
            "wheels",
            fetched,
            limit=90,
            expected=10,
            product=place.site,
            judge=said,
            digest=place.digest("benchmarks/gpu_suite/wheels.py", "benchmarks/gpu_suite/wheels.txt", here=True),
        ),
        Step(
            "build",
            (*lay, str(wheels.FOLDER), "--", *pip),
            limit=300,
            expected=5 if fits else 90,
            needs=("wheels",),
            product=place.site / "rest_fast",
            environment=variables | ({"CUDACXX": nvcc} if nvcc else {}),
            judge=said,
            digest=package,
        ),
        Step(
            "loaded",
            place.python(HERE / "loaded.py", *modules),
            needs=("build",),
            limit=120,
            expected=15,
            judge=judges.printed,
            digest=package,
        ),
    ]


def said(ended: Ended) -> Outcome:
    """By exit code, with the last line that was printed for the record."""
    lines = ended.output.strip().splitlines()
    return Outcome(PASSED, lines[-1] if lines else "") if ended.code == 0 else by_exit_code(ended)


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


# --- the part that fits minutes


@dataclass(frozen=True)
class Measurement:
    """A step of ``benchmarks/device``: seconds it should take on a GPU, and may take, and the benches that it uses."""

    name: str
    expected: float
    limit: float
    uses: str = ""
    of: tuple[str, ...] = machine.PACKAGE  # what of the package it runs

    def files(self) -> tuple[str, ...]:
        """What its result depends on."""
        shared = ("device/run", f"device/{self.name}", "kit", "graphs", "gpu_suite/evidence", *self.uses.split())
        return (*self.of, *(f"benchmarks/{name}.py" for name in shared))


CONVOLVES = "bench_vae_layers bench_vae vae_peers vae_stages roofline"
WARMS = f"{CONVOLVES} bench_ops bench_attention bench_block peers device/right device/attention device/layers"
ATTENTION = ("kernels/__init__.py", "kernels/rows.py", "kernels/sink_ring_attention")
COMPILE = Measurement("compile", 45, 150, f"{WARMS} device/decode")
RIGHT = Measurement("right", 50, 120, f"{CONVOLVES} bench_ops peers")
# docs/gpu_suite.md says where the seconds come from.
MEASUREMENTS = (
    Measurement("attention", 30, 90, "bench_attention peers roofline", ("rest_fast", *ATTENTION)),
    Measurement("products", 30, 110, of=()),
    Measurement("layers", 60, 120, f"{CONVOLVES} device/right bench_ops peers"),
    Measurement("decode", 60, 120, CONVOLVES),
    Measurement("block", 60, 120, "bench_block peers"),
)
CAPTURED = "benchmarks/captured.py"  # the step of the DiT in a graph
WATCHED = ("qk_norm_rope_cache", "sink_ring_attention", "causal_conv3d")
REHEARSED = "test_cfg_euler_step.py"  # a file that Triton's interpreter runs in seconds


def short(place: Place) -> list[Step]:
    """What says most about a GPU in the fewest minutes, in this order; what is left goes to the tests.

    No step waits for another to be right: each measurement compares what it times with the reference itself.
    """
    steps = [*built(place), device_step(place, COMPILE, "--workers", str(max(place.cores - 2, 1)))]
    steps.append(device_step(place, RIGHT))
    if (place.root / CAPTURED).exists():
        command = place.python(place.root / CAPTURED, *(["--tiny"] if place.rehearse else []))
        digest = place.digest(*machine.PACKAGE, CAPTURED, "benchmarks/kit.py", "benchmarks/graphs.py")
        shared = {"needs": ("loaded",), "skip": place.absent, "judge": judges.found}
        steps.append(Step("captured", command, limit=150, expected=80, digest=digest, **shared))
    steps += [device_step(place, one) for one in MEASUREMENTS]
    steps.insert(-len(MEASUREMENTS) + 2, gemm_table(place))
    return [*steps, *(rehearsed_memcheck(place) if place.rehearse else memcheck(place)), quick_tests(place)]


def device_step(place: Place, one: Measurement, *words: str) -> Step:
    """A measurement as a step. What was compiled is only in this work folder."""
    made = one is COMPILE
    script = place.root / "benchmarks" / "device" / "run.py"
    return Step(
        one.name,
        place.python(script, one.name, *words, *(["--tiny"] if place.rehearse else [])),
        limit=one.limit,
        expected=1 if place.rehearse else one.expected,
        needs=("loaded",),
        skip=place.absent,
        judge=judges.found,
        product=place.work / "triton" if made and not place.rehearse else None,
        digest=place.digest(*one.files(), here=made),
    )


def gemm_table(place: Place) -> Step:
    """The candidates of every product with what was measured of them, however much that is."""
    evidence, table = place.out / "short.jsonl", place.out / "products.json"
    command = (sys.executable, str(place.root / "benchmarks" / "device" / "products.py"), str(evidence), str(table))
    return Step("products table", command, limit=30, expected=4, skip=place.absent, judge=said, again=True)


def memcheck(place: Place) -> list[Step]:
    """Three kernels: one that scatters, one with the largest tiles, one with descriptors."""
    files = (*machine.PACKAGE, "benchmarks/gpu_suite/sanitize.py", "benchmarks/gpu_suite/planted.cu", "tests/kernels")
    steps = sanitized(place, {"memcheck": PLANTED["memcheck"]}, WATCHED)
    digest = place.digest(*files, "tests/ops", here=True)
    return [replace(step, expected=min(step.limit, 30), digest=digest) for step in steps]


def rehearsed_memcheck(place: Place) -> list[Step]:
    """The programs that are watched, in Triton's interpreter, with nobody watching."""
    variables = {"TRITON_INTERPRET": "1"}
    return [
        Step(f"memcheck/{op}", place.python(HERE / "sanitize.py", op), needs=("loaded",), environment=variables)
        for op in WATCHED
    ]


def quick_tests(place: Place) -> Step:
    """Every parity test beside the others, with few examples of hypothesis: as many as the time allows."""
    tests = place.root / "tests" / "kernels" / "parity"
    count = ("-n", str(max(place.cores - 2, 1)), "--dist", "worksteal")
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": place.path}
    return Step(
        "parity",
        place.pytest("-p", "gpu_suite.recorded", *count, tests / REHEARSED if place.rehearse else tests),
        limit=500,
        expected=1 if place.rehearse else 30,
        needs=("loaded",),
        skip=place.absent,
        judge=judges.found,
        environment=variables | ({"TRITON_INTERPRET": "1"} if place.rehearse else {}),
        digest=place.digest(*machine.PACKAGE, "tests/kernels", "tests/ops", "benchmarks/gpu_suite/recorded.py"),
    )


# --- all parts


# A part is a function from the place to its steps. Steps of the same name in two parts run in both.
PARTS: dict[str, Callable[[Place], list[Step]]] = {"short": short, "ops": ops, "vae": vae}


def listed(name: str, place: Place) -> list[Step]:
    """The steps of a part. One that does not say what its result depends on depends on all sources."""
    everything = place.digest(*machine.SOURCES)
    return [step if step.digest else replace(step, digest=everything) for step in PARTS[name](place)]
