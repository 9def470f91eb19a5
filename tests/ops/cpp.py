"""Run the compiled CPU ops beside the reference, and call the module itself, past the checks of Python."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import native
from tests.ops import calls

MISSING = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")
LOW = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit in the last place: 8 and 11 significant bits
UNIT = 2.0**-24  # half a unit of fp32


def run(name: str, call: calls.Call, backend: str = "cpp") -> calls.Call:
    """The call on copies of what it writes; views among its inputs stay views."""
    written = [n for n in calls.written(name) if call.get(n) is not None]
    copy = call | {n: call[n].clone() for n in written}
    with ops.use_backend(backend):
        calls.invoke(name, copy)
    return copy


def widened(call: calls.Call, *names: str) -> calls.Call:
    """The same numbers in float64."""
    return call | {n: call[n].double() for n in names if call[n] is not None}


def by_threads(name: str, call: calls.Call) -> list[calls.Call]:
    """What one thread and what three leave behind."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(name, call))
    finally:
        torch.set_num_threads(before)
    return results


def native_arguments(name: str, call: calls.Call) -> dict[str, Any]:
    """name -> integer or float that Python hands to the compiled op for this call, in order."""
    op = calls.OPS[name]
    with mock.patch.object(native, "call") as recorded:
        args, kwargs = calls.split(name, call)
        next(b for b in op.backends if b.name == "cpp").run(*args, **kwargs)
    return dict(zip(native.module()[0].arguments[name], recorded.call_args.args[1:], strict=True))


def at_width(name: str, call: calls.Call, width: int) -> torch.Tensor:
    """What the version with vectors of so many floats leaves in ``out``; skips where the machine has none."""
    answer = direct(name, call, {"vector_width": width})
    if answer != "ok":
        assert "no vectors of that width on this machine" in answer and call["out"].isnan().all()
        pytest.skip(answer)
    out: torch.Tensor = call["out"]
    return out


def direct(name: str, call: calls.Call, changes: dict[str, Any]) -> str:
    """What the compiled op says when it is handed the call with these arguments changed; "ok" when it ran."""
    module, values = native.module()[0], native_arguments(name, call)
    assert set(changes) <= set(values), f"{sorted(changes)} among {list(values)}"
    return module.error_string(getattr(module, name)(*(values | changes).values()))
