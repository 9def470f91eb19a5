#pragma once

#include "../core.h"

namespace rest_fast {

constexpr int kMaxRank = 512;  // heads x others: tiles on the stack, or in shared memory

// x += base_i + sum over a and h of share[a, h] update_i[a, h]: token j of N hears frame
// i = j / (N / F) of its lane's slot. The shares are the softmax over scores 0 and rms_norm(q)
// keys_i[a], a = 1 .. others, of a head. Lanes with slot -1, and those beyond C, add null.
struct FrameAudioUpdateParams {
  void* x;              // [B, N, W] dtype, contiguous
  const void* q;        // [C, N, heads x head_dim] dtype, contiguous, before its norm; C <= B
  const void* keys;     // [S, F, others, heads, head_dim] dtype, contiguous
  const void* base;     // [S, F, W] dtype, contiguous
  const void* update;   // [S, F, others, heads, W] dtype, contiguous
  const void* null;     // [W] dtype, contiguous
  const int32_t* slot;  // [C] in [-1, S)
  int64_t batch;        // B
  int64_t tokens;       // N
  int64_t width;        // W
  int64_t hearing;      // C
  int64_t slots;        // S
  int64_t frames;       // F
  int64_t others;       // A - 1: audio tokens of a frame but for the first
  int64_t heads;
  int64_t head_dim;
  int64_t
      vector_width;  // of a CPU; 0: as wide as the machine has; 4, 8, 16: that version, for tests
  DType dtype;
  float eps;
};

inline int check_sizes(const FrameAudioUpdateParams& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool empty = p.others <= 0 || p.heads <= 0 || p.head_dim <= 0 || p.width <= 0;
  if (p.batch < 0 || p.tokens < 0 || p.slots < 0 || empty) return kBadShape;
  if (p.hearing < 0 || p.hearing > p.batch || p.others > kMaxRank / p.heads) return kBadShape;
  if (p.frames <= 0 || p.tokens % p.frames != 0) return kBadFrames;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (!p.x || !p.null) return kNullAddress;
  if (p.hearing == 0) return kOk;
  if (!p.q || !p.keys || !p.base || !p.update || !p.slot) return kNullAddress;
  return kOk;
}

// In the order of the call.
inline auto arguments(const FrameAudioUpdateParams*) {
  return std::make_tuple(REST_FAST_FIELD(x), REST_FAST_FIELD(q), REST_FAST_FIELD(keys),
                         REST_FAST_FIELD(base), REST_FAST_FIELD(update), REST_FAST_FIELD(null),
                         REST_FAST_FIELD(slot), REST_FAST_FIELD(batch), REST_FAST_FIELD(tokens),
                         REST_FAST_FIELD(width), REST_FAST_FIELD(hearing), REST_FAST_FIELD(slots),
                         REST_FAST_FIELD(frames), REST_FAST_FIELD(others), REST_FAST_FIELD(heads),
                         REST_FAST_FIELD(head_dim), REST_FAST_FIELD(vector_width),
                         REST_FAST_FIELD(eps), REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int frame_audio_update_cpu(const FrameAudioUpdateParams& p);

// csrc/cuda: every pointer in the memory of `device`; `stream` is a cudaStream_t. A lane whose slot
// is out of range stays as it is.
int frame_audio_update_cuda(const FrameAudioUpdateParams& p, void* stream, int device);

}  // namespace rest_fast
