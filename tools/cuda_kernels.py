"""Compile the CUDA sources for GPUs that this machine lacks, and read the result: registers, spills, instructions.

Needs nvcc and a ``cuobjdump``: that of the toolkit, or the one in Triton's wheel.

    python tools/cuda_kernels.py                                  each kernel, and what is wrong with it
    python tools/cuda_kernels.py --markdown docs/kernels/cuda.md  the table there
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [s for s in sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if "__global__" in s.read_text()]
ARCHITECTURES = ("80", "90a", "100a", "120a")
INSTRUCTIONS = {
    "HMMA": r"\bHMMA\.",  # mma.sync
    "LDSM": r"\bLDSM\.",  # ldmatrix
    "LDGSTS": r"\bLDGSTS\.",  # cp.async
    "16-byte loads": r"\bLDG(?:STS)?\.E\.(?:[\w.]*\.)?128\b",
    "loads": r"\bLDG(?:STS)?\.E\b",
    "calls": r"\bCALL\b",
}
# What kernels of these names must have.
EXPECTED = dict.fromkeys(
    ("sink_ring_attention_kernel", "many_keys_kernel"), ("HMMA", "LDSM", "LDGSTS", "16-byte loads")
)


@dataclass(frozen=True, eq=False)
class Kernel:
    """What the compiler made of one kernel for one architecture."""

    source: str
    name: str  # "frame_audio_update_kernel<__half, 8>"
    architecture: str
    registers: int
    shared: int  # bytes, static
    stack: int
    spills: int
    instructions: dict[str, int]

    def cell(self) -> str:
        found = self.instructions
        products = "/".join(str(found[name]) for name in ("HMMA", "LDSM", "LDGSTS"))
        loads = f"{found['16-byte loads']}/{found['loads']}"
        return f"{self.registers}, {self.shared / 1024:.3g}, {self.spills}, {products}, {loads}"


def faults(kernel: Kernel) -> list[str]:
    """What is wrong with this code; empty if it is right."""
    found = []
    if kernel.spills or kernel.stack:
        found.append(f"{kernel.spills} bytes spilled, a stack of {kernel.stack}: expected none")
    found += [f"no {name}" for name in EXPECTED.get(kernel.name.partition("<")[0], ()) if not kernel.instructions[name]]
    return found


def disassembler() -> str | None:
    """A program that shows the instructions of an object file, or None."""
    triton = importlib.util.find_spec("triton")
    inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (str(inside) if inside and inside.exists() else None)


def compile_source(source: Path, architecture: str) -> list[Kernel]:
    """Raises: ValueError with nvcc's report, of an error, a warning, or a note that products are serialised."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.cubin"
        command = ["nvcc", "-std=c++17", "-O3", "-DNDEBUG", "-Xptxas", "-v", f"-arch=sm_{architecture}", "-cubin"]
        done = subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, text=True)
        log = done.stdout + done.stderr
        if done.returncode:
            raise ValueError(f"{source.name} for sm_{architecture}: expected code that compiles, got {log}")
        if bad := re.findall(r".*(?:warning|\(C75\d\d\)).*", log):
            raise ValueError(f"{source.name} for sm_{architecture}: expected no note of the compiler, got {bad}")
        program = disassembler()
        sass = subprocess.run([program, "-sass", str(made)], capture_output=True, text=True).stdout if program else ""
    return read(source.stem, architecture, log, sass)


def read(source: str, architecture: str, log: str, sass: str) -> list[Kernel]:
    """The kernels of one report of ptxas and one disassembly."""
    code = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", sass, re.DOTALL))
    kernels = []
    for name, report in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", log, re.DOTALL):
        lines = code.get(name, "")
        counts = {what: len(re.findall(pattern, lines)) for what, pattern in INSTRUCTIONS.items()}
        numbers = [sum(map(int, re.findall(p, report))) for p in (r"(\d+) bytes stack", r"(\d+) bytes spill")]
        registers, shared = (re.search(p, report) for p in (r"Used (\d+) registers", r"(\d+) bytes smem"))
        assert registers is not None, f"ptxas told no registers: {report}"
        used = int(registers[1]), int(shared[1]) if shared else 0
        kernels.append(Kernel(source, readable(name), architecture, *used, *numbers, counts))
    return sorted(kernels, key=lambda k: k.name)


def readable(mangled: str) -> str:
    """The name of a kernel and its template's arguments."""
    text = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"rest_fast::|\(anonymous namespace\)::|^void |\((?:int|bool|unsigned int)\)", "", text)
    return text.partition("(")[0]


def compile_all(sources: list[Path] = SOURCES, architectures: tuple[str, ...] = ARCHITECTURES) -> list[Kernel]:
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_source, s, a) for s in sources for a in architectures]
        return [kernel for job in jobs for kernel in job.result()]


def made_by() -> str:
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return f"nvcc {text.partition('release ')[2].partition(',')[0]}"


def table(kernels: list[Kernel]) -> str:
    """Markdown: a row for each kernel, a column for each architecture."""
    lines = [f"Made by {made_by()}.", "", f"| kernel | {' | '.join(f'sm_{a}' for a in ARCHITECTURES)} |"]
    lines.append("|---" * (1 + len(ARCHITECTURES)) + "|")
    cells = {(k.source, k.name, k.architecture): k.cell() for k in kernels}
    for source, name in dict.fromkeys((k.source, k.name) for k in kernels):
        lines.append(f"| `{name}` | {' | '.join(cells[source, name, a] for a in ARCHITECTURES)} |")
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- begin: python tools/cuda_kernels.py --markdown -->\n", "<!-- end -->\n"


def between(page: str) -> tuple[str, str, str]:
    """The parts of a page before, inside and after the markers of the table."""
    before, begin, rest = page.partition(BEGIN)
    inside, end, behind = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"page: expected the lines {BEGIN.strip()!r} and {END.strip()!r} in this order, got others")
    return before + begin, inside, end + behind


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong with each kernel's code, or write the table into a page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--markdown", metavar="PAGE", type=Path, help="write the table between this page's markers")
    parser.add_argument("sources", nargs="*", metavar="OP", help="compile these alone, and leave the page as it is")
    given = parser.parse_args(arguments)
    page, chosen = given.markdown, [s for s in SOURCES if not given.sources or s.stem in given.sources]
    if shutil.which("nvcc") is None or disassembler() is None:
        print("expected nvcc, and a cuobjdump (of the CUDA toolkit or in Triton's wheel), found none", file=sys.stderr)
        return 2
    kernels = compile_all(chosen)
    wrong = {k: faults(k) for k in kernels}
    for kernel, found in wrong.items():
        print(f"{kernel.name} sm_{kernel.architecture}: {kernel.cell()}", *found, sep="\n    ")
    if page is not None and not given.sources:
        before, _, behind = between(page.read_text())
        page.write_text(before + table(kernels) + behind)
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
