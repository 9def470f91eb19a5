"""The launches of rest-512 and of the demo model, the sizes at which the keys are split, the other head sizes, fp32."""

import torch

from rest_fast.kernels.offline import Case
from rest_fast.kernels.sink_ring_attention import HEAD_SIZES, combine_constants, constants
from rest_fast.kernels.sink_ring_attention.kernel import combine_kernel, sink_ring_attention_kernel
from rest_fast.kernels.sink_ring_attention.plan import Plan, plan

PROCESSORS = 132  # of an H200
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def planned(dtype: str, lanes: int, tokens: int, slots: int, heads: int = 32, dim: int = 64) -> Plan:
    sizes = {"lanes": lanes, "heads": heads, "tokens": tokens, "slots": slots, "dim": dim}
    return plan(**sizes, dtype=DTYPES[dtype], processors=PROCESSORS)


def case(name: str, dtype: str, chosen: Plan, *, heads: int = 32, dim: int = 64, lse: bool = False) -> Case:
    constant = constants(chosen, heads, dim, DTYPES[dtype])
    warps, stages = constant.pop("num_warps"), constant.pop("num_stages")
    split = chosen.splits > 1
    pointers = dict.fromkeys(("q", "k_cache", "v_cache"), f"*{dtype}") | {"out": "*fp32" if split else f"*{dtype}"}
    if lse or split:
        pointers["lse"] = "*fp32"
    else:
        constant["lse"] = None
    pointers |= dict.fromkeys(("row_index", "bank_index", "n_valid"), "*i32")
    sizes = dict.fromkeys(("rows", "banks", "slots", "tokens"), "i32") | {"scale": "fp32"}
    return Case(
        name,
        sink_ring_attention_kernel,
        pointers | sizes,
        constant,
        num_warps=warps,
        num_stages=stages,
        aligned=tuple(pointers),
        tensor_cores=dtype != "fp32",
        narrow="a tile has fewer than four numbers a thread" if dtype == "fp32" and dim < 64 else "",
    )


def combine(name: str, dtype: str, chosen: Plan, *, heads: int = 32, dim: int = 64) -> Case:
    constant = combine_constants(chosen, heads, dim)
    warps = constant.pop("num_warps")
    pointers = {"part": "*fp32", "part_lse": "*fp32", "out": f"*{dtype}", "lse": "*fp32"}
    arguments = pointers | {"tokens": "i32"}
    return Case(name, combine_kernel, arguments, constant, num_warps=warps, aligned=tuple(pointers))


CASES = [
    case("rest-512, 2 lanes, bf16", "bf16", planned("bf16", 2, 768, 1792)),
    case("rest-512, 16 lanes, bf16, lse", "bf16", planned("bf16", 16, 768, 1792), lse=True),
    case("rest-512, 2 lanes, fp16", "fp16", planned("fp16", 2, 768, 1792)),
    case("rest-512, 1 lane, bf16", "bf16", planned("bf16", 1, 768, 1792)),
    case("256 queries, 1 lane, bf16, split", "bf16", planned("bf16", 1, 256, 1792)),
    combine("256 queries, 1 lane, bf16, combine", "bf16", planned("bf16", 1, 256, 1792)),
    case("384 queries, 4864 slots, 1 lane, bf16, split", "bf16", planned("bf16", 1, 384, 4864)),
    combine("384 queries, 4864 slots, 1 lane, bf16, combine", "bf16", planned("bf16", 1, 384, 4864)),
    case("demo, 2 lanes, bf16", "bf16", planned("bf16", 2, 48, 112, heads=3), heads=3),
    *(case(f"head size {dim}, bf16", "bf16", planned("bf16", 2, 768, 1792, dim=dim), dim=dim) for dim in (16, 32, 128)),
    *(
        case(f"head size {dim}, 112 slots, bf16", "bf16", planned("bf16", 2, 48, 112, 8, dim), heads=8, dim=dim)
        for dim in (16, 32, 128)
    ),
    *(case(f"head size {dim}, fp32", "fp32", planned("fp32", 2, 768, 1792, dim=dim), dim=dim) for dim in HEAD_SIZES),
]
