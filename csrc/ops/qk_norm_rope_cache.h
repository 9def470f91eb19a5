#pragma once

#include "../core.h"

namespace rest_fast {

// RMS norm of Q and K over the full width, RoPE at the lane's base, K and V into the lane's slots.
//
// B lanes, N tokens a lane, W = heads x head_dim channels, n = W / 6 frequencies an axis.
// Token i of lane b: f = i / (grid_h grid_w), y = (i / grid_w) % grid_h, x = i % grid_w, and
// position t = base[b] + f. Of the W / 2 channel pairs the first W / 2 - 3 n stay as they are; pair
// j after them turns by axis j % 3 (t, y, x) at frequency j / 3. With head_pairs > 0 every head has
// the same rotation instead: its first time_pairs pairs turn by t, the next row_pairs by y, the
// others by x, and the tables have as many frequencies as their axis has pairs.
struct QkNormRopeCacheParams {
  const void* qkv;            // [B, N, 3 W] dtype, contiguous: q, k, v channels in this order
  const void* q_weight;       // [W] dtype
  const void* k_weight;       // [W] dtype
  const float* rope_t;        // [positions, n, 2] (cos, sin)
  const float* rope_y;        // [grid_h, n, 2]
  const float* rope_x;        // [grid_w, n, 2]
  void* k_cache;              // [rows, banks, slots, W] dtype, last two dims contiguous
  void* v_cache;              // the same shape and strides as k_cache
  void* q_out;                // [B, N, W] dtype, contiguous
  const int32_t* row_index;   // [B] in [0, rows) or kIdle
  const int32_t* bank_index;  // [B] in [0, banks)
  const int32_t* write_slot;  // [B] in [0, slots - N]
  const int32_t* base;        // [B], base[b] + last latent frame < positions
  int64_t batch;              // B
  int64_t tokens;             // N, not necessarily a multiple of grid_h * grid_w
  int64_t width;              // W, even
  int64_t positions;
  int64_t grid_h;
  int64_t grid_w;
  int64_t rows;
  int64_t banks;
  int64_t slots;
  int64_t row_stride;   // of k_cache and v_cache
  int64_t bank_stride;  // of k_cache and v_cache
  int64_t head_pairs;   // head_dim / 2, or 0: the axes alternate over the full width
  int64_t time_pairs;   // of head_pairs, as the next
  int64_t row_pairs;
  DType dtype;
  float eps;
};

// What both back ends can check without reading a tensor.
inline int check_sizes(const QkNormRopeCacheParams& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool negative = p.batch < 0 || p.tokens < 0 || p.positions < 0;
  const bool empty = p.width <= 0 || p.grid_h <= 0 || p.grid_w <= 0;
  if (negative || empty || p.width % 2 != 0) return kBadShape;
  const bool by_head = p.head_pairs != 0;
  if (p.head_pairs < 0 || (by_head && p.width % (2 * p.head_pairs) != 0)) return kBadShape;
  if (p.time_pairs < 0 || p.row_pairs < 0) return kBadShape;
  if (by_head && p.time_pairs + p.row_pairs > p.head_pairs) return kBadShape;
  if (p.tokens > p.slots && p.batch > 0) return kSlotOutOfRange;
  return kOk;
}

// In the order of the call.
inline auto arguments(const QkNormRopeCacheParams*) {
  return std::make_tuple(
      REST_FAST_FIELD(qkv), REST_FAST_FIELD(q_weight), REST_FAST_FIELD(k_weight),
      REST_FAST_FIELD(rope_t), REST_FAST_FIELD(rope_y), REST_FAST_FIELD(rope_x),
      REST_FAST_FIELD(k_cache), REST_FAST_FIELD(v_cache), REST_FAST_FIELD(q_out),
      REST_FAST_FIELD(row_index), REST_FAST_FIELD(bank_index), REST_FAST_FIELD(write_slot),
      REST_FAST_FIELD(base), REST_FAST_FIELD(batch), REST_FAST_FIELD(tokens),
      REST_FAST_FIELD(width), REST_FAST_FIELD(positions), REST_FAST_FIELD(grid_h),
      REST_FAST_FIELD(grid_w), REST_FAST_FIELD(rows), REST_FAST_FIELD(banks),
      REST_FAST_FIELD(slots), REST_FAST_FIELD(row_stride), REST_FAST_FIELD(bank_stride),
      REST_FAST_FIELD(head_pairs), REST_FAST_FIELD(time_pairs), REST_FAST_FIELD(row_pairs),
      REST_FAST_FIELD(eps), REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Checks the index ranges before it writes anything.
int qk_norm_rope_cache_cpu(const QkNormRopeCacheParams& p);

// csrc/cuda: every pointer in the memory of `device`. The caller has checked the index ranges on
// its own copy; device code does not trap. `stream` is a cudaStream_t.
int qk_norm_rope_cache_cuda(const QkNormRopeCacheParams& p, void* stream, int device);

}  // namespace rest_fast
