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
  kSkipOutOfRange = 8,
  kRowShared = 9,
  kNullAddress = 10,
  kBadFrames = 11,
  kBadElementSize = 12,
  kBadFactors = 13,
  kLengthOutOfRange = 14,
  kBadVectorLanes = 15,
  kBadLayout = 16,
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
    case kSkipOutOfRange: return "skip_slot .. skip_slot + chunk is outside the context slots";
    case kRowShared: return "row_index of an enabled lane is also that of another lane";
    case kNullAddress: return "the address of a required tensor is null";
    case kBadFrames: return "bad shape: the latent frames do not divide the tokens";
    case kBadElementSize: return "element size is not one of 1, 2, 4, 8 bytes";
    case kBadFactors: return "a factor is below 1, or drop leaves no frame";
    case kLengthOutOfRange: return "n_valid is outside 1 .. slots";
    case kBadLayout: return "the channels of a pixel do not follow one another";
    case kBadVectorLanes: return "no vectors of that many lanes on this machine";
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

// At commit: the time pairs of the keys in slots [sink, slots), but for the `chunk` slots from
// skip_slot on, turn by one fixed angle a frequency. W = heads x head_dim, n = W / 6; of a key's
// W / 2 pairs these are pair W / 2 - 3 n and every third one after it.
struct RotateContextParams {
  void* k_cache;             // [layers, rows, rings, slots, W] dtype, contiguous
  const float* shift;        // [n, 2] (cos, sin)
  const int32_t* row_index;  // [B] in [0, rows), different for enabled lanes
  const int32_t* skip_slot;  // [B] in [sink, slots - chunk]
  const int32_t* enabled;    // [B], 0: the lane stays as it is
  int64_t batch;             // B
  int64_t layers;
  int64_t rows;
  int64_t rings;
  int64_t slots;
  int64_t width;  // W, even
  int64_t sink;
  int64_t chunk;
  DType dtype;
};

inline int check_sizes(const RotateContextParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  if (dtype < 0 || dtype > 2) return kBadDType;
  const bool negative = p.batch < 0 || p.layers < 0 || p.rows < 0 || p.rings < 0;
  if (negative || p.slots <= 0 || p.width <= 0 || p.width % 2 != 0) return kBadShape;
  if (p.sink < 0 || p.chunk < 1 || p.sink > p.slots - p.chunk) return kSkipOutOfRange;
  if (p.batch == 0 || p.layers == 0 || p.rings == 0) return kOk;  // and then no address is needed
  if (p.width >= 6 && !p.shift) return kNullAddress;
  if (!p.k_cache || !p.row_index || !p.skip_slot || !p.enabled) return kNullAddress;
  return kOk;
}

// AdaLN vectors [B, frames, W]: the last dim is contiguous, the others may be views or shared (0).
struct Vectors {
  const void* data;
  int64_t lane_stride;
  int64_t frame_stride;
};

enum class Rounding : int { kFused = 0, kEager = 1 };

// x <- x + gate branch, out = rms_norm(x) (1 + scale) + shift. Token i of N has frame
// i / (N / frames). kFused: fp32 until x and out are stored, the norm reads the unrounded sum.
// kEager: rounded to dtype after each step of the functional reference.
struct GateNormModulateParams {
  void* x;             // [B, N, W] dtype, contiguous
  const void* branch;  // [B, N, W] dtype, contiguous, or null: x stays
  Vectors gate;        // dtype, or null: the branch is added as it is
  Vectors scale;       // dtype, needed beside out
  Vectors shift;       // dtype, needed beside out
  void* out;           // [B, N, W] dtype, contiguous, or null: no norm
  int64_t batch;       // B
  int64_t tokens;      // N
  int64_t width;       // W
  int64_t gate_frames;
  int64_t norm_frames;  // of scale and shift
  DType dtype;
  Rounding rounding;
  float eps;
};

inline int check_sizes(const GateNormModulateParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  const int rounding = static_cast<int>(p.rounding);
  if (dtype < 0 || dtype > 2) return kBadDType;
  if (p.batch < 0 || p.tokens < 0 || p.width < 0 || rounding < 0 || rounding > 1) return kBadShape;
  const auto fits = [&](int64_t frames) { return frames > 0 && p.tokens % frames == 0; };
  if ((p.gate.data && !fits(p.gate_frames)) || (p.out && !fits(p.norm_frames))) return kBadFrames;
  if (p.batch == 0 || p.tokens == 0 || p.width == 0) return kOk;
  const bool unscaled = p.out && (!p.scale.data || !p.shift.data);
  if (!p.x || unscaled || (p.gate.data && !p.branch)) return kNullAddress;
  return kOk;
}

constexpr int kMaxHeadDim = 128;  // of frame_cross_attention_cpu: its tiles lie on the stack

// out = softmax(rms_norm(q) K_i^T / sqrt(D)) V_i: token j of N sees the A keys of frame
// i = j / (N / F). One frame: all tokens see all keys.
struct FrameCrossAttentionParams {
  const void* q;         // [B, N, W] dtype, contiguous, before its norm; W = heads x head_dim
  const void* q_weight;  // [W] dtype
  const void* k;         // [kv_batch, F, A, W] dtype, contiguous, normed
  const void* v;         // [kv_batch, F, A, W] dtype, contiguous
  void* out;             // [B, N, W] dtype, contiguous
  int64_t batch;         // B
  int64_t kv_batch;      // B, or 1: shared by all lanes
  int64_t tokens;        // N
  int64_t frames;        // F
  int64_t audio;         // A
  int64_t heads;
  int64_t head_dim;      // D
  int64_t vector_lanes;  // 0: as wide as the machine has; 4, 8, 16: that version, for tests
  DType dtype;
  float eps;
};

inline int check_sizes(const FrameCrossAttentionParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  if (dtype < 0 || dtype > 2) return kBadDType;
  const bool empty = p.audio <= 0 || p.heads <= 0 || p.head_dim <= 0;
  if (p.batch < 0 || p.tokens < 0 || empty || p.head_dim > kMaxHeadDim) return kBadShape;
  if (p.kv_batch != p.batch && p.kv_batch != 1) return kBadShape;
  if (p.frames <= 0 || p.tokens % p.frames != 0) return kBadFrames;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (!p.q || !p.q_weight || !p.k || !p.v || !p.out) return kNullAddress;
  return kOk;
}

constexpr int kMaxRingHeadDim = 256;  // of sink_ring_attention_cpu: its tiles lie on the stack

// out = softmax(scale q K[:n_valid]^T) V[:n_valid] of each lane, over the valid slots of its row.
struct SinkRingAttentionParams {
  const void* q;              // [B, N, H, D] dtype, contiguous, rotated
  const void* k_cache;        // [rows, rings, slots, H, D] dtype, last three dims contiguous
  const void* v_cache;        // the same shape and strides as k_cache
  void* out;                  // [B, N, H, D] dtype, contiguous
  float* lse;                 // [B, H, N], contiguous, or null
  const int32_t* row_index;   // [B] in [0, rows)
  const int32_t* ring_index;  // [B] in [0, rings)
  const int32_t* n_valid;     // [B] in [1, slots]
  int64_t batch;              // B
  int64_t tokens;             // N
  int64_t heads;              // H
  int64_t head_dim;           // D
  int64_t rows;
  int64_t rings;
  int64_t slots;
  int64_t row_stride;    // of k_cache and v_cache
  int64_t ring_stride;   // of k_cache and v_cache
  int64_t vector_lanes;  // 0: as wide as the machine has; 4, 8, 16: that version, for tests
  DType dtype;
  float scale;
};

inline int check_sizes(const SinkRingAttentionParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  if (dtype < 0 || dtype > 2) return kBadDType;
  const bool negative = p.batch < 0 || p.tokens < 0 || p.rows < 0 || p.rings < 0 || p.slots < 0;
  if (negative || p.heads <= 0 || p.head_dim <= 0) return kBadShape;
  if (p.head_dim > kMaxRingHeadDim) return kBadShape;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (!p.q || !p.k_cache || !p.v_cache || !p.out) return kNullAddress;
  if (!p.row_index || !p.ring_index || !p.n_valid) return kNullAddress;
  return kOk;
}

// Guidance and Euler update, z <- z + dt (v_uncond + guidance (v_cond - v_uncond)).
struct CfgEulerStepParams {
  void* z;                // [S, numel] dtype
  const void* v_cond;     // [S, numel] velocity_dtype
  const void* v_uncond;   // [S, numel] velocity_dtype
  const float* guidance;  // [S]
  const float* dt;        // [S]
  int64_t sessions;       // S
  int64_t numel;
  DType dtype;
  DType velocity_dtype;
};

inline int check_sizes(const CfgEulerStepParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  const int velocity = static_cast<int>(p.velocity_dtype);
  if (dtype < 0 || dtype > 2 || velocity < 0 || velocity > 2) return kBadDType;
  if (p.sessions < 0 || p.numel < 0) return kBadShape;
  if (p.sessions == 0 || p.numel == 0) return kOk;
  if (!p.z || !p.v_cond || !p.v_uncond || !p.guidance || !p.dt) return kNullAddress;
  return kOk;
}

// Steps in memory of a tensor [B, C, T, H, W].
struct VolumeStrides {
  int64_t batch;
  int64_t channel;
  int64_t frame;
  int64_t row;
  int64_t column;
};

// RMS norm over the channels of each pixel, scale and shift, SiLU.
struct PixelNormSiluParams {
  const void* x;      // [B, C, T, H, W] dtype, any strides
  const void* scale;  // [C] dtype, or null: as if zero
  const void* shift;  // [C] dtype, or null: as if zero
  void* out;          // [B, C, T, H, W] dtype, any strides without overlap; apart from x
  int64_t batch;
  int64_t channels;
  int64_t frames;
  int64_t height;
  int64_t width;
  VolumeStrides x_strides;
  VolumeStrides out_strides;
  DType dtype;
  float eps;
};

// Channels (c, p1, p2, p3), c slowest, into frames, rows and columns; `drop` frames are left out.
struct DepthToSpaceParams {
  const void* x;     // [B, C p1 p2 p3, T, H, W] of any element, any strides
  void* out;         // [B, C, T p1 - drop, H p2, W p3], any strides without overlap; apart from x
  int64_t batch;     // B, and so on: the sizes of x, but for
  int64_t channels;  // C, those of out
  int64_t frames;
  int64_t height;
  int64_t width;
  int64_t factor_t;  // p1
  int64_t factor_h;  // p2
  int64_t factor_w;  // p3
  int64_t drop;      // 0 .. T p1 - 1
  VolumeStrides x_strides;
  VolumeStrides out_strides;
  int64_t element_size;  // bytes: 1, 2, 4 or 8
};

// Decoder output, about -1..1, to bytes.
struct FramesToUint8Params {
  const void* x;  // [B, 3, T, H, W] dtype, any strides
  uint8_t* out;   // [B, T, H, W, 3], contiguous
  int64_t batch;
  int64_t frames;
  int64_t height;
  int64_t width;
  VolumeStrides x_strides;
  DType dtype;
};

constexpr int kMaxConvChannels = 8192;  // of conv_epilogue_cpu: a pixel lies on the stack

// What follows a convolution: noise, residual, channels into frames, rows and columns; then the sum
// itself, its norm with SiLU, or bytes. Channels are innermost everywhere (stride 1).
struct ConvEpilogueParams {
  const void* conv;         // [B, C p1 p2 p3, T, H, W] dtype
  const void* noise;        // [B, H, W] dtype, contiguous, or null
  const void* noise_scale;  // [C p1 p2 p3] dtype, beside noise
  const void* residual;     // [B, residual_channels, T, H, W] dtype, tiled over channels, or null
  const void* scale;        // [C] dtype, or null: as if zero
  const void* shift;        // [C] dtype, or null: as if zero
  void* out;          // [B, C, T p1 - drop, H p2, W p3] dtype, or null; may be the residual itself
  void* normed;       // the same shape, or null
  uint8_t* pictures;  // [B, T p1 - drop, H p2, W p3, 3], contiguous, C = 3; or null
  int64_t batch;      // B, and so on: the sizes of conv, but for
  int64_t channels;   // C, those of out
  int64_t residual_channels;  // divides C p1 p2 p3
  int64_t frames;
  int64_t height;
  int64_t width;
  int64_t factor_t;  // p1
  int64_t factor_h;  // p2
  int64_t factor_w;  // p3
  int64_t drop;      // 0 .. T p1 - 1
  VolumeStrides conv_strides;
  VolumeStrides residual_strides;
  VolumeStrides out_strides;
  VolumeStrides normed_strides;
  DType dtype;
  float eps;
};

inline int check_sizes(const ConvEpilogueParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  if (dtype < 0 || dtype > 2) return kBadDType;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  if (negative || p.channels < 0) return kBadShape;
  if (p.factor_t < 1 || p.factor_h < 1 || p.factor_w < 1) return kBadFactors;
  if (p.drop < 0 || p.drop >= p.frames * p.factor_t) return kBadFactors;
  const int64_t channels = p.channels * p.factor_t * p.factor_h * p.factor_w;
  if (channels > kMaxConvChannels || (p.pictures && p.channels != 3)) return kBadShape;
  if (p.residual && (p.residual_channels < 1 || channels % p.residual_channels)) return kBadShape;
  if (p.batch * p.height * p.width * channels == 0) return kOk;
  if (!p.conv || (p.noise && !p.noise_scale)) return kNullAddress;
  const auto innermost = [](const void* tensor, const VolumeStrides& strides) {
    return tensor == nullptr || strides.channel == 1;
  };
  const bool read = innermost(p.conv, p.conv_strides) && innermost(p.residual, p.residual_strides);
  const bool written = innermost(p.out, p.out_strides) && innermost(p.normed, p.normed_strides);
  return read && written ? kOk : kBadLayout;
}

inline int check_sizes(const PixelNormSiluParams& p) {
  const int dtype = static_cast<int>(p.dtype);
  if (dtype < 0 || dtype > 2) return kBadDType;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  return negative || p.channels < 0 ? kBadShape : kOk;
}

inline int check_sizes(const DepthToSpaceParams& p) {
  const int64_t size = p.element_size;
  if (size != 1 && size != 2 && size != 4 && size != 8) return kBadElementSize;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  if (negative || p.channels < 0) return kBadShape;
  if (p.factor_t < 1 || p.factor_h < 1 || p.factor_w < 1) return kBadFactors;
  return p.drop < 0 || p.drop >= p.frames * p.factor_t ? kBadFactors : kOk;
}

inline int check_sizes(const FramesToUint8Params& p) {
  const int dtype = static_cast<int>(p.dtype);
  if (dtype < 0 || dtype > 2) return kBadDType;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  return negative ? kBadShape : kOk;
}

// csrc/cpu: every pointer in host memory; nothing is written when an error comes back.
int pixel_norm_silu_cpu(const PixelNormSiluParams& p);
int depth_to_space_cpu(const DepthToSpaceParams& p);
int frames_to_uint8_cpu(const FramesToUint8Params& p);
int conv_epilogue_cpu(const ConvEpilogueParams& p);

// csrc/cpu: every pointer in host memory. Checks the index ranges before it writes anything.
int qk_norm_rope_cache_cpu(const QkNormRopeCacheParams& p);
int rotate_context_cpu(const RotateContextParams& p);
int gate_norm_modulate_cpu(const GateNormModulateParams& p);
int sink_ring_attention_cpu(const SinkRingAttentionParams& p);
int frame_cross_attention_cpu(const FrameCrossAttentionParams& p);
int cfg_euler_step_cpu(const CfgEulerStepParams& p);

// csrc/cuda: every pointer in the memory of `device`. The caller has checked the index ranges on
// its own copy; device code does not trap. `stream` is a cudaStream_t.
int qk_norm_rope_cache_cuda(const QkNormRopeCacheParams& p, void* stream, int device);

}  // namespace rest_fast
