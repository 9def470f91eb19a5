// What crosses the boundary between Python and C++: one plain struct per op, and error codes.
//
// Tensors never cross. Python checks shapes, dtypes, devices and contiguity next to the reference
// (rest_fast/ops/<op>.py) and hands over addresses, sizes and strides; an op returns an error code
// that Python turns into an exception. Nothing here knows torch, so a built module outlives any
// torch upgrade. All strides count elements.
#pragma once

#include <cstdint>

namespace rest_fast {

// The order is part of the Python interface: rest_fast/ops passes the numbers.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum ErrorCode : int {
  kOk = 0,
  kBadDType = 1,
  kBadShape = 2,
  kRowOutOfRange = 3,
  kRingOutOfRange = 4,
  kSlotOutOfRange = 5,
  kPositionOutOfRange = 6,
  kMisaligned = 7,
  kCudaErrorBase = 1000,  // 1000 + cudaError_t, from rest_fast._cuda only
};

inline const char* error_string(int code) {
  switch (code) {
    case kOk: return "ok";
    case kBadDType: return "dtype is not one of float32 (0), bfloat16 (1), float16 (2)";
    case kBadShape: return "bad shape: a size is negative, or the width is odd, or too wide";
    case kRowOutOfRange: return "row_index is outside the cache rows";
    case kRingOutOfRange: return "ring_index is outside the cache rings";
    case kSlotOutOfRange: return "write_slot + tokens is outside the cache slots";
    case kPositionOutOfRange: return "base + latent frames is outside the rows of rope_t";
    case kMisaligned: return "an address or stride is not a multiple of a channel pair";
    default: return "unknown error";
  }
}

// RMS norm of Q and K over the full width, RoPE at the lane's base, K and V into the lane's slots.
//
// B lanes, N tokens a lane, W = heads x head_dim channels, n = W / 6 frequencies an axis.
// Token i of lane b: f = i / (grid_h grid_w), y = (i / grid_w) % grid_h, x = i % grid_w, and
// position t = base[b] + f. Of the W / 2 channel pairs the first W / 2 - 3 n stay as they are; pair
// j after them turns by axis j % 3 (t, y, x) at frequency j / 3.
struct QkNormRopeCacheParams {
  const void* qkv;            // [B, N, 3 W] dtype, contiguous: q, k, v channels in this order
  const void* q_weight;       // [W] dtype
  const void* k_weight;       // [W] dtype
  const float* rope_t;        // [positions, n, 2] (cos, sin)
  const float* rope_y;        // [grid_h, n, 2]
  const float* rope_x;        // [grid_w, n, 2]
  void* k_cache;              // [rows, rings, slots, W] dtype, last two dims contiguous
  void* v_cache;              // the same shape and strides as k_cache
  void* q_out;                // [B, N, W] dtype, contiguous
  const int32_t* row_index;   // [B] in [0, rows)
  const int32_t* ring_index;  // [B] in [0, rings)
  const int32_t* write_slot;  // [B] in [0, slots - N]
  const int32_t* base;        // [B], base[b] + last latent frame < positions
  int64_t batch;              // B
  int64_t tokens;             // N, not necessarily a multiple of grid_h * grid_w
  int64_t width;              // W, even
  int64_t positions;
  int64_t grid_h;
  int64_t grid_w;
  int64_t rows;
  int64_t rings;
  int64_t slots;
  int64_t row_stride;   // of k_cache and v_cache
  int64_t ring_stride;  // of k_cache and v_cache
  DType dtype;
  float eps;
};

// What both back ends can check without reading a tensor.
inline int check_sizes(const QkNormRopeCacheParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  if (dtype < 0 || dtype > 2) return kBadDType;
  const bool negative = p.batch < 0 || p.tokens < 0 || p.positions < 0;
  const bool empty = p.width <= 0 || p.grid_h <= 0 || p.grid_w <= 0;
  if (negative || empty || p.width % 2 != 0) return kBadShape;
  if (p.tokens > p.slots && p.batch > 0) return kSlotOutOfRange;
  return kOk;
}

// csrc/cpu: every pointer in host memory. Checks the index ranges before it writes anything.
int qk_norm_rope_cache_cpu(const QkNormRopeCacheParams& p);

// csrc/cuda: every pointer in the memory of `device`. The caller has checked the index ranges on
// its own copy; device code does not trap. `stream` is a cudaStream_t.
int qk_norm_rope_cache_cuda(const QkNormRopeCacheParams& p, void* stream, int device);

}  // namespace rest_fast
