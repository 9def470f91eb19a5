"""Compile Triton kernels for GPUs that this machine lacks, and read the result: registers, spills, instructions.

A package lists its :class:`Case` objects in ``cases.py``: the launches that the real model makes, at its shapes. No
driver is needed; the ``ptxas`` inside Triton's wheel does the last step. It does not work in a process with
``TRITON_INTERPRET=1``, where a kernel is an interpreted function.

    python -m rest_fast.kernels.offline                                      each case, and what is wrong with it
    python -m rest_fast.kernels.offline --markdown docs/kernels/README.md    the table there
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

CAPABILITIES = (80, 90, 100, 120)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes a block may use


@dataclass(frozen=True)
class Case:
    """One launch of a kernel: its arguments, and what must be true of its code."""

    name: str  # "rest-512, 2 lanes, bf16"
    kernel: Any  # a function under @triton.jit
    arguments: dict[str, str]  # run-time argument -> type: "*bf16", "*fp32", "*i32", "i32", "fp32"
    constants: dict[str, Any]  # tl.constexpr arguments; a pointer that is None goes here, too
    num_warps: int
    num_stages: int = 3  # Triton's default
    aligned: tuple[str, ...] | None = None  # arguments that are multiples of 16; None: all integers and pointers
    tensor_cores: bool = False  # wgmma on 90, tcgen05 on 100, mma.sync on 80 and 120
    narrow: str = ""  # why no load is 16 bytes wide; empty: at least one must be
    tma: bool = False  # bulk copies on 90 and newer
    elsewhere: dict[int, Case] = field(default_factory=dict)  # by capability: the case that is launched there instead


@dataclass(frozen=True)
class Compiled:
    """The compiled code of a case, for one target."""

    target: str  # "sm_90a"
    registers: int
    stack: int
    spills: int
    shared: int  # bytes
    instructions: dict[str, int] = field(default_factory=dict)  # in the PTX
    serialised: tuple[str, ...] = ()  # notes of ptxas that it makes products of the tensor cores wait for one another

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes a thread, asynchronous copies of 16 bytes and bulk copies."""
        return sum(self.instructions[name] for name in ("ld.global.v4.b32", "cp.async.16", "tma"))

    @property
    def tensor_cores(self) -> int:
        return sum(self.instructions[name] for name in ("wgmma", "tcgen05", "mma.sync"))


TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def as_launched(name: str, kernel: Any, call: dict[str, Any], **properties: Any) -> Case:
    """The case of a call ``kernel[grid](**call)``, typed as Triton's launch does it: 1 and None are constants.

    Tensors may be on the ``meta`` device; their storage counts as aligned to 16 bytes, as that of torch is.
    ``properties``: ``tensor_cores``, ``narrow`` and ``tma`` of :class:`Case`.
    """
    fixed = {kernel.arg_names[p.num] for p in kernel.params if p.is_constexpr}
    general = {kernel.arg_names[p.num] for p in kernel.params if p.do_not_specialize}
    options = {n: call[n] for n in ("num_warps", "num_stages") if n in call}
    arguments, constants, aligned = {}, {}, []
    for argument in kernel.arg_names:
        value = call[argument]
        if argument in fixed or value is None or (type(value) is int and value == 1 and argument not in general):
            constants[argument] = value
        elif isinstance(value, TensorDescriptor):
            box = ", ".join(map(str, value.block_shape))
            arguments[argument] = f"tensordesc<{TYPES[value.base.dtype][1:]}[{box}]>"
        elif isinstance(value, torch.Tensor):
            arguments[argument] = TYPES[value.dtype]
            aligned += [argument] if value.storage_offset() * value.element_size() % 16 == 0 else []
        elif isinstance(value, float):
            arguments[argument] = "fp32"
        else:
            arguments[argument] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned += [argument] if value % 16 == 0 and argument not in general else []
    return Case(name, kernel, arguments, constants, aligned=tuple(aligned), **options, **properties)


PATTERNS = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma.sync": r"mma\.sync",
    "cp.async": r"cp\.async\.c[ag]\.shared\.global ",
    "cp.async.16": r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10,",
    "tma": r"cp\.async\.bulk\.tensor",
    # 16 bytes: four words, or two of 64 bits
    "ld.global.v4.b32": r"ld\.global[\w.:]*\.(?:v4\.b32|v2\.b64)",
    "ld.global": r"ld\.global",
    "st.global": r"st\.global",
    "st.global.v4.b32": r"st\.global[\w.:]*\.(?:v4\.b32|v2\.b64)",
}


# What ptxas says where it cannot keep several ``wgmma`` under way, by number: C7508, C7510, C7515 and their like.
SERIALISED = r"\(C75\d\d\)[^\n]*wgmma[^\n]*"
TENSOR_CORES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}


def faults(case: Case, capability: int, report: Compiled) -> list[str]:
    """What is wrong with this code; empty if it is right."""
    case, found = case.elsewhere.get(capability, case), []
    if report.spills or report.stack:
        found.append(f"{report.spills} bytes spilled, a stack of {report.stack}: expected none")
    if report.shared > SHARED_LIMIT[capability]:
        found.append(f"shared memory: expected at most {SHARED_LIMIT[capability]} bytes, got {report.shared}")
    if case.tensor_cores and not report.instructions[TENSOR_CORES[capability]]:
        found.append(f"no {TENSOR_CORES[capability]}: the products do not run on this GPU's tensor cores")
    found += [f"ptxas makes the products wait for one another: {note}" for note in report.serialised]
    if case.tma and capability >= 90 and not report.instructions["tma"]:
        found.append("no cp.async.bulk.tensor: the descriptors became ordinary loads")
    if not (report.wide_loads or case.narrow):
        found.append(f"none of {report.instructions['ld.global']} loads is 16 bytes wide")
    return found


def compile_case(case: Case, capability: int) -> Compiled:
    """Compile for one of :data:`CAPABILITIES`. Raises: ValueError for an incomplete case, or an error of a compiler."""
    case = case.elsewhere.get(capability, case)
    names = list(case.arguments) + list(case.constants)
    order = [n for n in case.kernel.arg_names if n in names]
    signature = {n: case.arguments.get(n, "constexpr") for n in order}
    missing = set(case.kernel.arg_names) - set(order)
    if missing:
        raise ValueError(f"{case.name}: arguments: expected a type or a value for {sorted(missing)}, got none")
    aligned = case.aligned
    if aligned is None:
        aligned = tuple(n for n, t in case.arguments.items() if t.startswith("*") or t in ("i32", "i64"))
    hints = {(order.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(case.kernel, signature, constexprs=dict(case.constants), attrs=hints)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    match = re.search(r"\.target (\w+)", ptx)
    assert match is not None, "PTX without a target"
    used = _assemble(ptx, match[1], capability)
    return Compiled(
        target=match[1],
        registers=_number(r"Used (\d+) registers", used),
        stack=_number(r"(\d+) bytes stack frame", used),
        spills=_number(r"(\d+) bytes spill stores", used) + _number(r"(\d+) bytes spill loads", used),
        shared=compiled.metadata.shared,
        instructions={name: len(re.findall(pattern, ptx)) for name, pattern in PATTERNS.items()},
        serialised=tuple(sorted(set(re.findall(SERIALISED, used)))),
    )


def _assemble(ptx: str, target: str, capability: int) -> str:
    """The report of ptxas on this PTX."""
    program = _program("ptxas" if capability < 100 else "ptxas-blackwell")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [program, "-v", "--gpu-name", target, path, "-o", Path(folder) / "kernel.cubin"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _program(name: str) -> Path:
    """A program in Triton's wheel."""
    return Path(triton.__file__).parent / "backends/nvidia/bin" / name


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, f"ptxas did not say {pattern!r}: {text}"
    return int(match[1])


def cases() -> list[tuple[str, Case]]:
    """(op, case) for every package of kernels."""
    import rest_fast.kernels

    packages = sorted(m.name for m in pkgutil.iter_modules(rest_fast.kernels.__path__) if m.ispkg)
    return [(op, case) for op in packages for case in importlib.import_module(f"rest_fast.kernels.{op}.cases").CASES]


def made_by() -> str:
    """The compilers that the numbers come from."""
    versions = []
    for name, targets in (("ptxas", "sm_80 and sm_90"), ("ptxas-blackwell", "sm_100 and sm_120")):
        text = subprocess.run([_program(name), "--version"], capture_output=True, text=True, check=True).stdout
        match = re.search(r"V(\d[\d.]*)", text)
        assert match is not None, f"{name} told no version: {text}"
        versions.append(f"ptxas {match[1]} for {targets}")
    return f"Made by Triton {triton.__version__} with {versions[0]}, {versions[1]}."


def table(reports: Callable[[Case, int], Compiled] = compile_case) -> str:
    """Markdown: for each op a table of cases and GPUs."""
    lines, last = [made_by()], ""
    for op, case in cases():
        if op != last:
            lines += [
                "",
                f"**`{op}`**",
                "",
                f"| case | {' | '.join(f'sm_{c}' for c in CAPABILITIES)} |",
                "|---" * (1 + len(CAPABILITIES)) + "|",
            ]
            last = op
        lines.append(f"| {case.name} | {' | '.join(_cell(reports(case, c)) for c in CAPABILITIES)} |")
    return "\n".join(lines) + "\n"


def _cell(report: Compiled) -> str:
    loads = report.instructions["ld.global"] + report.instructions["cp.async"] + report.instructions["tma"]
    numbers = [f"{report.registers}", f"{report.shared / 1024:.3g}", f"{report.spills}", f"{report.tensor_cores}"]
    return ", ".join([*numbers, f"{report.wide_loads}/{loads}"])


BEGIN, END = "<!-- begin: python -m rest_fast.kernels.offline --markdown -->\n", "<!-- end -->\n"


def between(page: str) -> tuple[str, str, str]:
    """The parts of a page before, inside and after the markers of the table."""
    before, begin, rest = page.partition(BEGIN)
    inside, end, behind = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"page: expected the lines {BEGIN.strip()!r} and {END.strip()!r} in this order, got others")
    return before + begin, inside, end + behind


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong with each case's code, or write the table into a page."""
    parser = argparse.ArgumentParser(prog="python -m rest_fast.kernels.offline", description=main.__doc__)
    parser.add_argument("--markdown", metavar="PAGE", type=Path, help="write the table between this page's markers")
    page = parser.parse_args(arguments).markdown
    if page is not None:
        before, _, behind = between(page.read_text())
        page.write_text(before + table() + behind)
        return 0
    bad = 0
    for op, case in cases():
        for capability in CAPABILITIES:
            report = compile_case(case, capability)
            found = faults(case, capability, report)
            bad += bool(found)
            print(f"{op} [{case.name}] {report.target}: {_cell(report)}", *found, sep="\n    ", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    from rest_fast.kernels import offline  # the imported module, not __main__: cases use its classes

    sys.exit(offline.main())
