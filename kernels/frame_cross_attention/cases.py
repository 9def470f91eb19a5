"""Audio and text attention of rest-512 for 2 lanes and for 16, the demo's, and what is largest or odd."""

import torch

from rest_fast.kernels.frame_cross_attention import plan_few, plan_many, plan_norm
from rest_fast.kernels.frame_cross_attention.kernel import few_keys_kernel, many_keys_kernel, norm_kernel
from rest_fast.kernels.offline import Case

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def few(name: str, dtype: str, *sizes: int) -> Case:
    """sizes: lanes, frames, tokens a frame, keys, heads, head dim."""
    tensors = ["q", "q_weight", "k", "v", "out"]
    constants = plan_few(*sizes) | {"SHARED": False}
    warps = constants.pop("num_warps")
    return Case(
        name,
        few_keys_kernel,
        dict.fromkeys(tensors, f"*{dtype}") | {"frames": "i32", "tokens": "i32", "eps": "fp32", "scale": "fp32"},
        constants,
        num_warps=warps,
        aligned=tuple(tensors),
    )


def norm(name: str, dtype: str, width: int) -> Case:
    constants = plan_norm(width)
    warps = constants.pop("num_warps")
    tensors = dict.fromkeys(("q", "q_weight", "out"), f"*{dtype}")
    return Case(name, norm_kernel, tensors | {"eps": "fp32"}, constants, num_warps=warps)


def many(name: str, dtype: str, *sizes: int) -> Case:
    """sizes: tokens a frame, keys, heads, head dim."""
    tensors = ["out", "k", "v"]
    constants = plan_many(*sizes, DTYPES[dtype]) | {"SHARED": True}
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    return Case(
        name,
        many_keys_kernel,
        dict.fromkeys(tensors, f"*{dtype}") | {"frames": "i32", "tokens": "i32", "scale": "fp32"},
        constants,
        num_warps=warps,
        num_stages=stages,
        aligned=tuple(tensors),
        tensor_cores=dtype != "fp32",
    )


CASES = [
    few("audio, rest-512, 1 lane, bf16", "bf16", 1, 3, 256, 2, 32, 64),
    few("audio, rest-512, 2 lanes, bf16", "bf16", 2, 3, 256, 2, 32, 64),
    few("audio, rest-512, 16 lanes, fp16", "fp16", 16, 3, 256, 2, 32, 64),
    few("audio, demo, fp32", "fp32", 2, 3, 16, 4, 3, 64),
    norm("text, norm, rest-512, bf16", "bf16", 2048),
    many("text, rest-512, bf16", "bf16", 768, 128, 32, 64),
    many("text, rest-512, fp16", "fp16", 768, 128, 32, 64),
    many("text, demo, fp32", "fp32", 48, 128, 3, 64),
    few("8 keys, width 4096, bf16", "bf16", 16, 3, 256, 8, 64, 64),
    few("8 keys, width 8192, bf16", "bf16", 16, 3, 256, 8, 128, 64),
    few("8 keys, width 8192, fp32", "fp32", 16, 3, 256, 8, 128, 64),
    many("67 keys, head size 24, bf16", "bf16", 70, 67, 2, 24),
    many("67 keys, head size 24, fp32", "fp32", 70, 67, 2, 24),
    many("128 keys, head size 128, bf16", "bf16", 768, 128, 16, 128),
    many("128 keys, head size 128, fp32", "fp32", 768, 128, 16, 128),
]
