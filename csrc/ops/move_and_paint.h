#pragma once

#include "../core.h"

namespace rest_fast {

// A photo moved by a flow and painted over, the inner maps in a window of it. All maps are fp32.
struct MoveAndPaintParams {
  const float* photo;        // [B, 3, H, W]
  const float* flow;         // [N, 2, h, w], in sides of the picture
  const float* paint;        // [N, 4, h, w]: share, and the paint times its share
  const float* inner_flow;   // [N, 2, h', w'], of the window
  const float* inner_paint;  // [N, 4, 2 h', 2 w'], of the window
  uint8_t* out;              // [N, H, W, 3]
  int64_t photos;            // B
  int64_t frames;            // N, a multiple of B
  int64_t height;
  int64_t width;
  int64_t map_rows;  // of flow and paint
  int64_t map_columns;
  int64_t inner_rows;  // of inner_flow
  int64_t inner_columns;
  int64_t window_top;  // in pixels
  int64_t window_left;
  int64_t window_rows;
  int64_t window_columns;
  int64_t fade;  // pixels at the window's rim over which the inner maps fade in
};

inline int check_sizes(const MoveAndPaintParams& p) {
  if (p.photos < 1 || p.frames < 0 || p.frames % p.photos != 0) return kBadShape;
  if (p.height < 2 || p.width < 2 || p.map_rows < 1 || p.map_columns < 1) return kBadShape;
  if (p.height > INT32_MAX / p.width) return kBadShape;  // places in a photo are 32 bits
  if (p.inner_rows < 1 || p.inner_columns < 1 || p.fade < 1) return kBadShape;
  const bool inside = p.window_top >= 0 && p.window_left >= 0 && p.window_rows >= 1 &&
                      p.window_columns >= 1 && p.window_top + p.window_rows <= p.height &&
                      p.window_left + p.window_columns <= p.width;
  return inside ? kOk : kBadShape;
}

// In the order of the call.
inline auto arguments(const MoveAndPaintParams*) {
  return std::make_tuple(
      REST_FAST_FIELD(photo), REST_FAST_FIELD(flow), REST_FAST_FIELD(paint),
      REST_FAST_FIELD(inner_flow), REST_FAST_FIELD(inner_paint), REST_FAST_FIELD(out),
      REST_FAST_SETS("shape", std::tie(p.photos, p.frames, p.height, p.width)),
      REST_FAST_SETS("map", std::tie(p.map_rows, p.map_columns)),
      REST_FAST_SETS("inner_map", std::tie(p.inner_rows, p.inner_columns)),
      REST_FAST_SETS("window",
                     std::tie(p.window_top, p.window_left, p.window_rows, p.window_columns)),
      REST_FAST_FIELD(fade));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int move_and_paint_cpu(const MoveAndPaintParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int move_and_paint_cuda(const MoveAndPaintParams& p, void* stream, int device);

}  // namespace rest_fast
