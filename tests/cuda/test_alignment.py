"""Tensors that begin one number behind a multiple of a vector, each in turn, through the shim, which ends the program
where a vector lies so: the same results, or an error that says why."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops import OpError
from tests.cuda_shim import built
from tests.kit.compare import assert_close
from tests.ops import calls

HALF = torch.float16
CALLS = {  # sizes that are whole vectors
    "qk_norm_rope_cache": {"heads": 2, "dim": 16, "dtype": HALF},
    "sink_ring_attention": {"dim": 64, "dtype": HALF},
    "rotate_context": {"heads": 2, "dim": 24, "dtype": HALF},
    "gate_norm_modulate": {"width": 32, "dtype": HALF},
    "frame_cross_attention": {"dim": 16, "dtype": HALF},
    "frame_cross_attention many": {"dim": 64, "audio": 12, "dtype": HALF},
    "frame_audio_update": {"dim": 16, "dtype": HALF},
    "cfg_euler_step": {"dtype": HALF, "shape": (3, 5, 16)},
    "x0_renoise_step": {"dtype": HALF, "shape": (3, 5, 16)},
    "latent_noise": {"count": 64},
    "move_and_paint": {"size": (64, 64)},
}
REFUSED = "is not a multiple of"
EACH = {
    f"{case} {name}": (case, name)
    for case, sizes in CALLS.items()
    for name, value in calls.VALID[case.partition(" ")[0]](**sizes).items()
    if isinstance(value, torch.Tensor) and value.dtype != torch.int32
}


@pytest.mark.parametrize("case, name", EACH.values(), ids=EACH)
def test_one_number_on(case, name):
    op = case.partition(" ")[0]
    call = calls.VALID[op](**CALLS[case])
    want = built.run(op, call)
    here = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in call.items()}
    memory = torch.zeros(call[name].numel() + 1, dtype=call[name].dtype)
    here[name] = memory[1:].view(call[name].shape).copy_(call[name])
    said = REFUSED
    try:
        built.run(op, here, in_place=True)
    except OpError as e:
        said, want = str(e), call  # nothing was written
    assert REFUSED in said
    for output in calls.written(op):
        if here.get(output) is None:
            continue
        got, expected = here[output].double(), want[output].double()
        assert torch.equal(got.isnan(), expected.isnan()), output
        reason = "the same sums in another order, rounded to half"
        assert_close(got.nan_to_num(), expected.nan_to_num(), atol=2.0**-8, rtol=2.0**-8, reason=reason)
