#pragma once

#include "../core.h"

namespace rest_fast {

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
  int64_t vector_width;  // 0: as wide as the machine has; 4, 8, 16: that version, for tests
  DType dtype;
  float eps;
};

inline int check_sizes(const FrameCrossAttentionParams& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool empty = p.audio <= 0 || p.heads <= 0 || p.head_dim <= 0;
  if (p.batch < 0 || p.tokens < 0 || empty || p.head_dim > kMaxHeadDim) return kBadShape;
  if (p.kv_batch != p.batch && p.kv_batch != 1) return kBadShape;
  if (p.frames <= 0 || p.tokens % p.frames != 0) return kBadFrames;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (!p.q || !p.q_weight || !p.k || !p.v || !p.out) return kNullAddress;
  return kOk;
}

// In the order of the call.
inline auto arguments(const FrameCrossAttentionParams*) {
  return std::make_tuple(REST_FAST_FIELD(q), REST_FAST_FIELD(q_weight), REST_FAST_FIELD(k),
                         REST_FAST_FIELD(v), REST_FAST_FIELD(out), REST_FAST_FIELD(batch),
                         REST_FAST_FIELD(kv_batch), REST_FAST_FIELD(tokens),
                         REST_FAST_FIELD(frames), REST_FAST_FIELD(audio), REST_FAST_FIELD(heads),
                         REST_FAST_FIELD(head_dim), REST_FAST_FIELD(vector_width),
                         REST_FAST_FIELD(eps), REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int frame_cross_attention_cpu(const FrameCrossAttentionParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int frame_cross_attention_cuda(const FrameCrossAttentionParams& p, void* stream, int device);

}  // namespace rest_fast
