"""The commits of rest-512 and of the demo."""

from rest_fast.kernels.offline import Case
from rest_fast.kernels.rotate_context import plan
from rest_fast.kernels.rotate_context.kernel import rotate_context_kernel


def case(name: str, dtype: str, width: int) -> Case:
    tensors = ["k_cache", "shift", "row_index", "skip_slot", "enabled"]
    sizes = ["lanes", "rows", "banks", "slots", "sink", "chunk", "blocks"]
    constants = plan(width)
    warps = constants.pop("num_warps")
    return Case(
        name,
        rotate_context_kernel,
        dict(zip(tensors, [f"*{dtype}", "*fp32", "*i32", "*i32", "*i32"])) | dict.fromkeys(sizes, "i32"),
        constants,
        num_warps=warps,
        aligned=tuple(tensors),
    )


# Layers and lanes are the size of the grid.
CASES = [case("rest-512, bf16", "bf16", 2048), case("rest-512, fp16", "fp16", 2048), case("demo, fp32", "fp32", 192)]
