#pragma once

#include "../core.h"

namespace rest_fast {

constexpr int kMaxRingHeadDim = 256;  // of sink_ring_attention_cpu: its tiles lie on the stack

// out = softmax(scale q K[:n_valid]^T) V[:n_valid] of each lane, over the valid slots of its row.
struct SinkRingAttentionParams {
  const void* q;              // [B, N, H, D] dtype, contiguous, rotated
  const void* k_cache;        // [rows, banks, slots, H, D] dtype, last three dims contiguous
  const void* v_cache;        // the same shape and strides as k_cache
  void* out;                  // [B, N, H, D] dtype, contiguous
  float* lse;                 // [B, H, N], contiguous, or null
  const int32_t* row_index;   // [B] in [0, rows) or kIdle
  const int32_t* bank_index;  // [B] in [0, banks)
  const int32_t* n_valid;     // [B] in [1, slots]
  int64_t batch;              // B
  int64_t tokens;             // N
  int64_t heads;              // H
  int64_t head_dim;           // D
  int64_t rows;
  int64_t banks;
  int64_t slots;
  int64_t row_stride;   // of k_cache and v_cache
  int64_t bank_stride;  // of k_cache and v_cache
  int64_t
      vector_width;  // of a CPU; 0: as wide as the machine has; 4, 8, 16: that version, for tests
  DType dtype;
  float scale;
};

inline int check_sizes(const SinkRingAttentionParams& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool negative = p.batch < 0 || p.tokens < 0 || p.rows < 0 || p.banks < 0 || p.slots < 0;
  if (negative || p.heads <= 0 || p.head_dim <= 0) return kBadShape;
  if (p.head_dim > kMaxRingHeadDim) return kBadShape;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (!p.q || !p.k_cache || !p.v_cache || !p.out) return kNullAddress;
  if (!p.row_index || !p.bank_index || !p.n_valid) return kNullAddress;
  return kOk;
}

// In the order of the call.
inline auto arguments(const SinkRingAttentionParams*) {
  return std::make_tuple(REST_FAST_FIELD(q), REST_FAST_FIELD(k_cache), REST_FAST_FIELD(v_cache),
                         REST_FAST_FIELD(out), REST_FAST_FIELD(lse), REST_FAST_FIELD(row_index),
                         REST_FAST_FIELD(bank_index), REST_FAST_FIELD(n_valid),
                         REST_FAST_FIELD(batch), REST_FAST_FIELD(tokens), REST_FAST_FIELD(heads),
                         REST_FAST_FIELD(head_dim), REST_FAST_FIELD(rows), REST_FAST_FIELD(banks),
                         REST_FAST_FIELD(slots), REST_FAST_FIELD(row_stride),
                         REST_FAST_FIELD(bank_stride), REST_FAST_FIELD(vector_width),
                         REST_FAST_FIELD(scale), REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int sink_ring_attention_cpu(const SinkRingAttentionParams& p);

// csrc/cuda: every pointer in the memory of `device`; `stream` is a cudaStream_t. bfloat16 and
// half, heads of 64 or 128. A lane with an index out of range stays as it is.
int sink_ring_attention_cuda(const SinkRingAttentionParams& p, void* stream, int device);

}  // namespace rest_fast
