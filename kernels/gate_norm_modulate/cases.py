"""The launches of a rest-512 block, with what each of them leaves out, of FlashHead's, and the demo's."""

from rest_fast.kernels.gate_norm_modulate import plan
from rest_fast.kernels.gate_norm_modulate.kernel import gate_norm_modulate_kernel
from rest_fast.kernels.offline import Case

TENSORS = ["x", "branch", "gate", "scale", "shift", "out"]
STRIDES = ["gate_lane", "gate_frame", "scale_lane", "scale_frame", "shift_lane", "shift_frame"]


def case(name: str, dtype: str, width: int, missing: str = "", eager: bool = False, norm: str = "rms") -> Case:
    left_out = missing.split()
    constants = plan(width)
    warps = constants.pop("num_warps")
    integers = ["tokens", "gate_frames", "frames", *STRIDES]
    return Case(
        name,
        gate_norm_modulate_kernel,
        {n: f"*{dtype}" for n in TENSORS if n not in left_out} | dict.fromkeys(integers, "i32") | {"eps": "fp32"},
        {"EAGER": eager, "NORM": norm, **dict.fromkeys(left_out), **constants},
        num_warps=warps,
        aligned=(*(n for n in TENSORS if n not in left_out), *STRIDES),
    )


# The number of lanes is the size of the grid: 2 lanes and 16 run the same code.
CASES = [
    case("rest-512, bf16", "bf16", 2048),
    case("rest-512, bf16, eager rounding", "bf16", 2048, eager=True),
    case("rest-512, bf16, no gate", "bf16", 2048, "gate"),
    case("rest-512, bf16, norm alone", "bf16", 2048, "branch gate"),
    case("rest-512, bf16, gated residual alone", "bf16", 2048, "scale shift out"),
    case("rest-512, bf16, residual alone", "bf16", 2048, "gate scale shift out"),
    case("rest-512, fp16", "fp16", 2048),
    case("flashhead, bf16", "bf16", 1536, norm="layer"),
    case("flashhead, bf16, before the audio", "bf16", 1536, norm="affine"),
    case("demo, fp32", "fp32", 192),
]
