#pragma once

#include "../core.h"

namespace rest_fast {

// out = x W^T + bias, and a GELU of that (tanh form) where asked for.
struct LinearParams {
  const float* x;        // [rows, inputs]
  const float* columns;  // [ceil(outputs / 16), inputs, 16]: W, with zeros behind its last row
  const float* bias;     // [outputs], or null
  float* out;            // [rows, outputs], no other tensor's memory
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  int64_t gelu;          // 1 or 0
  int64_t vector_width;  // of a CPU; 0: as wide as the machine has; 4, 8, 16: that version
};

inline int check_sizes(const LinearParams& p) {
  if (p.rows < 0 || p.inputs < 0 || p.outputs < 0) return kBadShape;
  if (p.rows == 0 || p.outputs == 0) return kOk;
  if (p.inputs > 0 && (!p.x || !p.columns)) return kNullAddress;
  return p.out ? kOk : kNullAddress;
}

// In the order of the call.
inline auto arguments(const LinearParams*) {
  return std::make_tuple(REST_FAST_FIELD(x), REST_FAST_FIELD(columns), REST_FAST_FIELD(bias),
                         REST_FAST_FIELD(out), REST_FAST_FIELD(rows), REST_FAST_FIELD(inputs),
                         REST_FAST_FIELD(outputs), REST_FAST_FIELD(gelu),
                         REST_FAST_FIELD(vector_width));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int linear_cpu(const LinearParams& p);

}  // namespace rest_fast
