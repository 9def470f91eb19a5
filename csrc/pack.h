// Integers from Python -> the structs of params.h. One function per op, shared by _cpu and _cuda,
// so that both modules have the same positional signature by construction.
#pragma once

#include <array>
#include <cstdint>

#include "params.h"

namespace rest_fast {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline QkNormRopeCacheParams pack_qk_norm_rope_cache(
    Address qkv, Address q_weight, Address k_weight, Address rope_t, Address rope_y, Address rope_x,
    Address k_cache, Address v_cache, Address q_out, Address row_index, Address ring_index,
    Address write_slot, Address base, int64_t batch, int64_t tokens, int64_t heads,
    int64_t head_dim, int64_t positions, int64_t grid_h, int64_t grid_w, int64_t rows,
    int64_t rings, int64_t slots, int64_t row_stride, int64_t ring_stride, double eps, int dtype) {
  QkNormRopeCacheParams p{};
  p.qkv = pointer<const void>(qkv);
  p.q_weight = pointer<const void>(q_weight);
  p.k_weight = pointer<const void>(k_weight);
  p.rope_t = pointer<const float>(rope_t);
  p.rope_y = pointer<const float>(rope_y);
  p.rope_x = pointer<const float>(rope_x);
  p.k_cache = pointer<void>(k_cache);
  p.v_cache = pointer<void>(v_cache);
  p.q_out = pointer<void>(q_out);
  p.row_index = pointer<const int32_t>(row_index);
  p.ring_index = pointer<const int32_t>(ring_index);
  p.write_slot = pointer<const int32_t>(write_slot);
  p.base = pointer<const int32_t>(base);
  p.batch = batch;
  p.tokens = tokens;
  p.width = heads * head_dim;
  p.positions = positions;
  p.grid_h = grid_h;
  p.grid_w = grid_w;
  p.rows = rows;
  p.rings = rings;
  p.slots = slots;
  p.row_stride = row_stride;
  p.ring_stride = ring_stride;
  p.dtype = static_cast<DType>(dtype);
  p.eps = static_cast<float>(eps);
  return p;
}

inline RotateContextParams pack_rotate_context(Address k_cache, Address shift, Address row_index,
                                               Address skip_slot, Address enabled, int64_t batch,
                                               int64_t layers, int64_t rows, int64_t rings,
                                               int64_t slots, int64_t width, int64_t sink,
                                               int64_t chunk, int dtype) {
  RotateContextParams p{};
  p.k_cache = pointer<void>(k_cache);
  p.shift = pointer<const float>(shift);
  p.row_index = pointer<const int32_t>(row_index);
  p.skip_slot = pointer<const int32_t>(skip_slot);
  p.enabled = pointer<const int32_t>(enabled);
  p.batch = batch;
  p.layers = layers;
  p.rows = rows;
  p.rings = rings;
  p.slots = slots;
  p.width = width;
  p.sink = sink;
  p.chunk = chunk;
  p.dtype = static_cast<DType>(dtype);
  return p;
}

inline GateNormModulateParams pack_gate_norm_modulate(
    Address x, Address branch, Address gate, Address scale, Address shift, Address out,
    int64_t batch, int64_t tokens, int64_t width, int64_t gate_frames, int64_t norm_frames,
    int64_t gate_lane_stride, int64_t gate_frame_stride, int64_t scale_lane_stride,
    int64_t scale_frame_stride, int64_t shift_lane_stride, int64_t shift_frame_stride, double eps,
    int rounding, int dtype) {
  GateNormModulateParams p{};
  p.x = pointer<void>(x);
  p.branch = pointer<const void>(branch);
  p.gate = {pointer<const void>(gate), gate_lane_stride, gate_frame_stride};
  p.scale = {pointer<const void>(scale), scale_lane_stride, scale_frame_stride};
  p.shift = {pointer<const void>(shift), shift_lane_stride, shift_frame_stride};
  p.out = pointer<void>(out);
  p.batch = batch;
  p.tokens = tokens;
  p.width = width;
  p.gate_frames = gate_frames;
  p.norm_frames = norm_frames;
  p.dtype = static_cast<DType>(dtype);
  p.rounding = static_cast<Rounding>(rounding);
  p.eps = static_cast<float>(eps);
  return p;
}

inline SinkRingAttentionParams pack_sink_ring_attention(
    Address q, Address k_cache, Address v_cache, Address out, Address lse, Address row_index,
    Address ring_index, Address n_valid, int64_t batch, int64_t tokens, int64_t heads,
    int64_t head_dim, int64_t rows, int64_t rings, int64_t slots, int64_t row_stride,
    int64_t ring_stride, int64_t vector_lanes, double scale, int dtype) {
  SinkRingAttentionParams p{};
  p.q = pointer<const void>(q);
  p.k_cache = pointer<const void>(k_cache);
  p.v_cache = pointer<const void>(v_cache);
  p.out = pointer<void>(out);
  p.lse = pointer<float>(lse);
  p.row_index = pointer<const int32_t>(row_index);
  p.ring_index = pointer<const int32_t>(ring_index);
  p.n_valid = pointer<const int32_t>(n_valid);
  p.batch = batch;
  p.tokens = tokens;
  p.heads = heads;
  p.head_dim = head_dim;
  p.rows = rows;
  p.rings = rings;
  p.slots = slots;
  p.row_stride = row_stride;
  p.ring_stride = ring_stride;
  p.vector_lanes = vector_lanes;
  p.dtype = static_cast<DType>(dtype);
  p.scale = static_cast<float>(scale);
  return p;
}

inline FrameCrossAttentionParams pack_frame_cross_attention(
    Address q, Address q_weight, Address k, Address v, Address out, int64_t batch, int64_t kv_batch,
    int64_t tokens, int64_t frames, int64_t audio, int64_t heads, int64_t head_dim,
    int64_t vector_lanes, double eps, int dtype) {
  FrameCrossAttentionParams p{};
  p.q = pointer<const void>(q);
  p.q_weight = pointer<const void>(q_weight);
  p.k = pointer<const void>(k);
  p.v = pointer<const void>(v);
  p.out = pointer<void>(out);
  p.batch = batch;
  p.kv_batch = kv_batch;
  p.tokens = tokens;
  p.frames = frames;
  p.audio = audio;
  p.heads = heads;
  p.head_dim = head_dim;
  p.vector_lanes = vector_lanes;
  p.dtype = static_cast<DType>(dtype);
  p.eps = static_cast<float>(eps);
  return p;
}

inline CfgEulerStepParams pack_cfg_euler_step(Address z, Address v_cond, Address v_uncond,
                                              Address guidance, Address dt, int64_t sessions,
                                              int64_t numel, int dtype, int velocity_dtype) {
  CfgEulerStepParams p{};
  p.z = pointer<void>(z);
  p.v_cond = pointer<const void>(v_cond);
  p.v_uncond = pointer<const void>(v_uncond);
  p.guidance = pointer<const float>(guidance);
  p.dt = pointer<const float>(dt);
  p.sessions = sessions;
  p.numel = numel;
  p.dtype = static_cast<DType>(dtype);
  p.velocity_dtype = static_cast<DType>(velocity_dtype);
  return p;
}

using Five = std::array<int64_t, 5>;  // of a tensor [B, C, T, H, W]

inline VolumeStrides volume_strides(const Five& s) {
  return {s[0], s[1], s[2], s[3], s[4]};
}

inline PixelNormSiluParams pack_pixel_norm_silu(Address x, Address scale, Address shift,
                                                Address out, const Five& shape,
                                                const Five& x_strides, const Five& out_strides,
                                                double eps, int dtype) {
  PixelNormSiluParams p{};
  p.x = pointer<const void>(x);
  p.scale = pointer<const void>(scale);
  p.shift = pointer<const void>(shift);
  p.out = pointer<void>(out);
  p.batch = shape[0];
  p.channels = shape[1];
  p.frames = shape[2];
  p.height = shape[3];
  p.width = shape[4];
  p.x_strides = volume_strides(x_strides);
  p.out_strides = volume_strides(out_strides);
  p.dtype = static_cast<DType>(dtype);
  p.eps = static_cast<float>(eps);
  return p;
}

inline DepthToSpaceParams pack_depth_to_space(Address x, Address out, const Five& shape,
                                              int64_t out_channels,
                                              const std::array<int64_t, 3>& factors, int64_t drop,
                                              const Five& x_strides, const Five& out_strides,
                                              int64_t element_size) {
  DepthToSpaceParams p{};
  p.x = pointer<const void>(x);
  p.out = pointer<void>(out);
  p.batch = shape[0];
  p.channels = out_channels;
  p.frames = shape[2];
  p.height = shape[3];
  p.width = shape[4];
  p.factor_t = factors[0];
  p.factor_h = factors[1];
  p.factor_w = factors[2];
  p.drop = drop;
  p.x_strides = volume_strides(x_strides);
  p.out_strides = volume_strides(out_strides);
  p.element_size = element_size;
  return p;
}

inline FramesToUint8Params pack_frames_to_uint8(Address x, Address out, const Five& shape,
                                                const Five& x_strides, int dtype) {
  FramesToUint8Params p{};
  p.x = pointer<const void>(x);
  p.out = pointer<uint8_t>(out);
  p.batch = shape[0];
  p.frames = shape[2];
  p.height = shape[3];
  p.width = shape[4];
  p.x_strides = volume_strides(x_strides);
  p.dtype = static_cast<DType>(dtype);
  return p;
}

inline ConvEpilogueParams pack_conv_epilogue(
    Address conv, Address noise, Address noise_scale, Address residual, Address scale,
    Address shift, Address out, Address normed, Address pictures, const Five& shape,
    int64_t residual_channels, const std::array<int64_t, 3>& factors, int64_t drop,
    const Five& conv_strides, const Five& residual_strides, const Five& out_strides,
    const Five& normed_strides, double eps, int dtype) {
  ConvEpilogueParams p{};
  p.conv = pointer<const void>(conv);
  p.noise = pointer<const void>(noise);
  p.noise_scale = pointer<const void>(noise_scale);
  p.residual = pointer<const void>(residual);
  p.scale = pointer<const void>(scale);
  p.shift = pointer<const void>(shift);
  p.out = pointer<void>(out);
  p.normed = pointer<void>(normed);
  p.pictures = pointer<uint8_t>(pictures);
  p.batch = shape[0];
  p.channels = shape[1];
  p.residual_channels = residual_channels;
  p.frames = shape[2];
  p.height = shape[3];
  p.width = shape[4];
  p.factor_t = factors[0];
  p.factor_h = factors[1];
  p.factor_w = factors[2];
  p.drop = drop;
  p.conv_strides = volume_strides(conv_strides);
  p.residual_strides = volume_strides(residual_strides);
  p.out_strides = volume_strides(out_strides);
  p.normed_strides = volume_strides(normed_strides);
  p.dtype = static_cast<DType>(dtype);
  p.eps = static_cast<float>(eps);
  return p;
}

}  // namespace rest_fast
