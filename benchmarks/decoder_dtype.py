"""A chunk of the demo, the decoder's convolutions in float32 and in bfloat16: what ``rest_fast/processor.py`` cites.

    python benchmarks/decoder_dtype.py --out benchmarks/results/decoder_dtype_cpu.json

Both models of one process take turns, chunk by chunk. oneDNN can be held to fewer instructions than the processor has
(``ONEDNN_MAX_CPU_ISA``), so that one machine shows how another is: each setting is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HELD_TO = {"all instructions": None, "AVX-512 with bfloat16, no AMX": "AVX512_CORE_BF16"}
WARM = 4  # chunks

CHILD = """
import json, sys, time
import numpy as np, torch
import rest_fast
from rest_fast.model import ASSETS
sessions, times = {}, {}
for name in ("float32", "bfloat16"):
    model = rest_fast.load("demo", device="cpu", decoder_dtype=getattr(torch, name))
    sessions[name] = model.session(model.prepare(ASSETS / "demo" / "portrait.png", crop="center"))
pcm = np.random.default_rng(0).normal(0, 0.05, 15360).astype(np.float32)
for i in range(int(sys.argv[1])):
    for name in sorted(sessions, reverse=bool(i % 2)):
        sessions[name].push_audio(pcm)
        start = time.perf_counter()
        list(sessions[name].blocks())
        times.setdefault(name, []).append(time.perf_counter() - start)
print(json.dumps(times))
"""


def measure(isa: str | None, chunks: int) -> dict[str, Any]:
    environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})
    command = [sys.executable, "-c", CHILD, str(chunks + WARM)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=environment, timeout=600)
    found = {}
    for name, times in json.loads(done.stdout).items():
        p50, p95 = (float(v) for v in np.percentile(np.array(times[WARM:]) * 1e3, [50, 95]))
        found[name] = {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1)}
    return found | {"bfloat16_is_faster_by": round(found["float32"]["p50_ms"] / found["bfloat16"]["p50_ms"], 2)}


def table(stored: dict[str, Any]) -> list[list[str]]:
    """The first line has the titles."""
    lines = [["oneDNN uses", "float32", "bfloat16", "float32 / bfloat16"]]
    for name, found in stored["settings"].items():
        cells = [f"{found[dtype]['p50_ms']:.0f} ms ({found[dtype]['p95_ms']:.0f})" for dtype in ("float32", "bfloat16")]
        lines.append([name, *cells, f"{found['bfloat16_is_faster_by']:.2f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=40, help="of each dtype, after warm-up")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import where

    from rest_fast import processor

    stored = {
        "settings": {name: measure(isa, args.chunks) for name, isa in HELD_TO.items()},
        "chunks": args.chunks,
        "features": sorted(processor.features()),
        "environment": where.environment(where.commit_info()),
    }
    if args.out:
        args.out.write_text(json.dumps(stored, indent=1) + "\n")
    print(json.dumps(stored["settings"], indent=1))


if __name__ == "__main__":
    main()
