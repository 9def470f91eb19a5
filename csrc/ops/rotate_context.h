#pragma once

#include "../core.h"

namespace rest_fast {

// At commit: the time pairs of the keys in slots [sink, slots), but for the `chunk` slots from
// skip_slot on, turn by one fixed angle a frequency. W = heads x head_dim, n = W / 6; of a key's
// W / 2 pairs these are pair W / 2 - 3 n and every third one after it.
struct RotateContextParams {
  void* k_cache;             // [layers, rows, banks, slots, W] dtype, contiguous
  const float* shift;        // [n, 2] (cos, sin)
  const int32_t* row_index;  // [B] in [0, rows), different for enabled lanes, or kIdle
  const int32_t* skip_slot;  // [B] in [sink, slots - chunk]
  const int32_t* enabled;    // [B], 0: the lane stays as it is
  int64_t batch;             // B
  int64_t layers;
  int64_t rows;
  int64_t banks;
  int64_t slots;
  int64_t width;  // W, even
  int64_t sink;
  int64_t chunk;
  DType dtype;
};

inline int check_sizes(const RotateContextParams& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool negative = p.batch < 0 || p.layers < 0 || p.rows < 0 || p.banks < 0;
  if (negative || p.slots <= 0 || p.width <= 0 || p.width % 2 != 0) return kBadShape;
  if (p.sink < 0 || p.chunk < 1 || p.sink > p.slots - p.chunk) return kSkipOutOfRange;
  if (p.batch == 0 || p.layers == 0 || p.banks == 0) return kOk;  // and then no address is needed
  if (p.width >= 6 && !p.shift) return kNullAddress;
  if (!p.k_cache || !p.row_index || !p.skip_slot || !p.enabled) return kNullAddress;
  return kOk;
}

// In the order of the call.
inline auto arguments(const RotateContextParams*) {
  return std::make_tuple(REST_FAST_FIELD(k_cache), REST_FAST_FIELD(shift),
                         REST_FAST_FIELD(row_index), REST_FAST_FIELD(skip_slot),
                         REST_FAST_FIELD(enabled), REST_FAST_FIELD(batch), REST_FAST_FIELD(layers),
                         REST_FAST_FIELD(rows), REST_FAST_FIELD(banks), REST_FAST_FIELD(slots),
                         REST_FAST_FIELD(width), REST_FAST_FIELD(sink), REST_FAST_FIELD(chunk),
                         REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int rotate_context_cpu(const RotateContextParams& p);

// csrc/cuda: every pointer in the memory of `device`, whose index ranges the caller has checked; a
// lane that is idle, not enabled or out of range writes nothing. `stream` is a cudaStream_t.
int rotate_context_cuda(const RotateContextParams& p, void* stream, int device);

}  // namespace rest_fast
