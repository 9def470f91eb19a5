"""The launches of rest-512, of FlashHead, and the demo's."""

from rest_fast.kernels.offline import Case
from rest_fast.kernels.qk_norm_rope_cache import plan
from rest_fast.kernels.qk_norm_rope_cache.kernel import qk_norm_rope_cache_kernel


def case(name: str, dtype: str, width: int, by_head: tuple[int, int, int] | tuple[()] = ()) -> Case:
    tensors = "qkv q_weight k_weight rope_t rope_y rope_x k_cache v_cache q_out row_index bank_index write_slot base"
    kinds = [f"*{dtype}"] * 3 + ["*fp32"] * 3 + [f"*{dtype}"] * 3 + ["*i32"] * 4
    sizes = ["rows", "banks", "slots", "tokens", "positions", "grid_h", "grid_w"]
    constants = plan(width, *by_head)
    warps = constants.pop("num_warps")
    return Case(
        name,
        qk_norm_rope_cache_kernel,
        dict(zip(tensors.split(), kinds)) | dict.fromkeys(sizes, "i32") | {"eps": "fp32"},
        constants,
        num_warps=warps,
        aligned=tuple(tensors.split()),
    )


# The number of lanes is the size of the grid: 2 lanes and 16 run the same code.
CASES = [
    case("rest-512, bf16", "bf16", 2048),
    case("rest-512, fp16", "fp16", 2048),
    case("flashhead, bf16", "bf16", 1536, (64, 22, 21)),
    case("demo, fp32", "fp32", 192),
]
