// Frames of the motion VAE: a photo moved by a flow and painted over, as bytes, in one pass.
//
// Layout: ops/move_and_paint.h. A block makes one row of a frame. A row of an enlarged map lies
// between two rows of the small one: the block blends those once, into shared memory, channels
// together. A thread then makes every blockDim-th pixel: a vector of each end of a cell from shared
// memory, and four pixels of the photo a colour. The bytes meet in shared memory, from where they
// leave as words. Limit: the rows of all maps and of bytes fit into kMostShared.
#include "../ops/move_and_paint.h"
#include "launch.h"
#include "pixel.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kColours = 3;
constexpr int64_t kMostShared = 48 * 1024;  // bytes; CUDA_SHARED of move_and_paint.py

using Flow = Vector<float, 2>;   // x, y
using Paint = Vector<float, 4>;  // share, red, green, blue

__device__ __forceinline__ float blend(float first, float second, float share) {
  return first * (1.0f - share) + second * share;
}

// Between which two cells of a small map a place of the enlarged one lies, and where there.
struct Between {
  int first, second;
  float share;  // of the second
};

struct Enlarged {
  int last;     // cell
  float scale;  // cells a place

  __device__ __forceinline__ Enlarged(int64_t cells, int64_t places)
      : last(static_cast<int>(cells) - 1),
        scale(static_cast<float>(cells) / static_cast<float>(places)) {}

  __device__ __forceinline__ Between at(int place) const {
    const float cell = fmaxf((static_cast<float>(place) + 0.5f) * scale - 0.5f, 0.0f);
    const int first = min(static_cast<int>(cell), last);
    return {first, min(first + 1, last), cell - static_cast<float>(first)};
  }
};

// Row y of a map [kChannels, rows, columns] that is enlarged to `height` rows: [columns].
template <int kChannels>
__device__ __forceinline__ void blend_rows(Vector<float, kChannels>* row, const float* map,
                                           int64_t rows, int64_t columns, int y, int64_t height) {
  const Between at = Enlarged(rows, height).at(y);
  for (int x = static_cast<int>(threadIdx.x); x < columns; x += kThreads) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float* column = map + c * rows * columns + x;
      row[x].at[c] = blend(column[at.first * columns], column[at.second * columns], at.share);
    }
  }
}

template <int kChannels>
__device__ __forceinline__ Vector<float, kChannels> read(const Vector<float, kChannels>* row,
                                                         const Between& at) {
  const Vector<float, kChannels> first = row[at.first], second = row[at.second];
  Vector<float, kChannels> out;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) out.at[c] = blend(first.at[c], second.at[c], at.share);
  return out;
}

// How much a line of the window's pixels counts, at place i of n.
__device__ __forceinline__ float fade(int i, int64_t n, int64_t width) {
  const int depth = min(i, static_cast<int>(n) - 1 - i);
  return fminf(static_cast<float>(depth) / static_cast<float>(width), 1.0f);
}

// The photo [3, H, W] read bilinearly at a place that may lie outside, where the border goes on.
// fmaxf of NaN and 0 is 0, so that whatever a flow is, what is read lies in the photo.
struct Sample {
  int64_t corner;
  float right, below;

  __device__ __forceinline__ Sample(const MoveAndPaintParams& p, float x, float y) {
    x = fminf(fmaxf(x, 0.0f), static_cast<float>(p.width - 1));
    y = fminf(fmaxf(y, 0.0f), static_cast<float>(p.height - 1));
    const int left = min(static_cast<int>(x), static_cast<int>(p.width) - 2);
    const int top = min(static_cast<int>(y), static_cast<int>(p.height) - 2);
    corner = top * p.width + left;
    right = x - static_cast<float>(left);
    below = y - static_cast<float>(top);
  }

  __device__ __forceinline__ float of(const float* plane, int64_t width) const {
    const float *above = plane + corner, *under = above + width;
    return blend(blend(above[0], above[1], right), blend(under[0], under[1], right), below);
  }
};

__device__ __forceinline__ void lay_over(float (&colour)[kColours], const Paint& paint,
                                         float share) {
#pragma unroll
  for (int c = 0; c < kColours; ++c) {
    colour[c] += share * (paint.at[c + 1] - colour[c] * paint.at[0]);
  }
}

// The rows of a block: a pointer each into its dynamic shared memory.
struct Rows {
  Paint *paint, *inner_paint;  // [w], [2 w']
  Flow *flow, *inner_flow;     // [w], [w']
  uint8_t* bytes;              // [3 W]

  __device__ __forceinline__ Rows(unsigned char* memory, const MoveAndPaintParams& p)
      : paint(reinterpret_cast<Paint*>(memory)),
        inner_paint(paint + p.map_columns),
        flow(reinterpret_cast<Flow*>(inner_paint + 2 * p.inner_columns)),
        inner_flow(flow + p.map_columns),
        bytes(reinterpret_cast<uint8_t*>(inner_flow + p.inner_columns)) {}
};

int64_t shared_bytes(const MoveAndPaintParams& p) {
  constexpr int64_t kPaint = sizeof(Paint), kFlow = sizeof(Flow);
  return p.map_columns * (kPaint + kFlow) + p.inner_columns * (2 * kPaint + kFlow) +
         kColours * p.width;
}

// Row y of a frame's maps, those of the window where it crosses the row.
__device__ __forceinline__ void blend_maps(const MoveAndPaintParams& p, const Rows& to,
                                           int64_t frame, int y, int inner_y) {
  const int64_t rows = p.map_rows, columns = p.map_columns, cells = rows * columns;
  blend_rows<2>(to.flow, p.flow + 2 * frame * cells, rows, columns, y, p.height);
  blend_rows<4>(to.paint, p.paint + 4 * frame * cells, rows, columns, y, p.height);
  if (inner_y < 0 || inner_y >= p.window_rows) return;
  const int64_t finer = p.inner_rows, wide = p.inner_columns, inside = finer * wide;
  blend_rows<2>(to.inner_flow, p.inner_flow + 2 * frame * inside, finer, wide, inner_y,
                p.window_rows);
  blend_rows<4>(to.inner_paint, p.inner_paint + 4 * 4 * frame * inside, 2 * finer, 2 * wide,
                inner_y, p.window_rows);
}

template <int kBytes>
__global__ void __launch_bounds__(kThreads) move_and_paint_kernel(const MoveAndPaintParams p) {
  REST_FAST_DYNAMIC_SHARED(memory);
  const Rows rows(memory, p);
  const int y = static_cast<int>(blockIdx.x), inner_y = y - static_cast<int>(p.window_top);
  const int64_t frame = blockIdx.y;
  blend_maps(p, rows, frame, y, inner_y);
  __syncthreads();

  const bool crossed = inner_y >= 0 && inner_y < p.window_rows;
  const float rim = crossed ? fade(inner_y, p.window_rows, p.fade) : 0.0f;
  const Enlarged outer(p.map_columns, p.width), inner(p.inner_columns, p.window_columns);
  const Enlarged finest(2 * p.inner_columns, p.window_columns);
  const int64_t plane = p.height * p.width;
  const float* photo = p.photo + frame / (p.frames / p.photos) * kColours * plane;
  for (int x = static_cast<int>(threadIdx.x); x < p.width; x += kThreads) {
    const int inner_x = x - static_cast<int>(p.window_left);
    const bool inside = crossed && inner_x >= 0 && inner_x < p.window_columns;
    const Between cell = outer.at(x);
    Flow flow = read(rows.flow, cell);
    float share = 0.0f;
    if (inside) {
      share = rim * fade(inner_x, p.window_columns, p.fade);
      const Flow more = read(rows.inner_flow, inner.at(inner_x));
#pragma unroll
      for (int axis = 0; axis < 2; ++axis) flow.at[axis] += share * more.at[axis];
    }
    const Sample sample(p, static_cast<float>(x) + static_cast<float>(p.width) * flow.at[0],
                        static_cast<float>(y) + static_cast<float>(p.height) * flow.at[1]);
    float colour[kColours];
#pragma unroll
    for (int c = 0; c < kColours; ++c) colour[c] = sample.of(photo + c * plane, p.width);
    lay_over(colour, read(rows.paint, cell), 1.0f);
    if (inside) lay_over(colour, read(rows.inner_paint, finest.at(inner_x)), share);
#pragma unroll
    for (int c = 0; c < kColours; ++c) rows.bytes[kColours * x + c] = to_byte(colour[c]);
  }
  __syncthreads();

  uint8_t* out = p.out + (frame * p.height + y) * kColours * p.width;
  for (int i = static_cast<int>(threadIdx.x); i < kColours * p.width / kBytes; i += kThreads) {
    store<uint8_t, kBytes>(out, i, load<uint8_t, kBytes>(rows.bytes, i));
  }
}

}  // namespace

int move_and_paint_cuda(const MoveAndPaintParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.frames == 0) return kOk;
  for (const void* address :
       {static_cast<const void*>(p.photo), static_cast<const void*>(p.flow),
        static_cast<const void*>(p.paint), static_cast<const void*>(p.inner_flow),
        static_cast<const void*>(p.inner_paint), static_cast<const void*>(p.out)}) {
    if (address == nullptr) return kNullAddress;
  }
  const int64_t shared = shared_bytes(p);
  const bool large = shared > kMostShared || p.height > INT32_MAX || p.map_rows > INT32_MAX ||
                     2 * p.inner_rows > INT32_MAX || p.frames > kMaxGridY;
  if (large) return kBadShape;
  const dim3 grid(static_cast<unsigned>(p.height), static_cast<unsigned>(p.frames), 1);
  const bool in_words = kColours * p.width % 4 == 0 && aligned({p.out}, 4);
  const auto kernel = in_words ? move_and_paint_kernel<4> : move_and_paint_kernel<1>;
  return on_device(device, DType::kFloat32, [&](auto) {
    return launch(kernel, p, grid, kThreads, stream, static_cast<size_t>(shared));
  });
}

}  // namespace rest_fast
