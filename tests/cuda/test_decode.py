"""What follows a library's convolution in a decode, composed of CUDA ops on the CPU, against the same of references."""

from __future__ import annotations

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import library_convolution
from tests.cuda_shim import built
from tests.kit.compare import assert_close
from tests.ops import calls, convolution


def followed(call: calls.Call, y: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """What is left after the convolution has given y."""
    results = {n: None if call[n] is None else call[n].clone() for n in convolution.RESULTS}
    operands = [call[n] for n in ("noise", "noise_scale", "residual", "scale", "shift")]
    rest = {"factors": call["factors"], "drop": call["drop"], "eps": call["eps"]}
    library_convolution.follow(y.clone(), *operands, *results.values(), **rest)
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", convolution.FORMS)
def test_what_follows_a_convolution(name, dtype):
    """Asked for "cuda", the ops after a convolution run there too: the ones that ``REST_FAST_BACKEND`` names."""
    call = convolution.form(name, dtype=dtype)
    b, _, t, h, w = convolution.piece(call).shape
    y = torch.randn(b, len(call["weight"]), t, h, w, generator=torch.Generator().manual_seed(1)).to(dtype)
    with built.everywhere() as ran:
        mine = followed(call, y)
    expected = {"depth_to_space"} if list(call["factors"]) != [1, 1, 1] else set()
    expected |= {"pixel_norm_silu"} if call["normed"] is not None else set()
    expected |= {"frames_to_uint8"} if call["pictures"] is not None else set()
    assert set(ran) == expected
    with ops.use_backend("reference"):
        want = followed(call, y)
    unit = 2e-6 if dtype == torch.float32 else 2.0**-8
    for result, truth in want.items():
        if truth is None:
            continue
        if truth.dtype == torch.uint8:
            assert torch.equal(mine[result], truth), result
        else:
            reason = "a norm of few channels in another order, one rounding"
            assert_close(mine[result], truth, atol=2 * unit, rtol=2 * unit, reason=reason)
