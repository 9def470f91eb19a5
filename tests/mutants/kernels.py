"""Of the kernels in CUDA C++, which tests run on the CPU: what they take as vectors, and what they wait for."""

from __future__ import annotations

FOLDER = "csrc/cuda"
ATTENTION = f"{FOLDER}/attention"


def of(op: str, name: str = "") -> str:
    return f"tests/cuda/test_{op}.py" + (f"::test_{name}" if name else "")


def in_op(name: str, op: str, old: str, new: str, tests: str = "") -> tuple[str, str, str, str, str]:
    """A fault in the op's own file, found by the op's own tests where no others are named."""
    return name, f"{FOLDER}/{op}.cu", old, new, tests or of(op)


TILES = of("sink_ring_attention", "sizes_around_tiles")
STEPS = of("sampler_steps")

# A vector that begins between two multiples of its size ends a GPU's program, and the shim's.
VECTORS = [
    in_op("latents are vectors wherever they begin", "cfg_euler_step", " && aligned({p.z}, kWide * sizeof(T))", "",
        STEPS),
    in_op("velocities are vectors wherever they begin", "cfg_euler_step",
        "aligned({p.v_cond, p.v_uncond}, kWide * sizeof(V))", "true", of("alignment")),
    in_op("latents of any number are vectors", "cfg_euler_step", "p.numel % kWide == 0 && ", "", STEPS),
    in_op("latents and noise are vectors wherever they begin", "x0_renoise_step",
        " && aligned({p.z, p.noise}, kWide * sizeof(T))", "", STEPS),
    in_op("a velocity is vectors wherever it begins", "x0_renoise_step", "aligned({p.velocity}, kWide * sizeof(V))",
        "true", of("alignment")),
    in_op("a vector lies in two tokens", "x0_renoise_step", "p.channels % kWide == 0",
        "p.tokens * p.channels % kWide == 0"),
    in_op("a moved photo is words wherever it begins", "move_and_paint", " && aligned({p.out}, 4)", ""),
    in_op("noise is vectors wherever it begins", "latent_noise", " && aligned({p.out}, kNumbers * sizeof(float))", ""),
    in_op("noise of any number is vectors", "latent_noise", "p.count % kNumbers == 0 && ", ""),
    in_op("pictures are words wherever they begin", "frames_to_uint8", " && aligned({p.out}, 4)", ""),
    in_op("a video of any strides is vectors", "frames_to_uint8",
        "steps_by(kPixels, {s.batch, s.channel, s.frame, s.row})", "true"),
    in_op("a residual stream is vectors wherever it begins", "gate_norm_modulate",
        "aligned({p.x, p.branch, p.gate.data, p.scale.data, p.shift.data, p.out}, 16)", "true", of("alignment")),
    in_op("modulation of any strides is vectors", "gate_norm_modulate",
        "if (v.lane_stride % vec != 0 || v.frame_stride % vec != 0) return false;", "(void)v;"),
    in_op("pixels of any strides are vectors", "pixel_norm_silu",
        "steps_by(kWide, {s.batch, s.frame, s.row, s.column})", "true"),
    in_op("pixels are vectors wherever they begin", "pixel_norm_silu", "aligned({p.x, p.out}, 16)", "true"),
    in_op("cells are vectors wherever they begin", "depth_to_space", "aligned({p.x, p.out}, 16)", "true"),
    in_op("cells of any strides are vectors", "depth_to_space", "steps_by(kVec, {o.batch, o.frame, o.row, o.column})",
        "true"),
    in_op("keys of a frame are vectors wherever they begin", "frame_cross_attention",
        " && aligned({p.q, p.q_weight, p.k, p.v, p.out}, 16)", ""),
    in_op("audio constants are vectors wherever they begin", "frame_audio_update",
        "whole && aligned({p.x, p.q, p.keys, p.base, p.update, p.null}, 16)", "whole"),
    in_op("projections are vectors wherever they begin", "qk_norm_rope_cache",
        "aligned({p.qkv, p.q_weight, p.k_weight, p.k_cache, p.v_cache, p.q_out}, bytes)", "true", of("alignment")),
    in_op("keys are pairs wherever they begin", "rotate_context", "aligned({p.k_cache}, 2 * sizeof(T))", "true"),
    in_op("slots are copied wherever they begin", "sink_ring_attention",
        "!strides || !aligned({p.q, p.k_cache, p.v_cache, p.out}, 16)", "!strides",
        of("sink_ring_attention", "what_the_launcher_refuses")),
]  # fmt: skip

# What is there when it is read, and what counts.
ATTENDING = [
    ("a tile is read while it is on its way", f"{ATTENTION}/stages.h", "wait_for_copies<kStages - 2>();", "", TILES),
    ("a tile of another thread is read at once", f"{ATTENTION}/stages.h", "__syncthreads();", "", TILES),
    ("keys behind the last count", f"{ATTENTION}/attend.h",
     "if (tiles.left(tile) < A::kKeys) mask(scores[i], tiles.left(tile));", "",
     f"{TILES} {of('frame_cross_attention')}"),
    ("sums of the tiles before are as they were", f"{ATTENTION}/attend.h",
     "shrink(sums[i], softmax[i].advance(scores[i], positive));", "softmax[i].advance(scores[i], positive);", TILES),
    ("rows behind the last are written", f"{ATTENTION}/epilogue.h", "if (row >= exist) continue;", "",
     of("sink_ring_attention", "reads_only_and_memory_around_the_results")),
    ("chunks of all rows lie in one place", f"{ATTENTION}/stages.h", "(chunk ^ row % 8)", "chunk",
     of("sink_ring_attention", "tiles_are_read_without_bank_conflicts")),
    ("a bank behind the last is followed", f"{ATTENTION}/slots.h", " & (bank < p.banks)", "",
     of("sink_ring_attention", "a_lane_with_a_wrong_index_is_left_alone")),
    in_op("text of one frame is that of the lane", "frame_cross_attention",
        "((p.kv_batch == 1 ? 0 : lane) * p.frames + frame) * p.audio * width + head;",
        "(lane * p.frames + frame) * p.audio * width + head;"),
    in_op("queries are not normed for tensor cores", "frame_cross_attention",
        "to_float(x.at[e]) * root * to_float(grow.at[e])", "to_float(x.at[e]) * to_float(grow.at[e])"),
]  # fmt: skip

MAKING = [
    in_op("the last number of noise is written by its neighbour", "latent_noise", "if (first + i < p.count)",
        "if (first + i <= p.count)"),
    in_op("all frames have the noise of the first", "latent_noise", "p.words + int64_t{blockIdx.y} * kNoiseWords",
        "p.words"),
    in_op("nine rounds of Philox", "latent_noise", "round < 10", "round < 9"),
    in_op("a flow that is no number is an address", "move_and_paint",
        "x = fminf(fmaxf(x, 0.0f), static_cast<float>(p.width - 1));", ""),
    in_op("the window's paint does not fade", "move_and_paint", "finest.at(inner_x)), share)",
        "finest.at(inner_x)), 1.0f)"),
    in_op("rows are read before they are blended", "move_and_paint",
        "blend_maps(p, rows, frame, y, inner_y);\n  __syncthreads();", "blend_maps(p, rows, frame, y, inner_y);"),
    in_op("every frame is of the first photo", "move_and_paint", "frame / (p.frames / p.photos) * kColours * plane",
        "0 * plane"),
]  # fmt: skip

KERNELS = [*VECTORS, *ATTENDING, *MAKING]
