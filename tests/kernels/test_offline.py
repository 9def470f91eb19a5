"""Every launch of the Triton kernels at the real model's shapes, compiled for GPUs that need not be there."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from tests.kernels.fitness import PAGE_MADE_BY, UNFIT

pytestmark = pytest.mark.skipif(bool(UNFIT), reason=UNFIT or "Triton compiles here")

if not UNFIT:
    import triton

    from rest_fast.kernels import offline
    from tests.kernels import samples

    CASES = offline.cases()
    CAPABILITIES = offline.CAPABILITIES
else:
    CASES, CAPABILITIES = [], ()

PAGE = Path(__file__).parents[2] / "docs" / "kernels" / "README.md"


@functools.cache
def report(number: int, capability: int) -> offline.Compiled:
    """Each case is compiled once, for the table and for the assertions."""
    return offline.compile_case(CASES[number][1], capability)


def first_of_each_kernel() -> list[int]:
    kernels: dict[str, int] = {}
    for number, (op, case) in enumerate(CASES):
        kernels.setdefault(f"{op}.{case.kernel.__name__}", number)
    return list(kernels.values())


def params(numbers: list[int]) -> list:
    return [pytest.param(n, id=f"{CASES[n][0]}-{CASES[n][1].name}") for n in numbers]


def check(number: int, capability: int) -> None:
    found = offline.faults(CASES[number][1], capability, report(number, capability))
    assert not found, f"{report(number, capability)}: {found}"


@pytest.mark.parametrize("number", params(first_of_each_kernel()))
def test_one_shape_of_each_kernel_on_sm_90(number):
    check(number, 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("number", params(list(range(len(CASES)))))
def test_every_shape_on_every_gpu(number, capability):
    check(number, capability)


@pytest.mark.slow
def test_the_page_shows_what_the_compiler_makes():
    if triton.__version__ != PAGE_MADE_BY:
        pytest.skip(f"the page is made with Triton {PAGE_MADE_BY}, here is {triton.__version__}")
    numbers = {id(case): number for number, (_, case) in enumerate(CASES)}
    table = offline.table(lambda case, capability: report(numbers[id(case)], capability))
    _, shown, _ = offline.between(PAGE.read_text())
    command = "python -m rest_fast.kernels.offline --markdown docs/kernels/README.md"
    assert shown == table, f"the table is out of date: run {command}"


def test_every_package_has_cases_with_names_of_their_own():
    names = [(op, case.name) for op, case in CASES]
    assert len(set(names)) == len(names)
    folders = {path.parent.name for path in Path(offline.__file__).parent.glob("*/kernel.py")}
    assert folders == {op for op, _ in CASES}


def test_every_op_with_a_kernel_has_a_parity_file():
    parity = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "parity").glob("test_*.py")}
    assert parity >= {op for op, _ in CASES}


# The harness: what it must notice.


def strided(step: int, dtype: torch.dtype = torch.float32) -> offline.Case:
    x, out = torch.empty(2, 4096, dtype=dtype, device="meta")
    call = {"x": x, "out": out, "n": 4096, "step": step, "BLOCK": 1024, "num_warps": 4}
    return offline.as_launched(f"step {step}", samples.scaled, call)


def row(width: int) -> offline.Case:
    x, out = torch.empty(2, width, device="meta")
    call = {"x": x, "out": out, "BLOCK": width, "num_warps": 32}
    return offline.as_launched(f"{width} numbers", samples.softmax, call)


def products(dtype: torch.dtype = torch.bfloat16, precision: str = "tf32") -> offline.Case:
    x, y = torch.empty(2, 64, 64, dtype=dtype, device="meta")
    call = {"x": x, "y": y, "out": torch.empty(64, 64, device="meta"), "COMMON": 64, "ROWS": 64}
    call |= {"PRECISION": precision, "num_warps": 4}
    return offline.as_launched("products", samples.products, call, tensor_cores=True)


def test_a_good_kernel_has_no_faults():
    good = offline.compile_case(strided(1), 90)
    assert not offline.faults(strided(1), 90, good)
    assert good.target == "sm_90a" and good.wide_loads == good.instructions["ld.global"] == 2  # 8 fp32 a thread
    assert good.instructions["st.global.v4.b32"] == 2 and 8 <= good.registers <= 64


def test_scalar_loads_are_found():
    bad = offline.compile_case(strided(3), 90)
    assert bad.wide_loads == 0 and bad.instructions["ld.global"] == 8
    assert offline.faults(strided(3), 90, bad) == ["none of 8 loads is 16 bytes wide"]
    excused = dataclasses.replace(strided(3), narrow="every third number")
    assert not offline.faults(excused, 90, bad)


def test_unaligned_pointers_make_narrow_loads():
    """The hints of a case are what makes its loads wide: without them the numbers mislead."""
    bad = offline.compile_case(dataclasses.replace(strided(1), aligned=()), 90)
    assert bad.wide_loads == 0


def test_spills_are_found():
    """1024 threads have 64 registers each: 16 numbers fit, 64 do not."""
    for width, spills in ((16384, False), (65536, True)):
        made = offline.compile_case(row(width), 90)
        assert (made.spills > 0) == (made.stack > 0) == spills
        assert any("bytes spilled" in fault for fault in offline.faults(row(width), 90, made)) == spills


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tensor_cores_are_counted(capability):
    good = offline.compile_case(products(), capability)
    assert good.instructions[offline.TENSOR_CORES[capability]] > 0
    assert not offline.faults(products(), capability, good)


def test_products_without_tensor_cores_are_found():
    case = products(torch.float32, "ieee")
    assert any("no wgmma" in fault for fault in offline.faults(case, 90, offline.compile_case(case, 90)))


def test_products_that_wait_for_one_another_are_found():
    """With three stages this layer's loop is one that ptxas cannot keep under way, which it only says in a note."""
    from rest_fast.kernels.causal_conv3d.cases import CONV_OUT, cases

    (case,) = cases(CONV_OUT)
    assert case.num_stages == 4
    slow = offline.compile_case(dataclasses.replace(case, num_stages=3), 90)
    (note,) = slow.serialised
    assert note.startswith("(C7515)") and "serialized" in note
    assert any("wait for one another" in fault for fault in offline.faults(case, 90, slow))


def test_descriptors_that_became_ordinary_loads_are_found():
    case = dataclasses.replace(strided(1), tma=True)
    report = offline.compile_case(case, 90)
    assert offline.faults(case, 90, report) == ["no cp.async.bulk.tensor: the descriptors became ordinary loads"]
    assert not offline.faults(case, 80, report)  # which has none


def test_a_gpu_may_get_a_launch_of_its_own():
    case = dataclasses.replace(strided(1), elsewhere={80: strided(3)})
    assert offline.compile_case(case, 90).wide_loads == 2
    other = offline.compile_case(case, 80)
    assert other.wide_loads == 0 and offline.faults(case, 80, other) == ["none of 8 loads is 16 bytes wide"]


def test_too_much_shared_memory_is_found():
    good = offline.compile_case(strided(1), 90)
    for capability, limit in offline.SHARED_LIMIT.items():
        assert not offline.faults(strided(1), capability, dataclasses.replace(good, shared=limit))
        (fault,) = offline.faults(strided(1), capability, dataclasses.replace(good, shared=limit + 1))
        assert fault.startswith("shared memory")


def test_a_case_is_typed_as_triton_types_the_call():
    """Against Triton's own binding of a call; its inside, so of the version that the page names."""
    if triton.__version__ != PAGE_MADE_BY:
        pytest.skip(f"looks inside Triton {PAGE_MADE_BY}, here is {triton.__version__}")
    from triton.runtime.jit import create_function_from_signature

    backend = triton.compiler.make_backend(triton.backends.compiler.GPUTarget("cuda", 90, 32))
    kernel = samples.scaled
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    x = torch.empty(64)
    for values in (
        (x, 4096, 1),
        (x[4:], 17, 0),
        (x[1:], 2**31, 2**31 - 1),
        (x.half(), -16, -1),
        (x.to(torch.uint8), 1, 16),
    ):
        call = dict(zip(("x", "n", "step"), values, strict=True)) | {"out": None, "BLOCK": 1024, "num_warps": 4}
        case = offline.as_launched("", kernel, call)
        _, bound, _ = bind(**call)
        for name, (kind, hint) in zip(kernel.arg_names, bound, strict=True):
            assert case.arguments.get(name, "constexpr") == kind, name
            assert (name in case.aligned) == (hint == "D"), name
    options = backend.parse_options({"num_warps": 4})
    assert (case.num_warps, case.num_stages) == (options.num_warps, options.num_stages)


def test_what_a_case_leaves_out_is_named():
    case = strided(3)
    left = {n: t for n, t in case.arguments.items() if n != "n"}
    with pytest.raises(ValueError, match=r"step 3: arguments: expected a type or a value for \['n'\], got none"):
        offline.compile_case(dataclasses.replace(case, arguments=left), 90)


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no table here\n")
    with pytest.raises(ValueError, match="expected the lines"):
        offline.main(["--markdown", str(page)])
    assert page.read_text() == "no table here\n"


def test_the_command_writes_the_table_and_tells_faults(tmp_path, monkeypatch, capsys):
    good, bad = strided(1), strided(3)
    monkeypatch.setattr(offline, "cases", lambda: [("sample", good), ("sample", bad)])
    monkeypatch.setattr(offline, "CAPABILITIES", (90,))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{offline.BEGIN}old\n{offline.END}behind\n")
    assert offline.main(["--markdown", str(page)]) == 0
    before, table, behind = offline.between(page.read_text())
    assert before.startswith("before\n") and behind.endswith("behind\n")
    assert "| step 1 |" in table and "2/2 |" in table and "0/8 |" in table and "old" not in table
    assert offline.main([]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[2] == "    none of 8 loads is 16 bytes wide"
