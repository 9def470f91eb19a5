"""The audio of rest-512 for 2 lanes and for 16, the demo's, and what is largest or odd."""

import torch

from rest_fast.kernels.frame_audio_update import plan
from rest_fast.kernels.frame_audio_update.kernel import update_kernel
from rest_fast.kernels.offline import Case

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TENSORS = ("x", "q", "keys", "base", "update", "null")


def case(name: str, dtype: str, *sizes: int) -> Case:
    """sizes: lanes, frames, tokens a frame, audio tokens, heads, head dim, width."""
    constants = plan(*sizes, DTYPES[dtype])
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    integers = dict.fromkeys(("hearing", "slots", "frames", "tokens"), "i32")
    return Case(
        name,
        update_kernel,
        dict.fromkeys(TENSORS, f"*{dtype}") | {"slot": "*i32"} | integers | {"eps": "fp32"},
        constants,
        num_warps=warps,
        num_stages=stages,
        aligned=TENSORS,
    )


CASES = [
    case("rest-512, 2 lanes, bf16", "bf16", 2, 3, 256, 2, 32, 64, 2048),
    case("rest-512, 16 lanes, fp16", "fp16", 16, 3, 256, 2, 32, 64, 2048),
    case("demo, fp32", "fp32", 2, 3, 16, 4, 3, 64, 192),
    case("demo, bf16", "bf16", 2, 3, 16, 4, 3, 64, 192),
    case("4 audio tokens, width 2048, bf16", "bf16", 2, 3, 256, 4, 32, 64, 2048),
    case("4 audio tokens, width 4096, bf16", "bf16", 16, 3, 256, 4, 64, 64, 4096),
    case("4 audio tokens, width 4096, fp32", "fp32", 16, 3, 256, 4, 64, 64, 4096),
    case("3 audio tokens, head size 24, fp16", "fp16", 2, 3, 70, 3, 2, 24, 48),
]
