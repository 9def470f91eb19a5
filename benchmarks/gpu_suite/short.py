"""The part that fits minutes: what says most about a GPU first, and as much of the rest as the time allows."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from . import judges, machine
from .exhaustive import PLANTED, sanitized
from .place import HERE, Place, built, said
from .steps import Step


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
WARMS = f"{CONVOLVES} bench_ops op_table bench_attention bench_block peers device/right device/attention device/layers"
ATTENTION = ("kernels/__init__.py", "kernels/rows.py", "kernels/sink_ring_attention")
COMPILE = Measurement("compile", 45, 150, f"{WARMS} device/decode device/captured")
PRODUCTS = Measurement("products", 30, 110, of=())
# docs/gpu_suite.md says where the seconds come from.
MEASUREMENTS = (
    Measurement("right", 50, 120, f"{CONVOLVES} bench_ops op_table peers"),
    Measurement("captured", 80, 150),
    Measurement("engine", 80, 100),
    Measurement("attention", 30, 90, "bench_attention peers roofline", ("rest_fast", *ATTENTION)),
    PRODUCTS,
    Measurement("layers", 60, 120, f"{CONVOLVES} device/right bench_ops op_table peers"),
    Measurement("decode", 60, 120, CONVOLVES),
    Measurement("block", 60, 120, "bench_block peers"),
    Measurement("flashhead", 80, 140, "flashhead device/captured device/engine"),
)
WATCHED = ("qk_norm_rope_cache", "sink_ring_attention", "causal_conv3d")
REHEARSED = "test_cfg_euler_step.py"  # a file that Triton's interpreter runs in seconds


def short(place: Place) -> list[Step]:
    """What says most about a GPU in the fewest minutes, in this order; what is left goes to the tests.

    No step waits for another to be right: each measurement compares what it times with the reference itself.
    """
    compiled = device_step(place, COMPILE, "--workers", str(max(place.cores - 2, 1)))
    steps = [*built(place), compiled]
    for one in MEASUREMENTS:
        steps += [device_step(place, one), *([gemm_table(place)] if one is PRODUCTS else [])]
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
