// Channels into frames, rows and columns, without computing anything.
//
//   out[b, c, t p1 + i - drop, y p2 + j, z p3 + k] = x[b, ((c p1 + i) p2 + j) p3 + k, t, y, z]
//
// Layout: ops/depth_to_space.h. Why it exists: one pass with sequential writes, where a permuting
// copy goes element by element. The unit of work is a row of input, for one channel of output or,
// where channels are innermost there, for all.
#include "../ops/depth_to_space.h"

#include <utility>

#include "volume.h"

namespace rest_fast {
namespace {

// Groups of p3 numbers: group z comes from x[z * column + k * channel], k = 0 .. p3 - 1.
struct Row {
  int64_t width;    // groups
  int64_t factor;   // p3
  int64_t channel;  // steps in x
  int64_t column;
  int64_t step;  // in out
};

template <class T, int64_t kFactor>
REST_FAST_INLINE void interleave(const T* __restrict x, const Row& row, T* __restrict out) {
  for (int64_t z = 0; z < row.width; ++z) {
    for (int64_t k = 0; k < kFactor; ++k) out[z * kFactor + k] = x[k * row.channel + z];
  }
}

template <class T>
REST_FAST_INLINE void move_row(const T* __restrict x, const Row& row, T* __restrict out) {
  const bool planes = row.step == 1 && row.column == 1;
  if (planes && row.factor == 1) return void(std::memcpy(out, x, row.width * sizeof(T)));
  if (planes && row.factor == 2) return interleave<T, 2>(x, row, out);
  if (planes && row.factor == 4) return interleave<T, 4>(x, row, out);
  const bool groups = row.step == 1 && row.channel == 1;
  for (int64_t z = 0; z < row.width; ++z) {
    const T* from = x + z * row.column;
    T* to = out + z * row.factor * row.step;
    if (groups) {
      std::memcpy(to, from, row.factor * sizeof(T));
    } else {
      for (int64_t k = 0; k < row.factor; ++k) to[k * row.step] = from[k * row.channel];
    }
  }
}

// Output row (b, frame, line) with all its channels, channels innermost.
template <class T>
REST_FAST_INLINE void move_pixels(const T* __restrict x, const Row& row, int64_t channels,
                                  int64_t cell, T* __restrict out) {
  for (int64_t z = 0; z < row.width; ++z) {
    for (int64_t k = 0; k < row.factor; ++k) {
      const T* from = x + z * row.column + k * row.channel;
      T* to = out + (z * row.factor + k) * row.step;
      for (int64_t c = 0; c < channels; ++c) to[c] = from[c * cell];
    }
  }
}

// The sizes, and the steps in x from one row, or column, of a cell to the next.
struct Plan {
  DepthToSpaceParams p;
  int64_t step_h;
  int64_t step_w;
};

// Rows and columns change places where that makes columns the closer neighbours in `out`.
Plan plan_of(const DepthToSpaceParams& p) {
  Plan plan{p, p.factor_w * p.x_strides.channel, p.x_strides.channel};
  if (p.out_strides.column <= p.out_strides.row) return plan;
  std::swap(plan.p.height, plan.p.width);
  std::swap(plan.p.factor_h, plan.p.factor_w);
  std::swap(plan.p.x_strides.row, plan.p.x_strides.column);
  std::swap(plan.p.out_strides.row, plan.p.out_strides.column);
  std::swap(plan.step_h, plan.step_w);
  return plan;
}

bool channels_last(const DepthToSpaceParams& p) {
  return p.out_strides.channel == 1 && p.out_strides.column != 1;
}

template <class T>
REST_FAST_INLINE void run_range(const Plan& plan, int64_t begin, int64_t end) {
  const DepthToSpaceParams& p = plan.p;
  const VolumeStrides& in = p.x_strides;
  const VolumeStrides& to = p.out_strides;
  const bool all_channels = channels_last(p);
  const int64_t cell = p.factor_t * p.factor_h * p.factor_w;
  const int64_t frames = p.frames * p.factor_t - p.drop;
  const int64_t channels = all_channels ? 1 : p.channels;
  const Row row{p.width, p.factor_w, plan.step_w, in.column, to.column};

  for (int64_t item = begin; item < end; ++item) {
    const int64_t y = item % p.height;
    const int64_t frame = item / p.height % frames;
    const int64_t c = item / (p.height * frames) % channels;
    const int64_t b = item / (p.height * frames * channels);
    const int64_t source = frame + p.drop;
    const int64_t depth = c * cell + source % p.factor_t * p.factor_h * p.factor_w;
    const T* x = static_cast<const T*>(p.x) + b * in.batch + depth * in.channel +
                 source / p.factor_t * in.frame + y * in.row;
    T* out = static_cast<T*>(p.out) + b * to.batch + c * to.channel + frame * to.frame +
             y * p.factor_h * to.row;
    for (int64_t j = 0; j < p.factor_h; ++j) {
      if (all_channels) {
        move_pixels(x, row, p.channels, cell * in.channel, out);
      } else {
        move_row(x, row, out);
      }
      x += plan.step_h;
      out += to.row;
    }
  }
}

// GCC does not multi-version templates, hence one plain function per element size.
REST_FAST_MULTI_ISA void run_1(const Plan& plan, int64_t begin, int64_t end) {
  run_range<uint8_t>(plan, begin, end);
}
REST_FAST_MULTI_ISA void run_2(const Plan& plan, int64_t begin, int64_t end) {
  run_range<uint16_t>(plan, begin, end);
}
REST_FAST_MULTI_ISA void run_4(const Plan& plan, int64_t begin, int64_t end) {
  run_range<uint32_t>(plan, begin, end);
}
REST_FAST_MULTI_ISA void run_8(const Plan& plan, int64_t begin, int64_t end) {
  run_range<uint64_t>(plan, begin, end);
}

}  // namespace

int depth_to_space_cpu(const DepthToSpaceParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t frames = p.frames * p.factor_t - p.drop;
  const int64_t pixels = p.batch * frames * p.height * p.width;
  if (pixels * p.channels == 0) return kOk;
  if (p.x == nullptr || p.out == nullptr) return kNullAddress;
  const auto run = p.element_size == 1   ? &run_1
                   : p.element_size == 2 ? &run_2
                   : p.element_size == 4 ? &run_4
                                         : &run_8;
  const Plan plan = plan_of(p);
  const int64_t items = p.batch * frames * plan.p.height * (channels_last(plan.p) ? 1 : p.channels);
  in_parallel(items, pixels * p.channels * p.factor_h * p.factor_w,
              [&](int64_t begin, int64_t end) { run(plan, begin, end); });
  return kOk;
}

}  // namespace rest_fast
