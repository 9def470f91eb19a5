"""Of the kernels in CUDA C++, which tests run on the CPU: what they take as vectors, and what they wait for."""

from __future__ import annotations

FOLDER = "csrc/cuda"
ATTENTION = f"{FOLDER}/attention"


def of(op: str, name: str = "") -> str:
    return f"tests/cuda/test_{op}.py" + (f"::test_{name}" if name else "")


TILES = of("sink_ring_attention", "sizes_around_tiles")


# A vector that begins between two multiples of its size ends a GPU's program, and the shim's.
VECTORS = [
    ("latents are vectors wherever they begin", f"{FOLDER}/cfg_euler_step.cu", " && aligned({p.z}, kWide * sizeof(T))",
     "", of("cfg_euler_step")),
    ("velocities are vectors wherever they begin", f"{FOLDER}/cfg_euler_step.cu",
     "aligned({p.v_cond, p.v_uncond}, kWide * sizeof(V))", "true", of("alignment")),
    ("latents of any number are vectors", f"{FOLDER}/cfg_euler_step.cu", "p.numel % kWide == 0 && ", "",
     of("cfg_euler_step")),
    ("a moved photo is words wherever it begins", f"{FOLDER}/move_and_paint.cu", " && aligned({p.out}, 4)", "",
     of("move_and_paint")),
    ("noise is vectors wherever it begins", f"{FOLDER}/latent_noise.cu",
     " && aligned({p.out}, kNumbers * sizeof(float))", "", of("latent_noise")),
    ("noise of any number is vectors", f"{FOLDER}/latent_noise.cu", "p.count % kNumbers == 0 && ", "",
     of("latent_noise")),
    ("pictures are words wherever they begin", f"{FOLDER}/frames_to_uint8.cu", " && aligned({p.out}, 4)", "",
     of("frames_to_uint8")),
    ("a video of any strides is vectors", f"{FOLDER}/frames_to_uint8.cu",
     "steps_by(kPixels, {s.batch, s.channel, s.frame, s.row})", "true", of("frames_to_uint8")),
    ("a residual stream is vectors wherever it begins", f"{FOLDER}/gate_norm_modulate.cu",
     "aligned({p.x, p.branch, p.gate.data, p.scale.data, p.shift.data, p.out}, 16)", "true",
     of("alignment")),
    ("modulation of any strides is vectors", f"{FOLDER}/gate_norm_modulate.cu",
     "if (v.lane_stride % vec != 0 || v.frame_stride % vec != 0) return false;", "(void)v;",
     of("gate_norm_modulate")),
    ("pixels of any strides are vectors", f"{FOLDER}/pixel_norm_silu.cu",
     "steps_by(kWide, {s.batch, s.frame, s.row, s.column})", "true", of("pixel_norm_silu")),
    ("pixels are vectors wherever they begin", f"{FOLDER}/pixel_norm_silu.cu", "aligned({p.x, p.out}, 16)", "true",
     of("pixel_norm_silu")),
    ("cells are vectors wherever they begin", f"{FOLDER}/depth_to_space.cu", "aligned({p.x, p.out}, 16)", "true",
     of("depth_to_space")),
    ("cells of any strides are vectors", f"{FOLDER}/depth_to_space.cu",
     "steps_by(kVec, {o.batch, o.frame, o.row, o.column})", "true", of("depth_to_space")),
    ("keys of a frame are vectors wherever they begin", f"{FOLDER}/frame_cross_attention.cu",
     " && aligned({p.q, p.q_weight, p.k, p.v, p.out}, 16)", "", of("frame_cross_attention")),
    ("audio constants are vectors wherever they begin", f"{FOLDER}/frame_audio_update.cu",
     "whole && aligned({p.x, p.q, p.keys, p.base, p.update, p.null}, 16)", "whole", of("frame_audio_update")),
    ("projections are vectors wherever they begin", f"{FOLDER}/qk_norm_rope_cache.cu",
     "aligned({p.qkv, p.q_weight, p.k_weight, p.k_cache, p.v_cache, p.q_out}, bytes)", "true",
     of("alignment")),
    ("keys are pairs wherever they begin", f"{FOLDER}/rotate_context.cu", "aligned({p.k_cache}, 2 * sizeof(T))",
     "true", of("rotate_context")),
    ("slots are copied wherever they begin", f"{FOLDER}/sink_ring_attention.cu",
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
    ("text of one frame is that of the lane", f"{FOLDER}/frame_cross_attention.cu",
     "((p.kv_batch == 1 ? 0 : lane) * p.frames + frame) * p.audio * width + head;",
     "(lane * p.frames + frame) * p.audio * width + head;", of("frame_cross_attention")),
    ("queries are not normed for tensor cores", f"{FOLDER}/frame_cross_attention.cu",
     "to_float(x.at[e]) * root * to_float(grow.at[e])", "to_float(x.at[e]) * to_float(grow.at[e])",
     of("frame_cross_attention")),
]  # fmt: skip

MAKING = [
    ("the last number of noise is written by its neighbour", f"{FOLDER}/latent_noise.cu", "if (first + i < p.count)",
     "if (first + i <= p.count)", of("latent_noise")),
    ("all frames have the noise of the first", f"{FOLDER}/latent_noise.cu",
     "p.words + int64_t{blockIdx.y} * kNoiseWords", "p.words", of("latent_noise")),
    ("nine rounds of Philox", f"{FOLDER}/latent_noise.cu", "round < 10", "round < 9", of("latent_noise")),
    ("a flow that is no number is an address", f"{FOLDER}/move_and_paint.cu",
     "x = fminf(fmaxf(x, 0.0f), static_cast<float>(p.width - 1));", "", of("move_and_paint")),
    ("the window's paint does not fade", f"{FOLDER}/move_and_paint.cu", "finest.at(inner_x)), share)",
     "finest.at(inner_x)), 1.0f)", of("move_and_paint")),
    ("rows are read before they are blended", f"{FOLDER}/move_and_paint.cu",
     "blend_maps(p, rows, frame, y, inner_y);\n  __syncthreads();", "blend_maps(p, rows, frame, y, inner_y);",
     of("move_and_paint")),
    ("every frame is of the first photo", f"{FOLDER}/move_and_paint.cu",
     "frame / (p.frames / p.photos) * kColours * plane", "0 * plane", of("move_and_paint")),
]  # fmt: skip

KERNELS = [*VECTORS, *ATTENDING, *MAKING]
