// What stands between two branches of a block, in one pass over the residual stream:
//
//   x <- x + gate branch,   out = x / sqrt(mean(x^2) + eps) (1 + scale) + shift
//
// or the same of x - mean(x), with 1 + scale or (affine) scale itself.
//
// Layout: ops/gate_norm_modulate.h. Why it exists: each row is read once from memory and written
// once, where eager PyTorch runs eight kernels over it. A row is added up twice (three times where
// its mean is needed), again from the nearest cache, so that the unrounded sum needs no buffer.
#include "../ops/gate_norm_modulate.h"

#include "common.h"

namespace rest_fast {
namespace {

enum class Sum { kStream, kPlain, kGated };  // x, x + branch, x + gate branch

template <class T>
struct Row {
  T* x;
  const T* branch;
  const T* gate;
  const T* scale;
  const T* shift;
  T* out;
};

// What eager PyTorch would have stored here; with fused rounding, nothing happens.
template <class T, bool kEager>
REST_FAST_INLINE float stored(float value) {
  if constexpr (kEager) {
    T rounded;
    round_to(value, rounded);
    return to_float(rounded);
  } else {
    return value;
  }
}

template <class T, bool kEager, Sum kSum>
REST_FAST_INLINE float sum_at(const Row<T>& row, int64_t i) {
  const float x = to_float(row.x[i]);
  if constexpr (kSum == Sum::kStream) return x;
  if constexpr (kSum == Sum::kPlain) return stored<T, kEager>(x + to_float(row.branch[i]));
  const float product = stored<T, kEager>(to_float(row.branch[i]) * to_float(row.gate[i]));
  return stored<T, kEager>(x + product);
}

// Of f of the row's sums, which are computed on the way; as sum_of_squares in common.h and in its
// order.
template <class T, bool kEager, Sum kSum, class F>
REST_FAST_INLINE float total(const Row<T>& row, int64_t width, F f) {
  constexpr int kPartials = 32;
  float partial[kPartials] = {};
  int64_t i = 0;
  for (; i + kPartials <= width; i += kPartials) {
    for (int j = 0; j < kPartials; ++j) partial[j] += f(sum_at<T, kEager, kSum>(row, i + j));
  }
  for (int j = 0; i < width; ++i, ++j) partial[j] += f(sum_at<T, kEager, kSum>(row, i));
  for (int half = kPartials / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) partial[j] += partial[j + half];
  }
  return partial[0];
}

template <class T, bool kEager, Sum kSum>
REST_FAST_INLINE void add(const Row<T>& row, int64_t width) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; ++i) round_to(sum_at<T, kEager, kSum>(row, i), row.x[i]);
}

template <class T, bool kEager, Sum kSum>
REST_FAST_INLINE void add_norm_modulate(const Row<T>& row, int64_t width, Norm norm, float eps) {
  const float count = static_cast<float>(width);
  float mean = 0.0f;  // that is taken away; for kRms nothing
  if (norm != Norm::kRms) {
    mean = total<T, kEager, kSum>(row, width, [](float v) { return v; }) / count;
  }
  const auto square = [mean](float v) { return (v - mean) * (v - mean); };
  const float root = 1.0f / std::sqrt(total<T, kEager, kSum>(row, width, square) / count + eps);
  const float one = norm == Norm::kAffine ? 0.0f : 1.0f;
#pragma GCC ivdep
  for (int64_t i = 0; i < width; ++i) {
    const float sum = sum_at<T, kEager, kSum>(row, i);
    const float factor = stored<T, kEager>(one + to_float(row.scale[i]));
    if constexpr (kSum != Sum::kStream) round_to(sum, row.x[i]);
    round_to((sum - mean) * root * factor + to_float(row.shift[i]), row.out[i]);
  }
}

// Rows [begin, end) of B x N.
template <class T, bool kEager, Sum kSum>
REST_FAST_INLINE void run_rows(const GateNormModulateParams& p, int64_t begin, int64_t end) {
  const auto at = [](const Vectors& v, int64_t lane, int64_t frame) {
    return static_cast<const T*>(v.data) + lane * v.lane_stride + frame * v.frame_stride;
  };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t lane = item / p.tokens;
    const int64_t token = item % p.tokens;
    Row<T> row{};
    row.x = static_cast<T*>(p.x) + item * p.width;
    if constexpr (kSum != Sum::kStream) {
      row.branch = static_cast<const T*>(p.branch) + item * p.width;
    }
    if constexpr (kSum == Sum::kGated) {
      row.gate = at(p.gate, lane, token / (p.tokens / p.gate_frames));
    }
    if (p.out == nullptr) {
      if constexpr (kSum != Sum::kStream) add<T, kEager, kSum>(row, p.width);
      continue;
    }
    const int64_t frame = token / (p.tokens / p.norm_frames);
    row.scale = at(p.scale, lane, frame);
    row.shift = at(p.shift, lane, frame);
    row.out = static_cast<T*>(p.out) + item * p.width;
    add_norm_modulate<T, kEager, kSum>(row, p.width, p.norm, p.eps);
  }
}

template <class T, bool kEager>
REST_FAST_INLINE void run_rounded(const GateNormModulateParams& p, int64_t begin, int64_t end) {
  if (p.branch == nullptr) return run_rows<T, kEager, Sum::kStream>(p, begin, end);
  if (p.gate.data == nullptr) return run_rows<T, kEager, Sum::kPlain>(p, begin, end);
  run_rows<T, kEager, Sum::kGated>(p, begin, end);
}

// Rounding to fp32 does nothing, so that both modes are one there.
template <class T>
REST_FAST_INLINE void run_range(const GateNormModulateParams& p, int64_t begin, int64_t end) {
  if constexpr (sizeof(T) < sizeof(float)) {
    if (p.rounding == Rounding::kEager) return run_rounded<T, true>(p, begin, end);
  }
  run_rounded<T, false>(p, begin, end);
}

// GCC does not multi-version templates, hence a plain function around them.
REST_FAST_MULTI_ISA void run(const GateNormModulateParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto zero) REST_FAST_INLINED { run_range<decltype(zero)>(p, begin, end); });
}

}  // namespace

int gate_norm_modulate_cpu(const GateNormModulateParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t items = p.batch * p.tokens;
  if (items == 0 || p.width == 0) return kOk;

  in_parallel(items, items * p.width, [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
